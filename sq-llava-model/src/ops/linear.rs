//! Linear map in checkpoint layout, with an optional LoRA adapter.

use burn::module::{Module, Param};
use burn::nn::Initializer;
#[cfg(feature = "cpu")]
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, backend::Backend};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;
#[cfg(feature = "gpu")]
use crate::ops::few_rows;
use crate::ops::lora::{Lora, LoraConfig};
use crate::ops::product::portable_product;
use crate::ops::weight::Weight;

/// `y = x Wᵀ + b (+ LoRA)`.
///
/// A dense weight stays as checkpoints store it, `[out, in]`, and is multiplied through a
/// transposed view: nothing is copied at load, and CPU backends read it faster that way.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Weight<B>,
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
            weight: Weight::Dense(uniform.init([d_out, d_in], device)),
            bias: bias.then(|| uniform.init([d_out], device)),
            lora: None,
        }
    }

    /// Input width.
    pub fn d_in(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Output width.
    pub fn d_out(&self) -> usize {
        self.weight.shape()[0]
    }

    /// In what keys and values that it makes are kept: in 16 bits where the weight has no more and
    /// kernels read such, else as they are computed.
    pub(crate) fn cache_dtype(&self, computed: DType) -> DType {
        let reads = crate::kernels::blocks::is_native::<B>();
        #[cfg(feature = "gpu")]
        let reads = reads || crate::kernels::gpu::is_gpu::<B>();
        if !reads {
            return computed;
        }
        match &self.weight {
            Weight::Blocks { .. } => DType::F16,
            weight => match weight.dtype() {
                stored @ (DType::F16 | DType::BF16) => stored,
                _ => computed,
            },
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
        #[cfg(feature = "gpu")]
        let input = match few_rows::linear(self, input) {
            Ok(output) => return output,
            Err(input) => input,
        };
        self.portable(input)
    }

    /// The map for a step of decoding, where its tensors are flex's plain ones and it has no
    /// adapter.
    #[cfg(feature = "cpu")]
    pub(crate) fn step(&self) -> Option<cpu::step::StepLinear> {
        use cpu::step::{StepLinear, StepWeight};
        if self.lora.is_some() {
            return None;
        }
        let weight = match &self.weight {
            Weight::Dense(param) => StepWeight::tensor(cpu::plain(param.val())?)?,
            Weight::Blocks { matrix, .. } => StepWeight::Blocks(matrix.clone()),
            Weight::OnDevice(_) => return None,
        };
        let bias = match &self.bias {
            Some(bias) => Some(cpu::plain(bias.val().cast(DType::F32))?),
            None => None,
        };
        Some(StepLinear { weight, bias })
    }

    /// The operations that every backend has. `[rows, in]` → `[rows, out]`
    pub(crate) fn portable(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = input.dtype();
        let mut output = match &self.weight {
            Weight::Blocks { matrix, .. } => matrix.product(input.clone()),
            Weight::OnDevice(held) => held.product(input.clone()),
            Weight::Dense(param) => portable_product(input.clone(), param.val()),
        };
        if let Some(bias) = &self.bias {
            output = output + bias.val().cast(dtype).unsqueeze();
        }
        if let Some(lora) = &self.lora {
            output = output + lora.forward(input);
        }
        output
    }

    /// The same with its weight in floats.
    #[must_use]
    pub fn dequantize(mut self) -> Self {
        self.weight = self.weight.dequantize();
        self
    }

    /// Our kernel, where the tensors are the CPU backend's: weight, bias and adapter in one.
    #[cfg(feature = "cpu")]
    fn on_cpu(&self, input: Tensor<B, 2>) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
        let (blocks, weight) = match &self.weight {
            Weight::Dense(param) => (None, Some(param.val())),
            Weight::Blocks { matrix, .. } => (Some(matrix.clone()), None),
            Weight::OnDevice(_) => return Err(input),
        };
        if !cpu::multiplies(&input, weight.as_ref()) {
            return Err(input);
        }
        let lora = self.lora.as_ref();
        let dropped = lora.and_then(|lora| lora.dropped(&input));
        let kernel = cpu::LinearKernel {
            blocks,
            bias: self.bias.is_some(),
            adapter: lora.map(|lora| lora.scaling),
            dropped: dropped.is_some(),
        };
        let mut inputs = vec![cpu::float(input)];
        inputs.extend(weight.map(cpu::float));
        let bias = self.bias.as_ref().map(Param::val);
        inputs.extend(bias.map(|bias| cpu::float(bias.cast(DType::F32))));
        let factors = lora.into_iter().flat_map(|lora| [&lora.a, &lora.b]);
        inputs.extend(factors.map(|factor| cpu::float(factor.val().cast(DType::F32))));
        inputs.extend(dropped.map(cpu::float));
        match inputs.len() {
            1 => apply::<B, 1>(kernel, inputs),
            2 => apply::<B, 2>(kernel, inputs),
            3 => apply::<B, 3>(kernel, inputs),
            4 => apply::<B, 4>(kernel, inputs),
            5 => apply::<B, 5>(kernel, inputs),
            _ => apply::<B, 6>(kernel, inputs),
        }
    }
}

