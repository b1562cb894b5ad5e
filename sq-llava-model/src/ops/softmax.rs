//! Softmax of the rows of a tensor.

use burn::tensor::{Tensor, activation, backend::Backend};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;

/// Softmax over the last dimension. On the CPU weights below 1e-20 are zero.
pub(crate) fn softmax<B: Backend, const D: usize>(scores: Tensor<B, D>) -> Tensor<B, D> {
    #[cfg(feature = "cpu")]
    let scores = match cpu::run::<B, _, 1>(cpu::SoftmaxKernel, [cpu::float(scores)]) {
        Ok(output) => return cpu::tensor(output),
        Err([scores]) => cpu::tensor(scores),
    };
    portable(scores)
}

/// The operation that every backend has.
pub(crate) fn portable<B: Backend, const D: usize>(scores: Tensor<B, D>) -> Tensor<B, D> {
    activation::softmax(scores, D - 1)
}
