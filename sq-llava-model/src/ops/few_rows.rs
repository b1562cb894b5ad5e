//! Linear maps of a few rows on a GPU, as in decoding: one launch for maps of one input, with the
//! norm before them and the sum or gate behind. `Err` and `None` where the tensors are no GPU's, a
//! graph tracks them, the rows are many, or a weight is in a form that the kernel does not read.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, backend::Backend};

use crate::kernels::gpu::{self, Normed, RowProduct};
use crate::ops::activation::Activation;
use crate::ops::linear::Linear;
use crate::ops::norm::RmsNorm;

/// Whether rows are few enough, and on a GPU.
pub(crate) fn fits<B: Backend>(rows: usize) -> bool {
    rows <= gpu::MAX_ROWS && gpu::is_gpu::<B>()
}

/// `[rows, in]` → `[rows, out]`
pub(crate) fn linear<B: Backend>(
    linear: &Linear<B>,
    input: Tensor<B, 2>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    if !fits::<B>(input.dims()[0]) {
        return Err(input);
    }
    let product = RowProduct {
        bias: linear.bias.is_some(),
        ..RowProduct::plain()
    };
    let bias = linear.bias.as_ref().map(|bias| gpu::float(bias.val()));
    let Some([output]) = run(&product, input.clone(), [linear], bias) else {
        return Err(input);
    };
    Ok(match &linear.lora {
        Some(lora) => output + lora.forward(input),
        None => output,
    })
}

/// Several maps of one input. `[rows, in]` → `[rows, out]` each
pub(crate) fn together<B: Backend, const N: usize>(
    linears: [&Linear<B>; N],
    input: &Tensor<B, 2>,
) -> Option<[Tensor<B, 2>; N]> {
    if !fits::<B>(input.dims()[0]) || !linears.iter().all(|linear| is_plain(linear)) {
        return None;
    }
    let product = RowProduct {
        weights: N,
        ..RowProduct::plain()
    };
    run(&product, input.clone(), linears, [])
}

/// As [`crate::ops::linear::product`].
pub(crate) fn product<B: Backend>(
    input: Tensor<B, 2>,
    weight: Tensor<B, 2>,
) -> Result<Tensor<B, 2>, (Tensor<B, 2>, Tensor<B, 2>)> {
    if !fits::<B>(input.dims()[0]) {
        return Err((input, weight));
    }
    let inputs = [input.clone(), weight.clone()].map(gpu::float);
    match gpu::launch::<B, _>(&RowProduct::plain(), inputs.into()) {
        Ok(mut outputs) => Ok(gpu::tensor(outputs.swap_remove(0))),
        Err(_) => Err((input, weight)),
    }
}

/// Maps of normalised rows. `[rows, in]` → `[rows, out]` each
pub(crate) fn behind_norm<B: Backend, const N: usize>(
    norm: &RmsNorm<B>,
    linears: [&Linear<B>; N],
    input: Tensor<B, 2>,
) -> Option<[Tensor<B, 2>; N]> {
    let product = RowProduct {
        weights: N,
        norm: Some(normed(norm)),
        ..RowProduct::plain()
    };
    let known = linears.iter().all(|linear| is_plain(linear));
    let weight = gpu::float(norm.weight.val());
    known.then(|| run(&product, input, linears, [weight]))?
}

/// `f(gate(norm(x))) · up(norm(x))`. `[rows, in]` → `[rows, out]`
pub(crate) fn gated_behind_norm<B: Backend>(
    norm: &RmsNorm<B>,
    act: Activation,
    [gate, up]: [&Linear<B>; 2],
    input: Tensor<B, 2>,
) -> Option<Tensor<B, 2>> {
    let product = RowProduct {
        weights: 2,
        norm: Some(normed(norm)),
        gate: Some(act),
        ..RowProduct::plain()
    };
    let known = is_plain(gate) && is_plain(up);
    let weight = gpu::float(norm.weight.val());
    let [output] = known.then(|| run(&product, input, [gate, up], [weight]))??;
    Some(output)
}

/// `linear(x) + residual`. `[rows, in]`, `[rows, out]` → `[rows, out]`
pub(crate) fn onto<B: Backend>(
    linear: &Linear<B>,
    input: Tensor<B, 2>,
    residual: Tensor<B, 2>,
) -> Option<Tensor<B, 2>> {
    if linear.lora.is_some() {
        return None;
    }
    let product = RowProduct {
        bias: linear.bias.is_some(),
        residual: true,
        ..RowProduct::plain()
    };
    let bias = linear.bias.as_ref().map(|bias| gpu::float(bias.val()));
    let beside = bias.into_iter().chain([gpu::float(residual)]);
    let [output] = run(&product, input, [linear], beside)?;
    Some(output)
}

fn normed<B: Backend>(norm: &RmsNorm<B>) -> Normed {
    Normed {
        eps: norm.eps,
        offset: norm.offset,
    }
}

/// Whether it is a weight and nothing else.
fn is_plain<B: Backend>(linear: &Linear<B>) -> bool {
    linear.bias.is_none() && linear.lora.is_none()
}

fn run<B: Backend, const N: usize, const M: usize>(
    product: &RowProduct,
    input: Tensor<B, 2>,
    linears: [&Linear<B>; N],
    beside: impl IntoIterator<Item = FloatTensor<B>>,
) -> Option<[Tensor<B, 2>; M]> {
    let mut inputs = vec![gpu::float(input)];
    for linear in linears {
        inputs.push(linear.weight.primitive()?);
    }
    inputs.extend(beside);
    let outputs = gpu::launch::<B, _>(product, inputs).ok()?;
    let outputs: Vec<_> = outputs.into_iter().map(gpu::tensor).collect();
    outputs.try_into().ok()
}
