//! Products of the matrices of two tensors.

use burn::tensor::{Tensor, backend::Backend};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;
#[cfg(feature = "gpu")]
use crate::kernels::gpu;

/// `factor · a b` of every sample. `[batch, m, k]`, `[batch, k, n]` → `[batch, m, n]`
pub(crate) fn matmul<B: Backend>(a: Tensor<B, 3>, b: Tensor<B, 3>, factor: f64) -> Tensor<B, 3> {
    #[cfg(feature = "cpu")]
    let [a, b] = {
        let kernel = cpu::Matmul {
            factor: factor as f32,
        };
        match cpu::run::<B, _, 2>(kernel, [cpu::float(a), cpu::float(b)]) {
            Ok(output) => return cpu::tensor(output),
            Err(inputs) => inputs.map(cpu::tensor),
        }
    };
    portable(a, b, factor)
}

/// The operations that every backend has.
pub(crate) fn portable<B: Backend>(a: Tensor<B, 3>, b: Tensor<B, 3>, factor: f64) -> Tensor<B, 3> {
    let product = product(a, b);
    match factor {
        1.0 => product,
        factor => product.mul_scalar(factor),
    }
}

/// `a b`, in a kernel of its own. `[.., m, k]`, `[.., k, n]` → `[.., m, n]`
pub(crate) fn product<B: Backend, const D: usize>(
    a: Tensor<B, D>,
    b: Tensor<B, D>,
) -> Tensor<B, D> {
    #[cfg(feature = "gpu")]
    let [a, b] = match gpu::matmul(a, b) {
        Ok(product) => return product,
        Err(inputs) => inputs,
    };
    a.matmul(b)
}
