//! Activation functions by their Hugging Face names.

use burn::tensor::{Tensor, activation, backend::Backend};
use serde::{Deserialize, Serialize};

#[cfg(feature = "cpu")]
use crate::cpu;

/// Non-linearity of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · σ(1.702 x)`, OpenAI CLIP.
    QuickGelu,
    /// Exact GELU.
    Gelu,
    /// GELU, tanh approximation.
    #[serde(alias = "gelu_new")]
    GeluPytorchTanh,
    /// `x · σ(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Element-wise.
    pub fn forward<B: Backend, const D: usize>(self, input: Tensor<B, D>) -> Tensor<B, D> {
        #[cfg(feature = "cpu")]
        let input = match cpu::run::<B, _, 1>(cpu::Pointwise(self), [cpu::float(input)]) {
            Ok(output) => return cpu::tensor(output),
            Err([input]) => cpu::tensor(input),
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
                Err(inputs) => inputs.map(cpu::tensor),
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
