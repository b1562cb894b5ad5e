//! Cross-entropy of rows of logits: no table of probabilities is made on the way forward.

use std::sync::Arc;

use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::Kernel;
use super::level::vectorised;
use super::math::{LANES, exp, max, total};
use super::pieces;
use super::view::{contiguous, elements, filled};

vectorised! {
    /// `log Σ eˣ`.
    fn log_sum_exp<L>(row: &[f32]) -> f32 {
        let largest = max(row);
        let mut lanes = [0.0f32; LANES];
        let (blocks, rest) = row.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] += exp::<L>(block[lane] - largest);
            }
        }
        for (lane, &value) in rest.iter().enumerate() {
            lanes[lane] += exp::<L>(value - largest);
        }
        largest + total(lanes).ln()
    }

    /// `g · softmax`.
    fn scaled_softmax<L>(row: &[f32], log_sum: f32, grad: f32, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(row) {
            *out = grad * exp::<L>(x - log_sum);
        }
    }
}

/// `log Σ_j e^{x_j} − x_id` for each row of logits `[n, vocabulary]` and its id → `[n]`.
#[derive(Debug, Clone)]
pub(crate) struct CrossEntropyKernel(pub(crate) Arc<[usize]>);

impl CrossEntropyKernel {
    /// Losses and logarithms of the sums.
    fn of(&self, logits: &FlexTensor) -> (FlexTensor, Vec<f32>) {
        let x = elements(logits);
        let n = self.0.len();
        let width = x.len() / n.max(1);
        let sums: Vec<f32> = (0..n)
            .into_par_iter()
            .map(|row| log_sum_exp(&x[row * width..(row + 1) * width]))
            .collect();
        let losses = sums.iter().zip(self.0.iter()).enumerate();
        let losses = losses.map(|(row, (sum, &id))| sum - x[row * width + id]);
        (filled(losses.collect(), Shape::from(vec![n])), sums)
    }
}

impl Kernel<1> for CrossEntropyKernel {
    type Saved = (FlexTensor, Arc<[f32]>);

    fn accepts(&self, [logits]: &[&FlexTensor; 1]) -> bool {
        let [n, width] = logits.layout().shape().dims::<2>();
        logits.dtype() == DType::F32 && n == self.0.len() && self.0.iter().all(|&id| id < width)
    }

    fn forward(&self, [logits]: [FlexTensor; 1]) -> FlexTensor {
        self.of(&contiguous(logits)).0
    }

    fn forward_saving(&self, [logits]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Self::Saved) {
        let logits = contiguous(logits);
        let (losses, sums) = self.of(&logits);
        (losses, (logits, sums.into()))
    }

    fn backward(
        &self,
        (logits, sums): Self::Saved,
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let grad = contiguous(grad);
        let (x, g) = (elements(&logits), elements(&grad));
        let width = x.len() / sums.len().max(1);
        let out = pieces::rows(x.len(), width.max(1), |first, out| {
            for (index, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
                let row = first + index;
                scaled_softmax(&x[row * width..][..width], sums[row], g[row], out);
                out[self.0[row]] -= g[row];
            }
        });
        [Some(filled(out, logits.layout().shape().clone()))]
    }
}
