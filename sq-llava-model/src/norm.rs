//! Normalisations, computed in f32 whatever the stored dtype.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

/// Layer normalisation with weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[hidden]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Added to the variance.
    #[module(skip)]
    pub eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// Weight one, bias zero.
    pub fn init(hidden: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Initializer::Ones.init([hidden], device),
            bias: Initializer::Zeros.init([hidden], device),
            eps,
        }
    }

    /// `[.., hidden]` → `[.., hidden]`
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = input.dtype();
        let x = input.cast(DType::F32);
        let centred = x.clone() - x.mean_dim(D - 1);
        let variance = centred.clone().square().mean_dim(D - 1);
        let normed = centred / variance.add_scalar(self.eps).sqrt();
        let weight = self.weight.val().cast(DType::F32).unsqueeze();
        let bias = self.bias.val().cast(DType::F32).unsqueeze();
        (normed * weight + bias).cast(dtype)
    }
}

/// Root-mean-square normalisation (Zhang & Sennrich 2019), as in LLaMA.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    #[module(skip)]
    pub eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// Weight one.
    pub fn init(hidden: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Initializer::Ones.init([hidden], device),
            eps,
        }
    }

    /// `[.., hidden]` → `[.., hidden]`
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = input.dtype();
        let x = input.cast(DType::F32);
        let mean_square = x.clone().square().mean_dim(D - 1);
        let weight = self.weight.val().cast(DType::F32).unsqueeze();
        (x / mean_square.add_scalar(self.eps).sqrt() * weight).cast(dtype)
    }
}
