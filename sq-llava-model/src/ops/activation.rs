//! Activation functions of feed-forward blocks, alone and as the gate of a product.

use burn::tensor::{Tensor, activation, backend::Backend};

pub use crate::kernels::activation::Activation;
#[cfg(feature = "cpu")]
use crate::kernels::cpu;
#[cfg(feature = "gpu")]
use crate::kernels::gpu;

impl Activation {
    /// Element-wise.
    pub fn forward<B: Backend, const D: usize>(self, input: Tensor<B, D>) -> Tensor<B, D> {
        #[cfg(feature = "cpu")]
        let input = match cpu::run::<B, _, 1>(cpu::Pointwise(self), [cpu::float(input)]) {
            Ok(output) => return cpu::tensor(output),
            Err([input]) => cpu::tensor::<B, D>(input),
        };
        #[cfg(feature = "gpu")]
        let input = match gpu::run::<B, _, 1>(gpu::Pointwise(self), [gpu::float(input)]) {
            Ok(output) => return gpu::tensor(output),
            Err([input]) => gpu::tensor(input),
        };
        self.portable(input)
    }

    /// `f(gate) · up`, element-wise.
    pub fn gated<B: Backend, const D: usize>(
        self,
        gate: Tensor<B, D>,
        up: Tensor<B, D>,
    ) -> Tensor<B, D> {
        #[cfg(feature = "cpu")]
        let [gate, up] =
            match cpu::run::<B, _, 2>(cpu::Gated(self), [cpu::float(gate), cpu::float(up)]) {
                Ok(output) => return cpu::tensor(output),
                Err(inputs) => inputs.map(cpu::tensor::<B, D>),
            };
        #[cfg(feature = "gpu")]
        let [gate, up] =
            match gpu::run::<B, _, 2>(gpu::Gated(self), [gpu::float(gate), gpu::float(up)]) {
                Ok(output) => return gpu::tensor(output),
                Err(inputs) => inputs.map(gpu::tensor),
            };
        self.portable(gate) * up
    }

    /// The operations that every backend has.
    pub(crate) fn portable<B: Backend, const D: usize>(self, input: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::QuickGelu => input.clone() * activation::sigmoid(input.mul_scalar(1.702)),
            Self::Gelu => activation::gelu(input),
            Self::GeluPytorchTanh => {
                // 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))
                let cubic = input.clone().powi_scalar(3).mul_scalar(0.044_715);
                let inner = (input.clone() + cubic)
                    .mul_scalar((2.0 / std::f64::consts::PI).sqrt())
                    .tanh();
                input.mul_scalar(0.5) * inner.add_scalar(1.0)
            }
            Self::Silu => activation::silu(input),
            Self::Relu => activation::relu(input),
        }
    }
}
