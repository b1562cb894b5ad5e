//! Normalisations, computed in f32 whatever the stored dtype.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;
#[cfg(feature = "gpu")]
use crate::kernels::gpu;

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
        let weight = self.weight.val().cast(DType::F32);
        let bias = self.bias.val().cast(DType::F32);
        #[cfg(feature = "cpu")]
        let (x, weight, bias) = {
            let inputs = [cpu::float(x), cpu::float(weight), cpu::float(bias)];
            match cpu::run::<B, _, 3>(cpu::LayerNormKernel { eps: self.eps }, inputs) {
                Ok(output) => return cpu::tensor::<B, D>(output).cast(dtype),
                Err([x, w, b]) => (cpu::tensor(x), cpu::tensor(w), cpu::tensor(b)),
            }
        };
        layer_norm(x, weight, bias, self.eps).cast(dtype)
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
    /// Whether the factor is one more than the weight, as in Gemma.
    #[module(skip)]
    pub offset: bool,
}

impl<B: Backend> RmsNorm<B> {
    /// Weight one.
    pub fn init(hidden: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Initializer::Ones.init([hidden], device),
            eps,
            offset: false,
        }
    }

    /// What normalised numbers are multiplied with, f32. `[hidden]`
    pub(crate) fn factor(&self) -> Tensor<B, 1> {
        let weight = self.weight.val().cast(DType::F32);
        match self.offset {
            true => weight.add_scalar(1.0),
            false => weight,
        }
    }

    /// Factor one, as one more than the weight where there is an `offset`.
    pub fn init_offset(hidden: usize, eps: f64, offset: bool, device: &B::Device) -> Self {
        let mut norm = Self::init(hidden, eps, device);
        if offset {
            norm.weight = Initializer::Zeros.init([hidden], device);
        }
        Self { offset, ..norm }
    }

    /// `[.., hidden]` → `[.., hidden]`
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        #[cfg(feature = "gpu")]
        let input = {
            let (eps, offset) = (self.eps, self.offset);
            let inputs = [gpu::float(input), gpu::float(self.weight.val())];
            match gpu::run::<B, _, 2>(gpu::RmsNormKernel { eps, offset }, inputs) {
                Ok(output) => return gpu::tensor(output),
                Err([input, _]) => gpu::tensor::<B, D>(input),
            }
        };
        let dtype = input.dtype();
        let x = input.cast(DType::F32);
        let weight = self.factor();
        #[cfg(feature = "cpu")]
        let (x, weight) = {
            let inputs = [cpu::float(x), cpu::float(weight)];
            match cpu::run::<B, _, 2>(cpu::RmsNormKernel { eps: self.eps }, inputs) {
                Ok(output) => return cpu::tensor::<B, D>(output).cast(dtype),
                Err([x, weight]) => (cpu::tensor(x), cpu::tensor(weight)),
            }
        };
        rms_norm(x, weight, self.eps).cast(dtype)
    }
}

/// The operations that every backend has.
pub(crate) fn layer_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = centred.clone().square().mean_dim(D - 1);
    centred / variance.add_scalar(eps).sqrt() * weight.unsqueeze() + bias.unsqueeze()
}

/// The operations that every backend has.
pub(crate) fn rms_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let mean_square = x.clone().square().mean_dim(D - 1);
    x / mean_square.add_scalar(eps).sqrt() * weight.unsqueeze()
}

/// Below this squared norm a vector counts as zero: its direction is zero, and so is the gradient
/// of its direction.
const MIN_SQUARED_NORM: f64 = 1e-24;

/// Vectors along `dim` divided by their norms; zero vectors stay zero, with zero gradient.
pub(crate) fn normalize<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    dim: usize,
) -> Tensor<B, D> {
    let dtype = tensor.dtype();
    let tensor = tensor.cast(DType::F32);
    #[cfg(feature = "cpu")]
    let tensor = if dim == D - 1 {
        let least = MIN_SQUARED_NORM as f32;
        match cpu::run::<B, _, 1>(cpu::NormalizeKernel { least }, [cpu::float(tensor)]) {
            Ok(output) => return cpu::tensor::<B, D>(output).cast(dtype),
            Err([tensor]) => cpu::tensor(tensor),
        }
    } else {
        tensor
    };
    portable_normalize(tensor, dim).cast(dtype)
}

/// The operations that every backend has.
pub(crate) fn portable_normalize<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    dim: usize,
) -> Tensor<B, D> {
    let squared = tensor.clone().square().sum_dim(dim);
    let zero = squared.clone().lower_elem(MIN_SQUARED_NORM);
    // The clamp comes before the root, whose slope at zero is infinite.
    let scale = squared.clamp_min(MIN_SQUARED_NORM).sqrt().recip();
    tensor * scale.mask_fill(zero, 0.0)
}
