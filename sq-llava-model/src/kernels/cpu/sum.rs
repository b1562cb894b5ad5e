//! Sums of tensors of one shape: of a layer's input and what it adds to it, and of gradients that
//! meet. In place where one of them may be written over.

use burn::tensor::DType;
use burn::tensor::ops::FloatTensorOps;
use burn_flex::{Flex, FlexTensor};

use super::Kernel;
use super::level::vectorised;
use super::pieces;
use super::view::{contiguous, elements, filled, is_free, width};

vectorised! {
    fn add<L>(values: &[f32], out: &mut [f32]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out += value;
        }
    }

    /// `out · scale + rows`, row by row.
    fn scale_and_add<L>(rows: &[f32], scale: &[f32], out: &mut [f32]) {
        let n = scale.len();
        for (out, row) in out.chunks_exact_mut(n).zip(rows.chunks_exact(n)) {
            for ((out, &value), &scale) in out.iter_mut().zip(row).zip(scale) {
                *out = L::fma(*out, scale, value);
            }
        }
    }

    /// Adds `rows · scale`.
    fn add_scaled<L>(rows: &[f32], scale: &[f32], out: &mut [f32]) {
        let n = scale.len();
        for (out, row) in out.chunks_exact_mut(n).zip(rows.chunks_exact(n)) {
            for ((out, &value), &scale) in out.iter_mut().zip(row).zip(scale) {
                *out = L::fma(value, scale, *out);
            }
        }
    }

    /// Adds the products of every row.
    fn add_products<L>(a: &[f32], b: &[f32], out: &mut [f32]) {
        let n = out.len();
        for (a, b) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = L::fma(a, b, *out);
            }
        }
    }
}

/// Sum of two tensors of one shape in f32.
fn of(a: FlexTensor, b: FlexTensor) -> FlexTensor {
    let (to, other) = if is_free(&a) { (a, b) } else { (b, a) };
    let other = contiguous(other);
    let values = elements(&other);
    pieces::over(to, 1, |at, out| add(&values[at..at + out.len()], out))
}

/// A gradient added to what is known of it.
pub(super) fn onto(known: Option<FlexTensor>, found: Option<FlexTensor>) -> Option<FlexTensor> {
    match (known, found) {
        (Some(a), Some(b)) if a.dtype() == DType::F32 && b.dtype() == DType::F32 => Some(of(a, b)),
        (Some(a), Some(b)) => Some(Flex::float_add(b, a)),
        (one, other) => one.or(other),
    }
}

fn alike(a: &FlexTensor, b: &FlexTensor) -> bool {
    let f32s = a.dtype() == DType::F32 && b.dtype() == DType::F32;
    f32s && a.layout().shape() == b.layout().shape()
}

/// `a + b`, of one shape.
#[derive(Debug)]
pub(crate) struct Sum;

impl Kernel<2> for Sum {
    type Saved = ();

    fn accepts(&self, [a, b]: &[&FlexTensor; 2]) -> bool {
        alike(a, b)
    }

    fn forward(&self, [a, b]: [FlexTensor; 2]) -> FlexTensor {
        of(a, b)
    }

    fn forward_saving(&self, inputs: [FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, ()) {
        (self.forward(inputs), ())
    }

    fn backward(&self, (): (), grad: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        wanted.map(|wanted| wanted.then(|| grad.clone()))
    }
}

/// `a + b · scale`, `a` and `b` `[.., n]`, scale `[n]`.
#[derive(Debug)]
pub(crate) struct ScaledSum;

impl Kernel<3> for ScaledSum {
    /// `b` where the scale's gradient is wanted, and the scale.
    type Saved = (Option<FlexTensor>, FlexTensor);

    fn accepts(&self, [a, b, scale]: &[&FlexTensor; 3]) -> bool {
        let n = width(a);
        let fits = scale.dtype() == DType::F32 && scale.layout().num_elements() == n;
        alike(a, b) && n > 0 && fits
    }

    fn forward(&self, [a, b, scale]: [FlexTensor; 3]) -> FlexTensor {
        let (a, scale) = (contiguous(a), contiguous(scale));
        let (values, scale) = (elements(&a), elements(&scale));
        let n = scale.len();
        pieces::over(b, n, |row, out| {
            scale_and_add(&values[row * n..row * n + out.len()], scale, out);
        })
    }

    fn forward_saving(
        &self,
        [a, b, scale]: [FlexTensor; 3],
        wanted: [bool; 3],
    ) -> (FlexTensor, Self::Saved) {
        let scale = contiguous(scale);
        let saved = (wanted[2].then(|| contiguous(b.clone())), scale.clone());
        (self.forward([a, b, scale]), saved)
    }

    fn backward(
        &self,
        (b, scale): Self::Saved,
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let grad = contiguous(grad);
        let (g, factors) = (elements(&grad), elements(&scale));
        let n = factors.len();
        let d_b = wanted[1].then(|| {
            let out = pieces::rows(g.len(), n, |row, out| {
                add_scaled(&g[row * n..row * n + out.len()], factors, out);
            });
            filled(out, grad.layout().shape().clone())
        });
        let d_scale = b.map(|b| {
            let b = elements(&b);
            let sums = pieces::sums(g.len() / n, n, n, |from, to, out| {
                add_products(&g[from * n..to * n], &b[from * n..to * n], out);
            });
            filled(sums, scale.layout().shape().clone())
        });
        [wanted[0].then(|| grad.clone()), d_b, d_scale]
    }
}
