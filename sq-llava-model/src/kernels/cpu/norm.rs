//! Normalisations over the last dimension.

use burn_flex::FlexTensor;

use super::Kernel;
use super::level::{Level, vectorised};
use super::math::sum as sum_of;
use super::view::{contiguous, elements, filled, width};
use super::{pieces, sum};

vectorised! {
    /// `x / √(mean x² + ε) · w`, row by row.
    pub(super) fn rms_rows<L>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let scale = inverse_rms::<L>(x, eps);
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
        }
    }

    /// Adds `r (w g) − x r³ mean(w g x)` with `r = 1 / √(mean x² + ε)`.
    fn rms_back_rows<L>(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        let rows = x.chunks_exact(n).zip(grad.chunks_exact(n));
        for ((x, grad), out) in rows.zip(out.chunks_exact_mut(n)) {
            let scale = inverse_rms::<L>(x, eps);
            let along = sum_of(n, |i| weight[i] * grad[i] * x[i]) / n as f32;
            let pull = scale * scale * scale * along;
            for i in 0..n {
                out[i] += scale * weight[i] * grad[i] - pull * x[i];
            }
        }
    }

    /// Adds `g x r` of every row.
    fn rms_weight_rows<L>(x: &[f32], grad: &[f32], eps: f32, out: &mut [f32]) {
        let n = out.len();
        for (x, grad) in x.chunks_exact(n).zip(grad.chunks_exact(n)) {
            let scale = inverse_rms::<L>(x, eps);
            for ((out, &x), &grad) in out.iter_mut().zip(x).zip(grad) {
                *out += grad * x * scale;
            }
        }
    }

    /// `(x − mean) / √(variance + ε) · w + b`, row by row.
    fn layer_rows<L>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let (mean, scale) = moments(x, eps);
            for i in 0..n {
                out[i] = L::fma((x[i] - mean) * scale, weight[i], bias[i]);
            }
        }
    }

    /// Adds `r (w g − mean(w g) − x̂ mean(w g x̂))` with `x̂` the normalised row and `r` its scale.
    fn layer_back_rows<L>(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        let rows = x.chunks_exact(n).zip(grad.chunks_exact(n));
        for ((x, grad), out) in rows.zip(out.chunks_exact_mut(n)) {
            let (mean, scale) = moments(x, eps);
            let shift = sum_of(n, |i| weight[i] * grad[i]) / n as f32;
            let along = sum_of(n, |i| weight[i] * grad[i] * (x[i] - mean) * scale) / n as f32;
            for i in 0..n {
                let normed = (x[i] - mean) * scale;
                out[i] += scale * (weight[i] * grad[i] - shift - normed * along);
            }
        }
    }

    /// Adds `g x̂` of every row to the first half and `g` to the second.
    fn layer_weight_rows<L>(x: &[f32], grad: &[f32], eps: f32, out: &mut [f32]) {
        let n = out.len() / 2;
        let (weight, bias) = out.split_at_mut(n);
        for (x, grad) in x.chunks_exact(n).zip(grad.chunks_exact(n)) {
            let (mean, scale) = moments(x, eps);
            for i in 0..n {
                weight[i] = L::fma(grad[i], (x[i] - mean) * scale, weight[i]);
                bias[i] += grad[i];
            }
        }
    }
}

#[inline(always)]
fn inverse_rms<L: Level>(x: &[f32], eps: f32) -> f32 {
    let mean_square = super::math::dot::<L>(x, x) / x.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}

#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len();
    let mean = sum_of(n, |i| x[i]) / n as f32;
    let variance = sum_of(n, |i| (x[i] - mean) * (x[i] - mean)) / n as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Whether the tensors after the first are vectors as wide as its last dimension.
fn widths_agree<const N: usize>(inputs: &[&FlexTensor; N]) -> bool {
    let n = width(inputs[0]);
    let f32s = inputs.iter().all(|i| i.dtype() == burn::tensor::DType::F32);
    f32s && n > 0 && inputs[1..].iter().all(|i| i.layout().num_elements() == n)
}

/// `[.., n]` and weight `[n]`.
#[derive(Debug)]
pub(crate) struct RmsNormKernel {
    /// Added to the mean square.
    pub(crate) eps: f64,
}

impl Kernel<2> for RmsNormKernel {
    type Saved = [FlexTensor; 2];

    fn accepts(&self, inputs: &[&FlexTensor; 2]) -> bool {
        widths_agree(inputs)
    }

