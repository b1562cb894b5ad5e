//! Softmax over the last dimension, by all threads.

use burn_flex::FlexTensor;

use super::Kernel;
use super::level::vectorised;
use super::math::{dot, exp_in_place, max};
use super::pieces;
use super::view::{contiguous, elements, filled, width};

/// Weights below this are zero. Beside a sum of 1 they do not count, but what is made of them may
/// be smaller than f32's smallest normal number, and such numbers cost Intel's processors a
/// hundred times the product (Emerald Rapids: 0.8 and 1.3 GFLOP/s instead of 130 to 150).
pub(super) const TINY: f32 = 1e-20;

/// Softmax of each row, the last dimension.
#[derive(Debug, Clone)]
pub(crate) struct SoftmaxKernel;

vectorised! {
    fn weights<L>(scores: &[f32], out: &mut [f32]) {
        out.copy_from_slice(scores);
        let sum = exp_in_place::<L>(out, max(scores));
        let factor = 1.0 / sum;
        for value in out {
            let weight = *value * factor;
            *value = if weight < TINY { 0.0 } else { weight };
        }
    }

    /// `p (g − Σ p g)`.
    fn back<L>(weights: &[f32], grads: &[f32], out: &mut [f32]) {
        let mean = dot::<L>(weights, grads);
        for ((out, &weight), &grad) in out.iter_mut().zip(weights).zip(grads) {
            *out = weight * (grad - mean);
        }
    }
}

impl Kernel<1> for SoftmaxKernel {
    /// The result.
    type Saved = FlexTensor;

    fn forward(&self, [scores]: [FlexTensor; 1]) -> FlexTensor {
        let scores = contiguous(scores);
        let (x, n) = (elements(&scores), width(&scores));
        let out = pieces::rows(x.len(), n, |first, out| {
            let rows = x[first * n..].chunks_exact(n.max(1));
            for (row, out) in rows.zip(out.chunks_exact_mut(n.max(1))) {
                weights(row, out);
            }
        });
        filled(out, scores.layout().shape().clone())
    }

    fn forward_saving(&self, inputs: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, FlexTensor) {
        let output = self.forward(inputs);
        (output.clone(), output)
    }

    fn backward(
        &self,
        output: FlexTensor,
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let grad = contiguous(grad);
        let (p, g, n) = (elements(&output), elements(&grad), width(&output));
        let found = pieces::rows(p.len(), n, |first, out| {
            let rows = p[first * n..].chunks_exact(n.max(1));
            let rows = rows.zip(g[first * n..].chunks_exact(n.max(1)));
            for ((p, g), out) in rows.zip(out.chunks_exact_mut(n.max(1))) {
                back(p, g, out);
            }
        });
        [Some(filled(found, output.layout().shape().clone()))]
    }
}
