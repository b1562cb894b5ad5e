//! Rows divided by their norms.

use burn_flex::FlexTensor;

use super::Kernel;
use super::level::vectorised;
use super::math::dot;
use super::pieces;
use super::view::{contiguous, elements, filled, width};

vectorised! {
    fn directions<L>(x: &[f32], n: usize, least: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let scale = inverse_norm(dot::<L>(x, x), least);
            for (out, &x) in out.iter_mut().zip(x) {
                *out = x * scale;
            }
        }
    }

    /// Adds `(g − y Σ y g) / ‖x‖` with the direction `y`.
    fn directions_back<L>(x: &[f32], grad: &[f32], n: usize, least: f32, out: &mut [f32]) {
        let rows = x.chunks_exact(n).zip(grad.chunks_exact(n));
        for ((x, grad), out) in rows.zip(out.chunks_exact_mut(n)) {
            let scale = inverse_norm(dot::<L>(x, x), least);
            let pull = dot::<L>(x, grad) * scale * scale;
            for ((out, &x), &grad) in out.iter_mut().zip(x).zip(grad) {
                *out += scale * (grad - pull * x);
            }
        }
    }
}

/// Zero for what counts as zero.
#[inline(always)]
fn inverse_norm(squared: f32, least: f32) -> f32 {
    if squared < least {
        0.0
    } else {
        1.0 / squared.sqrt()
    }
}

/// `x / ‖x‖` of the rows `[.., n]`; zero, with zero gradient, of one whose squared norm is less
/// than `least`.
#[derive(Debug, Clone)]
pub(crate) struct NormalizeKernel {
    pub(crate) least: f32,
}

impl Kernel<1> for NormalizeKernel {
    /// The input.
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1]) -> FlexTensor {
        let x = contiguous(x);
        let (values, n) = (elements(&x), width(&x));
        let out = pieces::rows(values.len(), n, |row, out| {
            let x = &values[row * n..row * n + out.len()];
            directions(x, n.max(1), self.least, out);
        });
        filled(out, x.layout().shape().clone())
    }

    fn forward_saving(&self, [x]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, FlexTensor) {
        let x = contiguous(x);
        (self.forward([x.clone()]), x)
    }

    fn backward(&self, x: FlexTensor, grad: FlexTensor, w: [bool; 1]) -> [Option<FlexTensor>; 1] {
        self.backward_onto(x, grad, w, [None])
    }

    fn backward_onto(
        &self,
        x: FlexTensor,
        grad: FlexTensor,
        wanted: [bool; 1],
        [known]: [Option<FlexTensor>; 1],
    ) -> [Option<FlexTensor>; 1] {
        let grad = contiguous(grad);
        let (values, g, n) = (elements(&x), elements(&grad), width(&x));
        [wanted[0].then(|| {
            pieces::onto(known, x.layout().shape(), n, |row, out| {
                let range = row * n..row * n + out.len();
                let (x, g) = (&values[range.clone()], &g[range]);
                directions_back(x, g, n.max(1), self.least, out);
            })
        })]
    }
}