    fn forward(&self, inputs: [FlexTensor; 2]) -> FlexTensor {
        let inputs = inputs.map(contiguous);
        let [x, weight] = inputs.each_ref().map(elements);
        let n = weight.len();
        let out = pieces::rows(x.len(), n, |row, out| {
            let x = &x[row * n..row * n + out.len()];
            rms_rows(x, weight, self.eps as f32, out);
        });
        filled(out, inputs[0].layout().shape().clone())
    }

    fn forward_saving(
        &self,
        inputs: [FlexTensor; 2],
        _: [bool; 2],
    ) -> (FlexTensor, [FlexTensor; 2]) {
        let inputs = inputs.map(contiguous);
        (self.forward(inputs.clone()), inputs)
    }

    fn backward(
        &self,
        inputs: [FlexTensor; 2],
        grad: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        self.backward_onto(inputs, grad, wanted, [None, None])
    }

    fn backward_onto(
        &self,
        inputs: [FlexTensor; 2],
        grad: FlexTensor,
        wanted: [bool; 2],
        [known_x, known_weight]: [Option<FlexTensor>; 2],
    ) -> [Option<FlexTensor>; 2] {
        let grad = contiguous(grad);
        let ([x, weight], g) = (inputs.each_ref().map(elements), elements(&grad));
        let (n, eps) = (weight.len(), self.eps as f32);
        let d_x = wanted[0].then(|| {
            let shape = inputs[0].layout().shape();
            pieces::onto(known_x, shape, n, |row, out| {
                let range = row * n..row * n + out.len();
                rms_back_rows(&x[range.clone()], weight, &g[range], eps, out);
            })
        });
        let d_weight = wanted[1].then(|| {
            let sums = pieces::sums(x.len() / n, n, n, |from, to, out| {
                rms_weight_rows(&x[from * n..to * n], &g[from * n..to * n], eps, out);
            });
            filled(sums, inputs[1].layout().shape().clone())
        });
        [d_x, sum::onto(known_weight, d_weight)]
    }
}

/// `[.., n]`, weight `[n]` and bias `[n]`.
#[derive(Debug)]
pub(crate) struct LayerNormKernel {
    /// Added to the variance.
    pub(crate) eps: f64,
}

impl Kernel<3> for LayerNormKernel {
    type Saved = [FlexTensor; 2];

    fn accepts(&self, inputs: &[&FlexTensor; 3]) -> bool {
        widths_agree(inputs)
    }

    fn forward(&self, inputs: [FlexTensor; 3]) -> FlexTensor {
        let inputs = inputs.map(contiguous);
        let [x, weight, bias] = inputs.each_ref().map(elements);
        let n = weight.len();
        let out = pieces::rows(x.len(), n, |row, out| {
            let x = &x[row * n..row * n + out.len()];
            layer_rows(x, weight, bias, self.eps as f32, out);
        });
        filled(out, inputs[0].layout().shape().clone())
    }

    fn forward_saving(
        &self,
        [x, weight, bias]: [FlexTensor; 3],
        _: [bool; 3],
    ) -> (FlexTensor, [FlexTensor; 2]) {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let saved = [x.clone(), weight.clone()];
        (self.forward([x, weight, bias]), saved)
    }

    fn backward(
        &self,
        inputs: [FlexTensor; 2],
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        self.backward_onto(inputs, grad, wanted, [None, None, None])
    }

    fn backward_onto(
        &self,
        inputs: [FlexTensor; 2],
        grad: FlexTensor,
        wanted: [bool; 3],
        [known_x, known_weight, known_bias]: [Option<FlexTensor>; 3],
    ) -> [Option<FlexTensor>; 3] {
        let grad = contiguous(grad);
        let ([x, weight], g) = (inputs.each_ref().map(elements), elements(&grad));
        let (n, eps) = (weight.len(), self.eps as f32);
        let d_x = wanted[0].then(|| {
            let shape = inputs[0].layout().shape();
            pieces::onto(known_x, shape, n, |row, out| {
                let range = row * n..row * n + out.len();
                layer_back_rows(&x[range.clone()], weight, &g[range], eps, out);
            })
        });
        let (mut d_weight, mut d_bias) = (None, None);
        if wanted[1] || wanted[2] {
            let mut sums = pieces::sums(x.len() / n, n, 2 * n, |from, to, out| {
                layer_weight_rows(&x[from * n..to * n], &g[from * n..to * n], eps, out);
            });
            let second = sums.split_off(n);
            let shape = inputs[1].layout().shape();
            d_weight = wanted[1].then(|| filled(sums, shape.clone()));
            d_bias = wanted[2].then(|| filled(second, shape.clone()));
        }
        [
            d_x,
            sum::onto(known_weight, d_weight),
            sum::onto(known_bias, d_bias),
        ]
    }
}
