//! What a layer adds to its input.

use burn::tensor::{Tensor, backend::Backend};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;

/// `input + update`, of one shape.
pub fn add<B: Backend, const D: usize>(input: Tensor<B, D>, update: Tensor<B, D>) -> Tensor<B, D> {
    #[cfg(feature = "cpu")]
    let [input, update] =
        match cpu::run::<B, _, 2>(cpu::Sum, [cpu::float(input), cpu::float(update)]) {
            Ok(output) => return cpu::tensor(output),
            Err(inputs) => inputs.map(cpu::tensor),
        };
    input + update
}

/// `input + update · scale`. `[.., n]` twice, scale `[n]`
pub fn add_scaled<B: Backend, const D: usize>(
    input: Tensor<B, D>,
    update: Tensor<B, D>,
    scale: Tensor<B, 1>,
) -> Tensor<B, D> {
    #[cfg(feature = "cpu")]
    let (input, update, scale) = {
        let inputs = [cpu::float(input), cpu::float(update), cpu::float(scale)];
        match cpu::run::<B, _, 3>(cpu::ScaledSum, inputs) {
            Ok(output) => return cpu::tensor(output),
            Err([input, update, scale]) => {
                (cpu::tensor(input), cpu::tensor(update), cpu::tensor(scale))
            }
        }
    };
    portable_scaled(input, update, scale)
}

/// The operations that every backend has.
pub(crate) fn portable_scaled<B: Backend, const D: usize>(
    input: Tensor<B, D>,
    update: Tensor<B, D>,
    scale: Tensor<B, 1>,
) -> Tensor<B, D> {
    input + update * scale.unsqueeze()
}
