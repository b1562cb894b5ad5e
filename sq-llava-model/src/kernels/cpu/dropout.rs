//! An adapter's input with some of its elements dropped. The mask is made where it is used, both
//! ways, and never in memory.

use burn_flex::FlexTensor;

use super::Kernel;
use super::level::vectorised;
use super::pieces;
use super::view::{contiguous, elements};
use crate::kernels::dropout::Mask;

vectorised! {
    /// Adds `rows · mask`; `keys` are the rows'.
    fn add_kept<L>(mask: &Mask, keys: &[u32], rows: &[f32], out: &mut [f32]) {
        let n = mask.columns.len();
        let rows = keys.iter().zip(rows.chunks_exact(n));
        for ((&key, row), out) in rows.zip(out.chunks_exact_mut(n)) {
            for ((out, &value), &column) in out.iter_mut().zip(row).zip(&mask.columns) {
                *out = L::fma(value, mask.factor(key, column), *out);
            }
        }
    }
}

/// `x · mask`, `x [rows, columns]`.
#[derive(Debug)]
pub(crate) struct Dropout(pub(crate) Mask);

impl Dropout {
    /// `x · mask` added to what is known.
    fn onto(&self, known: Option<FlexTensor>, x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let (values, n) = (elements(&x), self.0.columns.len());
        pieces::onto(known, x.layout().shape(), n, |row, out| {
            let keys = &self.0.rows[row..];
            add_kept(&self.0, keys, &values[row * n..row * n + out.len()], out);
        })
    }
}

impl Kernel<1> for Dropout {
    type Saved = ();

    fn accepts(&self, [x]: &[&FlexTensor; 1]) -> bool {
        let [rows, columns] = x.layout().shape().dims::<2>();
        let fits = rows == self.0.rows.len() && columns == self.0.columns.len();
        x.dtype() == burn::tensor::DType::F32 && fits && columns > 0
    }

    fn forward(&self, [x]: [FlexTensor; 1]) -> FlexTensor {
        self.onto(None, x)
    }

    fn forward_saving(&self, inputs: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, ()) {
        (self.forward(inputs), ())
    }

    fn backward(&self, (): (), grad: FlexTensor, wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [wanted[0].then(|| self.onto(None, grad))]
    }

    fn backward_onto(
        &self,
        (): (),
        grad: FlexTensor,
        wanted: [bool; 1],
        [known]: [Option<FlexTensor>; 1],
    ) -> [Option<FlexTensor>; 1] {
        [wanted[0].then(|| self.onto(known, grad))]
    }
}
