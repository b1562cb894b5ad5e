//! Linear map in checkpoint layout, with an optional LoRA adapter.

use burn::module::{Module, Param};
use burn::nn::Initializer;
#[cfg(feature = "cpu")]
use burn::tensor::{DType, ops::FloatTensor};
use burn::tensor::{Tensor, backend::Backend};

#[cfg(feature = "cpu")]
use crate::cpu;
use crate::lora::Lora;
use crate::quant::{BlockMatrix, OnDevice};

/// `y = x Wᵀ + b (+ LoRA)`.
///
/// The weight stays as checkpoints store it, `[out, in]`, and is multiplied through a transposed
/// view: nothing is copied at load, and CPU backends read it faster that way.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// The weight in blocks; `weight` is a stand-in then.
    #[module(skip)]
    pub quantized: Option<BlockMatrix>,
    /// What `weight` holds where it is a quantised tensor, as on backends other than the CPU's.
    #[module(skip)]
    pub on_device: Option<OnDevice>,
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
            quantized: None,
            on_device: None,
            bias: bias.then(|| uniform.init([d_out], device)),
            lora: None,
        }
    }

    /// Input width.
    pub fn d_in(&self) -> usize {
        match (&self.quantized, &self.on_device) {
            (Some(matrix), _) => matrix.columns(),
            (None, Some(held)) => held.columns,
            (None, None) => self.weight.lazy_shape()[1],
        }
    }

    /// Output width.
    pub fn d_out(&self) -> usize {
        match &self.quantized {
            Some(matrix) => matrix.rows(),
            None => self.weight.lazy_shape()[0],
        }
    }

    /// `[.., in]` → `[.., out]`, in the input's dtype.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let mut dims = input.dims();
        let d_in = dims[D - 1];
        let rows: usize = dims[..D - 1].iter().product();
        // One [rows, in] product: backends batch leading dimensions otherwise.
        let flat = input.reshape([rows, d_in]);
        dims[D - 1] = self.d_out();
        self.flat(flat).reshape(dims)
    }

    /// `[rows, in]` → `[rows, out]`
    fn flat(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        #[cfg(feature = "cpu")]
        let input = match self.on_cpu(input) {
            Ok(output) => return output,
            Err(input) => input,
        };
        self.portable(input)
    }

    /// The operations that every backend has. `[rows, in]` → `[rows, out]`
    pub(crate) fn portable(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = input.dtype();
        let mut output = match (&self.quantized, &self.on_device) {
            (Some(matrix), _) => matrix.product(input.clone()),
            (None, Some(held)) => held.product(input.clone(), self.weight.val()),
            (None, None) => portable_product(input.clone(), self.weight.val()),
        };
        if let Some(bias) = &self.bias {
            output = output + bias.val().cast(dtype).unsqueeze();
        }
        if let Some(lora) = &self.lora {
            output = output + lora.forward(input);
        }
        output
    }

    /// The weight in `weight`, in its dtype, where it was in blocks.
    #[must_use]
    pub fn dequantize(mut self) -> Self {
        if let Some(matrix) = self.quantized.take() {
            let (device, dtype) = (self.weight.lazy_device(), self.weight.val().dtype());
            let weight = Tensor::from_data(matrix.dequantize(), (&device, dtype));
            let weight = weight.set_require_grad(false);
            self.weight = Param::initialized(self.weight.id, weight);
        }
        if let Some(held) = self.on_device.take() {
            let weight = held.dense(self.weight.val());
            self.weight = Param::initialized(self.weight.id, weight);
        }
        self
    }

    /// Our kernel, where the tensors are the CPU backend's: weight, bias and adapter in one.
    #[cfg(feature = "cpu")]
    fn on_cpu(&self, input: Tensor<B, 2>) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
        let weight = self.weight.val();
        if !cpu::multiplies(&input, &weight) {
            return Err(input);
        }
        let vector = |param: &Param<Tensor<B, 1>>| cpu::float(param.val().cast(DType::F32));
        let matrix = |param: &Param<Tensor<B, 2>>| cpu::float(param.val().cast(DType::F32));
        let lora = self.lora.as_ref();
        let dropped = lora.and_then(|lora| lora.dropped(&input));
        let kernel = cpu::LinearKernel {
            blocks: self.quantized.clone(),
            bias: self.bias.is_some(),
            adapter: lora.map(|lora| lora.scaling),
            dropped: dropped.is_some(),
        };
        let (x, w) = (cpu::float(input), cpu::float(weight));
        match (&self.bias, lora, dropped.map(cpu::float)) {
            (None, None, _) => apply(kernel, [x, w]),
            (Some(bias), None, _) => apply(kernel, [x, w, vector(bias)]),
            (None, Some(lora), None) => apply(kernel, [x, w, matrix(&lora.a), matrix(&lora.b)]),
            (None, Some(lora), Some(low)) => {
                apply(kernel, [x, w, matrix(&lora.a), matrix(&lora.b), low])
            }
            (Some(bias), Some(lora), None) => {
                let (a, b) = (matrix(&lora.a), matrix(&lora.b));
                apply(kernel, [x, w, vector(bias), a, b])
            }
            (Some(bias), Some(lora), Some(low)) => {
                let (a, b) = (matrix(&lora.a), matrix(&lora.b));
                apply(kernel, [x, w, vector(bias), a, b, low])
            }
        }
    }
}

/// Runs the kernel; `Err` is the input.
#[cfg(feature = "cpu")]
fn apply<B: Backend, const N: usize>(
    kernel: cpu::LinearKernel,
    inputs: [FloatTensor<B>; N],
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    match cpu::run::<B, _, N>(kernel, inputs) {
        Ok(output) => Ok(cpu::tensor(output)),
        Err(inputs) => {
            let [input, ..] = &inputs[..] else {
                unreachable!("a linear map has at least an input and a weight")
            };
            Err(cpu::tensor(input.clone()))
        }
    }
}

/// Several maps of one input. One token costs what reading the weights costs: the CPU backend
/// reads them all in one go. `[.., in]` → `[.., out]` each
pub(crate) fn together<B: Backend, const D: usize, const N: usize>(
    linears: [&Linear<B>; N],
    input: Tensor<B, D>,
) -> [Tensor<B, D>; N] {
    #[cfg(feature = "cpu")]
    if linears.iter().all(|l| l.bias.is_none() && l.lora.is_none()) {
        let mut dims = input.dims();
        let d_in = dims[D - 1];
        let flat = input
            .clone()
            .reshape([dims[..D - 1].iter().product(), d_in]);
        let weights = linears
            .iter()
            .map(|linear| (linear.weight.val(), linear.quantized.as_ref()))
            .collect();
        if let Some(outputs) = cpu::together(&flat, weights)
            && let Ok(outputs) = <[Tensor<B, 2>; N]>::try_from(outputs)
        {
            return outputs.map(|output| {
                dims[D - 1] = output.dims()[1];
                output.reshape(dims)
            });
        }
    }
    linears.map(|linear| linear.forward(input.clone()))
}

/// `x Wᵀ` in the weight's dtype, returned in the input's. `[rows, in]`, `[out, in]` → `[rows, out]`
pub(crate) fn product<B: Backend>(input: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    #[cfg(feature = "cpu")]
    let input = if cpu::multiplies(&input, &weight) {
        let kernel = cpu::LinearKernel::plain();
        match apply(kernel, [cpu::float(input), cpu::float(weight.clone())]) {
            Ok(output) => return output,
            Err(input) => input,
        }
    } else {
        input
    };
    portable_product(input, weight)
}

/// The operations that every backend has.
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
