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

/// Keeps what follows a product out of the product's kernel.
///
/// burn-fusion 0.21 puts a product and the element-wise operations behind it (a cast, an adapter's
/// scale, a bias) into one kernel, of which autotune takes the fastest of several. Two of them
/// compute something else: for a single row one that reads a transposed weight as if it lay the
/// other way (`FusedMatmulSelector::GemvUnitPerpendicular` of burn-cubecl-fusion; the product alone
/// is checked for that), and in f16 the one with two buffers (`DoubleUnit`: with it a model on
/// Mesa's software driver answers otherwise although the logit of the right token is 4 % ahead). A
/// reshape to fewer dimensions is not fused, and moves nothing.
fn apart<B: Backend>(product: Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, width] = product.dims();
    product.reshape([rows * width]).reshape([rows, width])
}
