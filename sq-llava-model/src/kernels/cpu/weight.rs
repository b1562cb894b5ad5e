//! A weight `[out, in]` in f32, f16, bf16 or blocks of integers, multiplied without ever being
//! copied or dequantised whole.

use burn::tensor::{DType, bf16, f16};
use burn_flex::FlexTensor;

use super::bf16::{self as brain, Unit};
use super::blocks::{Input, dots};
use super::gemm::{Matrix, Onto, Threads, new_product, product, product_at};
use super::rows::Stored;
use super::team::{share_chunks, share_each};
use super::view::contiguous;
use crate::kernels::blocks::{Blocks, QuantFormat};

/// Rows of the input up to which the weight is read row by row: the product then costs what
/// reading it costs.
pub(super) const FEW: usize = 8;

/// Elements of weight rows that a thread takes at once.
const PIECE: usize = 1 << 15;

/// Elements that are brought to f32 at once for a product with many rows: 2 MB, about what a core's
/// own cache holds.
const PANEL: usize = 1 << 19;

/// The elements of a weight.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    Full(&'a [f32]),
    Half(&'a [f16]),
    Brain(&'a [bf16]),
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
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The tensor if [`Weight`] can read it, else a copy that it can.
pub(super) fn weight_rows(tensor: FlexTensor) -> FlexTensor {
    contiguous(tensor)
}

impl<'a> Weight<'a> {
    /// Reads a tensor `[out, in]` from [`weight_rows`], f32, f16 or bf16.
    pub(super) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [d_out, d_in] = layout.shape().dims::<2>();
        let range = layout.start_offset()..layout.start_offset() + d_out * d_in;
        let elements = match tensor.dtype() {
            DType::F16 => Elements::Half(&tensor.storage::<f16>()[range]),
            DType::BF16 => Elements::Brain(&tensor.storage::<bf16>()[range]),
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

    /// Format of its blocks, if it is in blocks.
    fn format(&self) -> Option<QuantFormat> {
        match self.elements {
            Elements::Blocks(blocks) => Some(blocks.format),
            _ => None,
        }
    }

    /// `x Wᵀ`, and the bias added. `x [rows, in]` → `[rows, out]`
    pub(super) fn forward(&self, rows: usize, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (n, k) = (self.d_out, self.d_in);
        if rows <= FEW {
            let columns = few(&[*self], rows, x).swap_remove(0);
            return turned(columns, rows, n, bias);
        }
        if let (Elements::Brain(all), Some(unit)) = (self.elements, Unit::found()) {
            return brain::forward(unit, [rows, k, n], x, all, bias);
        }
        if k == 0 {
            return turned(vec![0.0; n * rows], rows, n, bias);
        }
        let mut out = Vec::with_capacity(rows * n);
        let start: *mut f32 = out.as_mut_ptr();
        let a = Matrix::rows(x, k);
        self.panels(|first, panel| {
            let width = panel.len() / k;
            let b = Matrix::rows(panel, k).transposed();
            let sizes = [rows, width, k];
            let onto = bias.map_or(Onto::Nothing, |bias| Onto::Row(&bias[first..]));
            // SAFETY: there is room for `rows` rows of `n`, of which these are columns inside.
            unsafe {
                let at = start.add(first);
                product_at(sizes, 1.0, a, b, at, n, onto, Threads::Pool);
            }
        });
        // SAFETY: the panels are all columns, and each was written whole.
        unsafe { out.set_len(rows * n) };
        out
    }

    /// `g W`. `g [rows, out]` → `[rows, in]`
    pub(super) fn backward(&self, rows: usize, grad: &[f32]) -> Vec<f32> {
        let (n, k) = (self.d_out, self.d_in);
        if let (Elements::Brain(all), Some(unit)) = (self.elements, Unit::found()) {
            return brain::backward(unit, [rows, k, n], grad, all);
        }
        let mut out = match n {
            0 => vec![0.0; rows * k],
            _ => Vec::new(),
        };
        self.panels(|first, panel| {
            let sizes = [rows, k, panel.len() / k];
            let a = Matrix::rows(&grad[first..], n);
            let b = Matrix::rows(panel, k);
            match first {
                0 => out = new_product(sizes, 1.0, a, b, Threads::Pool),
                _ => product(sizes, 1.0, a, b, &mut out, k, true, Threads::Pool),
            }
        });
        out
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
            share_chunks(buffer, rows * k, |piece, out| {
                self.read(first + piece * rows, out);
            });
            f(first, buffer);
        }
    }

    /// Rows from `first` on in f32.
    fn read(&self, first: usize, out: &mut [f32]) {
        let start = first * self.d_in;
        match self.elements {
            Elements::Full(all) => out.copy_from_slice(&all[start..start + out.len()]),
            Elements::Half(all) => f16::to_full(&all[start..start + out.len()], out),
            Elements::Brain(all) => bf16::to_full(&all[start..start + out.len()], out),
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
            Elements::Full(all) => f32::products(&all[range], x.values, rows, k, out),
            Elements::Half(all) => f16::products(&all[range], x.values, rows, k, out),
            Elements::Brain(all) => bf16::products(&all[range], x.values, rows, k, out),
            Elements::Blocks(blocks) => dots(blocks, first, &x.rounded, out),
        }
    }
}

/// `[columns, rows]` as `[rows, columns]`, and the bias added.
pub(super) fn turned(columns: Vec<f32>, rows: usize, n: usize, bias: Option<&[f32]>) -> Vec<f32> {
    if rows == 1 && bias.is_none() {
        return columns;
    }
    let mut out = Vec::with_capacity(rows * n);
    for row in 0..rows {
        let values = (0..n).map(|column| columns[column * rows + row]);
        match bias {
            Some(bias) => out.extend(values.zip(bias).map(|(value, bias)| bias + value)),
            None => out.extend(values),
        }
    }
    out
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
    let formats = [QuantFormat::Q8, QuantFormat::Q4].map(|format| {
        let mut found = weights.iter().filter_map(Weight::format);
        found.any(|of| of == format).then_some(format)
    });
    let rounded = match formats {
        [None, None] => Vec::new(),
        _ => x
            .chunks_exact(x.len() / rows)
            .map(|row| Input::new(row, &formats))
            .collect(),
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
    share_each(&mut pieces, |(weight, first, out)| {
        weight.piece(*first, &inputs, out);
    });
    outs
}
