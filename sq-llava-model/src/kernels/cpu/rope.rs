//! Rotary positions, half-split.

use burn_flex::FlexTensor;

use super::Kernel;
use super::level::vectorised;
use super::pieces;
use super::view::{Heads, contiguous, elements, head_rows, token_major};

vectorised! {
    /// Turns the halves of a row's beginning by the angles of one token, and copies the rest;
    /// `sign` −1 turns back.
    pub(super) fn turn<L>(row: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
        let (row, rest) = row.split_at(cos.len());
        let (out, rest_out) = out.split_at_mut(cos.len());
        rest_out.copy_from_slice(rest);
        let half = out.len() / 2;
        let (low, high) = row.split_at(half);
        let (cos, sin) = (&cos[..half], &sin[..half]);
        let (out_low, out_high) = out.split_at_mut(half);
        for i in 0..half {
            let s = sign * sin[i];
            out_low[i] = low[i] * cos[i] - high[i] * s;
            out_high[i] = high[i] * cos[i] + low[i] * s;
        }
    }
}

/// `x [batch, heads, tokens, dim]`, cosines and sines `[batch or 1, 1, tokens, rotated]`, whose two
/// halves are alike. The first `rotated` entries turn.
#[derive(Debug)]
pub(crate) struct Rotate;

impl Rotate {
    fn of(x: FlexTensor, cos: &FlexTensor, sin: &FlexTensor, sign: f32) -> FlexTensor {
        let x = head_rows(x);
        let x = Heads::<f32>::new(&x);
        let (batch, heads, tokens, dim) = (x.batch, x.heads, x.tokens, x.dim);
        let (cos_all, sin_all) = (elements(cos), elements(sin));
        let shared = cos.layout().shape()[0] == 1;
        let rotated = cos.layout().shape()[3];
        let len = batch * tokens * heads * dim;
        let out = pieces::rows(len, heads * dim, |first, out| {
            for (index, out) in out.chunks_exact_mut(heads * dim).enumerate() {
                let (b, token) = ((first + index) / tokens, (first + index) % tokens);
                let at = (if shared { token } else { b * tokens + token }) * rotated;
                let (cos, sin) = (&cos_all[at..at + rotated], &sin_all[at..at + rotated]);
                for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                    turn(x.row(b, head, token), cos, sin, sign, out);
                }
            }
        });
        token_major(out, [batch, heads, tokens, dim])
    }
}

impl Kernel<3> for Rotate {
    type Saved = [FlexTensor; 2];

    fn accepts(&self, inputs: &[&FlexTensor; 3]) -> bool {
        let [batch, _, tokens, dim] = inputs[0].layout().shape().dims::<4>();
        let f32s = inputs.iter().all(|i| i.dtype() == burn::tensor::DType::F32);
        let fits = |angles: &FlexTensor| {
            let [b, one, t, d] = angles.layout().shape().dims::<4>();
            (b == 1 || b == batch) && one == 1 && t == tokens && d <= dim && d % 2 == 0
        };
        let alike = inputs[1].layout().shape() == inputs[2].layout().shape();
        f32s && dim > 0 && fits(inputs[1]) && alike
    }

    fn forward(&self, [x, cos, sin]: [FlexTensor; 3]) -> FlexTensor {
        Self::of(x, &contiguous(cos), &contiguous(sin), 1.0)
    }

    fn forward_saving(
        &self,
        [x, cos, sin]: [FlexTensor; 3],
        _: [bool; 3],
    ) -> (FlexTensor, [FlexTensor; 2]) {
        let (cos, sin) = (contiguous(cos), contiguous(sin));
        (Self::of(x, &cos, &sin, 1.0), [cos, sin])
    }

    /// Cosines and sines are constants.
    fn backward(
        &self,
        [cos, sin]: [FlexTensor; 2],
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let d_x = wanted[0].then(|| Self::of(grad, &cos, &sin, -1.0));
        [d_x, None, None]
    }
}
