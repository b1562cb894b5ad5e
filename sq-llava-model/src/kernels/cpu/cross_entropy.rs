//! Cross-entropy of rows of logits: no table of probabilities is made on the way forward.

use std::sync::Arc;

use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;

use super::Kernel;
use super::level::vectorised;
use super::math::{LANES, exp, max, total};
use super::pieces;
use super::team::share_chunks;
use super::view::{contiguous, elements, filled, width};

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

    /// `g · softmax` in the logits' place.
    fn scaled_softmax<L>(row: &mut [f32], log_sum: f32, grad: f32) {
        for x in row {
            *x = grad * exp::<L>(*x - log_sum);
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
        let mut sums = vec![0.0; n];
        share_chunks(&mut sums, 1, |row, sum| {
            sum[0] = log_sum_exp(&x[row * width..(row + 1) * width]);
        });
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
        let g = elements(&grad);
        let width = width(&logits);
        [Some(pieces::over(logits, width.max(1), |first, rows| {
            for (index, row) in rows.chunks_exact_mut(width.max(1)).enumerate() {
                let place = first + index;
                scaled_softmax(row, sums[place], g[place]);
                row[self.0[place]] -= g[place];
            }
        }))]
    }
}

/// The same, where logits of other rows `[n, rows]` stand in place of the columns from `start` on,
/// or behind the last.
#[derive(Debug, Clone)]
pub(crate) struct JoinedCrossEntropyKernel {
    pub(crate) ids: Arc<[usize]>,
    /// Not behind the last column.
    pub(crate) start: usize,
}

impl JoinedCrossEntropyKernel {
    /// Columns of the base that count are those before the first and from the second on.
    fn gap(&self, base: usize, new: usize) -> [usize; 2] {
        [self.start.min(base), (self.start + new).min(base)]
    }

    /// Losses and logarithms of the sums.
    fn of(&self, [base, new]: &[FlexTensor; 2]) -> (FlexTensor, Vec<f32>) {
        let [columns, rows] = [width(base), width(new)];
        let [before, behind] = self.gap(columns, rows);
        let (x, y) = (elements(base), elements(new));
        let mut pairs = vec![(0.0, 0.0); self.ids.len()];
        share_chunks(&mut pairs, 1, |row, pair| {
            let id = self.ids[row];
            let (x, y) = (&x[row * columns..][..columns], &y[row * rows..][..rows]);
            let parts = [&x[..before], y, &x[behind..]];
            let parts = parts.map(|part| match part {
                [] => f32::NEG_INFINITY,
                part => log_sum_exp(part),
            });
            let sum = log_sum_exp(&parts);
            let own = id.checked_sub(self.start).and_then(|id| y.get(id));
            pair[0] = (sum - own.unwrap_or_else(|| &x[id]), sum);
        });
        let (losses, sums): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        (filled(losses, Shape::from(vec![self.ids.len()])), sums)
    }
}

impl Kernel<2> for JoinedCrossEntropyKernel {
    type Saved = ([FlexTensor; 2], Arc<[f32]>);

    fn accepts(&self, inputs: &[&FlexTensor; 2]) -> bool {
        let [[n, base], [m, new]] = inputs.map(|logits| logits.layout().shape().dims::<2>());
        let f32s = inputs.iter().all(|logits| logits.dtype() == DType::F32);
        let all = base.max(self.start + new);
        let rows = n == self.ids.len() && m == n && self.ids.iter().all(|&id| id < all);
        f32s && rows && base > 0 && new > 0 && self.start <= base
    }

    fn forward(&self, inputs: [FlexTensor; 2]) -> FlexTensor {
        self.of(&inputs.map(contiguous)).0
    }

    fn forward_saving(&self, inputs: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(contiguous);
        let (losses, sums) = self.of(&inputs);
        (losses, (inputs, sums.into()))
    }

    fn backward(
        &self,
        ([base, new], sums): Self::Saved,
        grad: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let grad = contiguous(grad);
        let g = elements(&grad);
        let [columns, rows] = [width(&base), width(&new)];
        let [before, behind] = self.gap(columns, rows);
        let own = self.start..self.start + rows;
        let d_base = wanted[0].then(|| {
            pieces::over(base, columns, |first, all| {
                for (index, row) in all.chunks_exact_mut(columns).enumerate() {
                    let place = first + index;
                    scaled_softmax(row, sums[place], g[place]);
                    row[before..behind].fill(0.0);
                    let id = self.ids[place];
                    if !own.contains(&id) {
                        row[id] -= g[place];
                    }
                }
            })
        });
        let d_new = wanted[1].then(|| {
            pieces::over(new, rows, |first, all| {
                for (index, row) in all.chunks_exact_mut(rows).enumerate() {
                    let place = first + index;
                    scaled_softmax(row, sums[place], g[place]);
                    if own.contains(&self.ids[place]) {
                        row[self.ids[place] - self.start] -= g[place];
                    }
                }
            })
        });
        [d_base, d_new]
    }
}