impl<B: Backend> Linear<B> {
    /// Adds a fresh adapter.
    #[must_use]
    pub fn with_lora(mut self, config: &LoraConfig, index: u64) -> Self {
        let device = self.weight.device();
        let (d_in, d_out) = (self.d_in(), self.d_out());
        self.lora = Some(Lora::init(config, d_in, d_out, index, &device));
        self
    }

    /// Folds the adapter into the weight, computed in f32, and removes it. A weight in blocks is
    /// dequantised for that.
    #[must_use]
    pub fn merge_lora(mut self) -> Self {
        if let Some(lora) = self.lora.take() {
            self.weight = self.weight.map(|weight| add_f32(weight, lora.delta()));
        }
        self
    }

    /// Takes a merged adapter out of the weight again and puts it back beside it.
    #[must_use]
    pub fn unmerge_lora(mut self, lora: Lora<B>) -> Self {
        self.weight = self
            .weight
            .map(|weight| add_f32(weight, lora.delta().neg()));
        self.lora = Some(lora);
        self
    }
}

/// `weight + delta` in f32, back in the weight's dtype.
fn add_f32<B: Backend>(weight: Tensor<B, 2>, delta: Tensor<B, 2>) -> Tensor<B, 2> {
    use burn::tensor::DType;
    let dtype = weight.dtype();
    let tracked = weight.is_require_grad();
    (weight.detach().cast(DType::F32) + delta.detach().cast(DType::F32))
        .cast(dtype)
        .set_require_grad(tracked)
}

/// Runs the kernel on its `N` inputs; `Err` is the first.
#[cfg(feature = "cpu")]
fn apply<B: Backend, const N: usize>(
    kernel: cpu::LinearKernel,
    inputs: Vec<FloatTensor<B>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let Ok(inputs) = <[FloatTensor<B>; N]>::try_from(inputs) else {
        unreachable!("the caller counts them, and there are at most six")
    };
    match cpu::run::<B, _, N>(kernel, inputs) {
        Ok(output) => Ok(cpu::tensor(output)),
        Err(inputs) => Err(cpu::tensor(inputs[0].clone())),
    }
}

/// Several maps of one input. One token costs what reading the weights costs: the CPU backend
/// reads them all at once. `[.., in]` → `[.., out]` each
pub(crate) fn together<B: Backend, const D: usize, const N: usize>(
    linears: [&Linear<B>; N],
    input: Tensor<B, D>,
) -> [Tensor<B, D>; N] {
    let mut dims = input.dims();
    let d_in = dims[D - 1];
    // One view for all, where their gradients meet.
    let flat = input.reshape([dims[..D - 1].iter().product(), d_in]);
    let outputs =
        at_once(linears, &flat).unwrap_or_else(|| linears.map(|linear| linear.flat(flat.clone())));
    outputs.map(|output| {
        dims[D - 1] = output.dims()[1];
        output.reshape(dims)
    })
}

/// The maps of few rows in one turn, where the backend can. `[rows, in]` → `[rows, out]` each
fn at_once<B: Backend, const N: usize>(
    linears: [&Linear<B>; N],
    flat: &Tensor<B, 2>,
) -> Option<[Tensor<B, 2>; N]> {
    #[cfg(feature = "cpu")]
    if cpu::is_plain::<B>() && linears.iter().all(|l| l.bias.is_none() && l.lora.is_none()) {
        let weights = linears.iter().map(|linear| match &linear.weight {
            Weight::Dense(param) => Some(cpu::Factor::Tensor(param.val())),
            Weight::Blocks { matrix, .. } => Some(cpu::Factor::Blocks(matrix)),
            Weight::OnDevice(_) => None,
        });
        let weights: Option<Vec<_>> = weights.collect();
        if let Some(outputs) = weights.and_then(|weights| cpu::together(flat, weights)) {
            return outputs.try_into().ok();
        }
    }
    #[cfg(feature = "gpu")]
    return few_rows::together(linears, flat);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (linears, flat);
        None
    }
}

/// `x Wᵀ` in the weight's dtype, returned in the input's. `[rows, in]`, `[out, in]` → `[rows, out]`
pub fn product<B: Backend>(input: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    #[cfg(feature = "cpu")]
    let input = if cpu::multiplies(&input, Some(&weight)) {
        let kernel = cpu::LinearKernel::plain();
        match apply::<B, 2>(kernel, vec![cpu::float(input), cpu::float(weight.clone())]) {
            Ok(output) => return output,
            Err(input) => input,
        }
    } else {
        input
    };
    #[cfg(feature = "gpu")]
    let (input, weight) = match few_rows::product(input, weight) {
        Ok(output) => return output,
        Err(inputs) => inputs,
    };
    portable_product(input, weight)
}
