//! The product of a linear map, in operations that every backend has.

use burn::tensor::{Tensor, backend::Backend};

use crate::ops::matmul::product;

/// `x Wᵀ` in the weight's dtype, returned in the input's. `[rows, in]`, `[out, in]` → `[rows, out]`
pub(crate) fn portable_product<B: Backend>(
    input: Tensor<B, 2>,
    weight: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let (dtype, compute) = (input.dtype(), weight.dtype());
    product(input.cast(compute), weight.transpose()).cast(dtype)
}
