//! A weight `[out, in]` in f32, in f16 or in blocks of integers, multiplied without ever being copied
//! or dequantised whole.

use burn::tensor::{DType, f16};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::blocks::{Input, dots};
use super::gemm::{Matrix, Threads, product};
use super::level::{Level, vectorised};
use super::math::{LANES, dot, total};
use super::view::contiguous;
use crate::kernels::blocks::Blocks;

/// Rows of the input up to which the weight is read row by row: the product then costs what
/// reading it costs.
pub(super) const FEW: usize = 8;

/// Elements of weight rows that a thread takes at once.
const PIECE: usize = 1 << 15;

/// Elements that are brought to f32 at once for a product with many rows: 8 MB, a share of the last
/// cache.
const PANEL: usize = 1 << 21;

/// The elements of a weight.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    Full(&'a [f32]),
    Half(&'a [f16]),
    Blocks(&'a Blocks),
}

/// A weight that is read.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    elements: Elements<'a>,
    pub(super) d_out: usize,
    pub(super) d_in: usize,
}

/// Whether [`Weight`] reads tensors of this dtype.
pub(super) fn readable(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16)
}

/// The tensor if [`Weight`] can read it, else a copy that it can.
pub(super) fn weight_rows(tensor: FlexTensor) -> FlexTensor {
    contiguous(tensor)
}

impl<'a> Weight<'a> {
    /// Reads a tensor `[out, in]` from [`weight_rows`], f32 or f16.
    pub(super) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [d_out, d_in] = layout.shape().dims::<2>();
        let range = layout.start_offset()..layout.start_offset() + d_out * d_in;
        let elements = match tensor.dtype() {
            DType::F16 => Elements::Half(&tensor.storage::<f16>()[range]),
            _ => Elements::Full(&tensor.storage::<f32>()[range]),
        };
        Self {
            elements,
            d_out,
            d_in,
        }
    }

    /// Reads a matrix in blocks.
    pub(super) fn in_blocks(blocks: &'a Blocks) -> Self {
        Self {
            elements: Elements::Blocks(blocks),
            d_out: blocks.rows,
            d_in: blocks.columns,
        }
    }

    /// `out (+)= x Wᵀ`. `x [rows, in]`, `out [rows, out]`
    pub(super) fn forward(&self, rows: usize, x: &[f32], out: &mut [f32], add: bool) {
        let (n, k) = (self.d_out, self.d_in);
        if rows <= FEW {
            for columns in few(&[*self], rows, x) {
                for (column, values) in columns.chunks_exact(rows.max(1)).enumerate() {
                    for (row, &value) in values.iter().enumerate() {
                        let slot = &mut out[row * n + column];
                        *slot = if add { *slot + value } else { value };
                    }
                }
            }
            return;
        }
        let a = Matrix::rows(x, k);
        self.panels(|first, panel| {
            let width = panel.len() / k;
            let b = Matrix::rows(panel, k).transposed();
            let out = &mut out[first..];
            product([rows, width, k], 1.0, a, b, out, n, add, Threads::Pool);
        });
    }

    /// `out = g W`. `g [rows, out]`, `out [rows, in]`
    pub(super) fn backward(&self, rows: usize, grad: &[f32], out: &mut [f32]) {
        let (n, k) = (self.d_out, self.d_in);
        self.panels(|first, panel| {
            let depth = panel.len() / k;
            let a = Matrix::rows(&grad[first..], n);
            let b = Matrix::rows(panel, k);
            product(
                [rows, k, depth],
                1.0,
                a,
                b,
                out,
                k,
                first > 0,
                Threads::Pool,
            );
        });
    }

    /// Calls `f(first row, rows in f32)` for all rows; f32 weights are one panel.
    fn panels(&self, mut f: impl FnMut(usize, &[f32])) {
        if let Elements::Full(all) = self.elements {
            return f(0, all);
        }
        let k = self.d_in.max(1);
        let step = (PANEL / k).clamp(1, self.d_out.max(1));
        let mut buffer = vec![0.0f32; step * k];
        for first in (0..self.d_out).step_by(step) {
            let buffer = &mut buffer[..step.min(self.d_out - first) * k];
            let rows = (PIECE / k).max(1);
            buffer
                .par_chunks_mut(rows * k)
                .enumerate()
                .for_each(|(piece, out)| self.read(first + piece * rows, out));
            f(first, buffer);
        }
    }

    /// Rows from `first` on in f32.
    fn read(&self, first: usize, out: &mut [f32]) {
        let start = first * self.d_in;
        match self.elements {
            Elements::Full(all) => out.copy_from_slice(&all[start..start + out.len()]),
            Elements::Half(all) => widen(&all[start..start + out.len()], out),
            Elements::Blocks(blocks) => {
                for (i, out) in out.chunks_mut(self.d_in).enumerate() {
                    blocks.read_row(first + i, out);
                }
            }
        }
    }

    /// Rows `first..first + count` times the inputs: `out [count, rows]`.
    fn piece(&self, first: usize, x: &Inputs<'_>, out: &mut [f32]) {
        let (k, rows) = (self.d_in, x.rows);
        let range = first * k..(first + out.len() / rows) * k;
        match self.elements {
            Elements::Full(all) => full_rows(&all[range], x.values, rows, k, out),
            Elements::Half(all) => half_rows(&all[range], x.values, rows, k, out),
            Elements::Blocks(blocks) => dots(blocks, first, &x.rounded, out),
        }
    }
}

