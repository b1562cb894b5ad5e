//! The product of a linear map, in operations that every backend has.

use burn::tensor::{Tensor, backend::Backend};

/// `x Wᵀ` in the weight's dtype, returned in the input's. `[rows, in]`, `[out, in]` → `[rows, out]`
pub(crate) fn portable_product<B: Backend>(
    input: Tensor<B, 2>,
    weight: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let (dtype, compute) = (input.dtype(), weight.dtype());
    if dtype == compute {
        return apart(input.matmul(weight.transpose()));
    }
    apart(input.cast(compute).matmul(weight.transpose())).cast(dtype)
}

/// Keeps what follows a product of one row out of the product's kernel.
///
/// burn-fusion puts a product and the element-wise operations behind it (an adapter's sum, a bias,
/// a cast) into one kernel, and among those autotune may choose one for a single row that reads a
/// transposed weight as if it lay the other way (`FusedMatmulSelector::GemvUnitPerpendicular` of
/// burn-cubecl-fusion 0.21; the product alone is checked for that). A reshape to fewer dimensions
/// is not fused, and moves nothing.
fn apart<B: Backend>(product: Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, width] = product.dims();
    if rows != 1 {
        return product;
    }
    product.reshape([width]).reshape([rows, width])
}
