//! Linear map in checkpoint layout, with an optional LoRA adapter.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Tensor, backend::Backend};

use crate::lora::Lora;

/// `y = x Wᵀ + b (+ LoRA)`.
///
/// The weight stays as checkpoints store it, `[out, in]`, and is multiplied through a transposed
/// view: nothing is copied at load, and CPU backends read it faster that way.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Low-rank adapter, if this linear has one.
    pub lora: Option<Lora<B>>,
}

impl<B: Backend> Linear<B> {
    /// A linear map with PyTorch's default initialisation, `U(−1/√in, 1/√in)`.
    pub fn init(d_in: usize, d_out: usize, bias: bool, device: &B::Device) -> Self {
        let bound = 1.0 / (d_in as f64).sqrt();
        let uniform = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        Self {
            weight: uniform.init([d_out, d_in], device),
            bias: bias.then(|| uniform.init([d_out], device)),
            lora: None,
        }
    }

    /// Input width.
    pub fn d_in(&self) -> usize {
        self.weight.lazy_shape()[1]
    }

    /// Output width.
    pub fn d_out(&self) -> usize {
        self.weight.lazy_shape()[0]
    }

    /// `[.., in]` → `[.., out]`, in the input's dtype.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let mut dims = input.dims();
        let d_in = dims[D - 1];
        let rows: usize = dims[..D - 1].iter().product();
        let dtype = input.dtype();
        // One [rows, in] product: backends batch leading dimensions otherwise.
        let flat = input.reshape([rows, d_in]);

        let mut output = product(flat.clone(), self.weight.val());
        if let Some(bias) = &self.bias {
            output = output + bias.val().cast(dtype).unsqueeze();
        }
        if let Some(lora) = &self.lora {
            output = output + lora.forward(flat);
        }
        dims[D - 1] = self.d_out();
        output.reshape(dims)
    }
}

/// `x Wᵀ` in the weight's dtype, returned in the input's. `[rows, in]`, `[out, in]` → `[rows, out]`
pub(crate) fn product<B: Backend>(input: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    let (dtype, compute) = (input.dtype(), weight.dtype());
    if dtype == compute {
        return input.matmul(weight.transpose());
    }
    input.cast(compute).matmul(weight.transpose()).cast(dtype)
}