/// A few rows of input.
struct Inputs<'a> {
    rows: usize,
    /// `[rows, in]`.
    values: &'a [f32],
    /// The rows as integers, where a weight in blocks asks for them.
    rounded: Vec<Input>,
}

/// `W xᵀ` of several weights with the same few inputs `[rows, in]`, all weights read at once by
/// the pool: `[out, rows]` for each.
pub(super) fn few(weights: &[Weight<'_>], rows: usize, x: &[f32]) -> Vec<Vec<f32>> {
    let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; w.d_out * rows]).collect();
    if x.is_empty() {
        return outs;
    }
    let in_blocks = |weight: &Weight<'_>| matches!(weight.elements, Elements::Blocks(_));
    let rounded = match weights.iter().any(in_blocks) {
        true => x.chunks_exact(x.len() / rows).map(Input::new).collect(),
        false => Vec::new(),
    };
    let inputs = Inputs {
        rows,
        values: x,
        rounded,
    };
    let mut pieces = Vec::new();
    for (weight, out) in weights.iter().zip(&mut outs) {
        let step = (PIECE / weight.d_in.max(1)).max(1);
        for (index, out) in out.chunks_mut(step * rows).enumerate() {
            pieces.push((weight, index * step, out));
        }
    }
    match &mut pieces[..] {
        [(weight, first, out)] => weight.piece(*first, &inputs, out),
        pieces => pieces
            .par_iter_mut()
            .for_each(|(weight, first, out)| weight.piece(*first, &inputs, out)),
    }
    outs
}

vectorised! {
    /// f16 to f32.
    fn widen<L>(from: &[f16], to: &mut [f32]) {
        let (from, from_rest) = from.as_chunks::<LANES>();
        let (to, to_rest) = to.as_chunks_mut::<LANES>();
        for (from, to) in from.iter().zip(to) {
            *to = L::widen(from);
        }
        for (from, to) in from_rest.iter().zip(to_rest) {
            *to = from.to_f32();
        }
    }

    /// Products of weight rows `[count, k]` with inputs `[rows, k]`: `out [count, rows]`.
    fn full_rows<L>(weight: &[f32], x: &[f32], rows: usize, k: usize, out: &mut [f32]) {
        for (weight, out) in weight.chunks_exact(k).zip(out.chunks_exact_mut(rows)) {
            for (x, out) in x.chunks_exact(k).zip(out) {
                *out = dot::<L>(weight, x);
            }
        }
    }

    /// As `full_rows` with weights in f16.
    fn half_rows<L>(weight: &[f16], x: &[f32], rows: usize, k: usize, out: &mut [f32]) {
        if rows == 1 {
            for (weight, out) in weight.chunks_exact(k).zip(out) {
                *out = half_dot::<L>(weight, x);
            }
            return;
        }
        let mut wide = vec![0.0; k];
        for (weight, out) in weight.chunks_exact(k).zip(out.chunks_exact_mut(rows)) {
            widen(weight, &mut wide);
            for (x, out) in x.chunks_exact(k).zip(out) {
                *out = dot::<L>(&wide, x);
            }
        }
    }
}

/// As [`dot`], in the same order, with `a` in f16.
#[inline(always)]
fn half_dot<L: Level>(a: &[f16], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        let a = L::widen(a);
        for lane in 0..LANES {
            lanes[lane] = L::fma(a[lane], b[lane], lanes[lane]);
        }
    }
    for (lane, (a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] = L::fma(a.to_f32(), b, lanes[lane]);
    }
    total(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_number_becomes_the_same_in_full() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut wide = vec![0.0; all.len()];
        widen(&all, &mut wide);
        for (half, &wide) in all.iter().zip(&wide) {
            let same = half.to_f32().to_bits() == wide.to_bits();
            assert!(
                same || half.is_nan() && wide.is_nan(),
                "{half} became {wide}"
            );
        }
        let (blocks, _) = all.as_chunks::<LANES>();
        for block in blocks {
            let portable = crate::kernels::cpu::level::Baseline::widen(block);
            for (half, wide) in block.iter().zip(portable) {
                let same = half.to_f32().to_bits() == wide.to_bits();
                assert!(
                    same || half.is_nan() && wide.is_nan(),
                    "{half} became {wide}"
                );
            }
        }
    }
}
