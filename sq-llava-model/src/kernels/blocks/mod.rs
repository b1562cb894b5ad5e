//! Quantised weights: int8 and int4 in blocks of 32 along a row, kept so in memory and in files.
//!
//! | format | bits a weight | value of element *i* | of GGUF |
//! |---|---|---|---|
//! | `q8` | 8.5 | d·q, q from −127 to 127 | Q8_0 |
//! | `q4` | 5 | d·q + m, q from 0 to 15 | Q4_1 |
//!
//! d and m are f16, one (or two) for each block. On the CPU the products run on the blocks
//! themselves; weights are frozen, so the backward pass gives the input's gradient alone.

mod encode;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Bytes, DType, Element, Int, Tensor, TensorData, backend::Backend};
use half::f16;
use rayon::prelude::*;

use crate::error::ModelError;
use crate::kernels::finite::all_finite;

/// Elements of a block.
pub const BLOCK: usize = 32;

/// Scales that vector code may read past the last row's.
const SPARE: usize = 16;

/// Format of a matrix's blocks.
///
/// **Batches.** On the CPU a product with up to 8 rows of input rounds each row to 16 bits by
/// itself: its result is bit for bit the same whatever rows stand beside it. With more rows (a
/// prompt, more than 8 answers at once) the weight is dequantised and the input is not rounded. The
/// two differ by at most 2⁻¹⁶ of the largest value of each block of 32 inputs times the weights of
/// the block, and rounding in f32. So a batch of more than 8 answers gives each answer as it would
/// be alone only but for this rounding: where two tokens are almost equally likely, the other one
/// may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuantFormat {
    /// int8 with a scale.
    Q8,
    /// int4 with a scale and a minimum.
    Q4,
}

impl QuantFormat {
    /// `q8` or `q4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// Bytes of a block's numbers, without its scale.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Self::Q8 => BLOCK,
            Self::Q4 => BLOCK / 2,
        }
    }
}

/// A matrix `[rows, columns]` in blocks; clones share it.
#[derive(Clone)]
pub struct BlockMatrix {
    inner: Arc<Blocks>,
}

/// The arrays of a [`BlockMatrix`]. A last block that the columns do not fill is padded.
pub(crate) struct Blocks {
    pub format: QuantFormat,
    pub rows: usize,
    pub columns: usize,
    /// Numbers, row by row. In `q4` byte *j* of a block holds element *j* in its low and
    /// *j* + 16 in its high half.
    pub quants: Bytes,
    /// One in f16 for each block, and [`SPARE`] more.
    scales: Bytes,
    /// Minima, stored as the scales are; empty in `q8`.
    mins: Bytes,
}

impl Blocks {
    /// Blocks of a row.
    pub fn row_blocks(&self) -> usize {
        self.columns.div_ceil(BLOCK)
    }

    /// Numbers of some rows.
    pub fn quants_of(&self, rows: Range<usize>) -> &[u8] {
        let width = self.row_blocks() * self.format.block_bytes();
        &self.quants[rows.start * width..rows.end * width]
    }

    /// Scales from those of a row on.
    pub fn scales_from(&self, row: usize) -> &[f16] {
        &self.scales()[row * self.row_blocks()..]
    }

    /// Minima from those of a row on; empty in `q8`.
    pub fn mins_from(&self, row: usize) -> &[f16] {
        match self.format {
            QuantFormat::Q8 => &[],
            QuantFormat::Q4 => &self.mins()[row * self.row_blocks()..],
        }
    }

    fn scales(&self) -> &[f16] {
        bytemuck::cast_slice(&self.scales)
    }

    fn mins(&self) -> &[f16] {
        bytemuck::cast_slice(&self.mins)
    }

    /// Values of a row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let (quants, scales) = (self.quants_of(row..row + 1), self.scales_from(row));
        match self.format {
            QuantFormat::Q8 => encode::read_q8(quants, scales, out),
            QuantFormat::Q4 => encode::read_q4(quants, scales, self.mins_from(row), out),
        }
    }
}

impl fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, columns) = (self.rows(), self.columns());
        write!(
            f,
            "BlockMatrix({}, [{rows}, {columns}])",
            self.format().name()
        )
    }
}

impl BlockMatrix {
    /// Quantises the matrix `name` as the `gguf` package and llama.cpp do; `read` writes the values
    /// of a row. Rows are shared among the cores.
    ///
    /// # Errors
    /// If a value is NaN or infinite, or so large that f16 has no scale for it; the blocks would
    /// hide that.
    pub fn quantize(
        name: &str,
        format: QuantFormat,
        shape: [usize; 2],
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, ModelError> {
        let [rows, columns] = shape;
        let blocks = columns.div_ceil(BLOCK);
        let width = blocks * format.block_bytes();
        let mut quants = vec![0u8; rows * width];
        let mut scales = vec![f16::ZERO; rows * blocks];
        let mut mins = match format {
            QuantFormat::Q8 => Vec::new(),
            QuantFormat::Q4 => vec![f16::ZERO; rows * blocks],
        };
        if quants.is_empty() {
            return Ok(Self::from_parts(format, shape, quants, scales, mins));
        }
        let finite = AtomicBool::new(true);
        // NaN leaves no trace in a block; what f16 cannot hold shows in the scales.
        let check = |values: &[f32], scales: &[f16], mins: &[f16]| {
            let mut halves = scales.iter().chain(mins);
            if !(all_finite(values) && halves.all(|half| half.is_finite())) {
                finite.store(false, Ordering::Relaxed);
            }
        };
        let row = || vec![0.0f32; columns];
        let parts = quants
            .par_chunks_mut(width)
            .zip(scales.par_chunks_mut(blocks));
        match format {
            QuantFormat::Q8 => {
                parts
                    .enumerate()
                    .for_each_init(row, |values, (index, (quants, scales))| {
                        read(index, values);
                        encode::write_q8(values, quants, scales);
                        check(values, scales, &[]);
                    })
            }
            QuantFormat::Q4 => parts
                .zip(mins.par_chunks_mut(blocks))
                .enumerate()
                .for_each_init(row, |values, (index, ((quants, scales), mins))| {
                    read(index, values);
                    encode::write_q4(values, quants, scales, mins);
                    check(values, scales, mins);
                }),
        }
        match finite.into_inner() {
            true => Ok(Self::from_parts(format, shape, quants, scales, mins)),
            false => Err(not_finite(name)),
        }
    }

    /// A matrix of its arrays, whose lengths the caller has checked.
    pub(crate) fn from_parts(
        format: QuantFormat,
        [rows, columns]: [usize; 2],
        quants: Vec<u8>,
        mut scales: Vec<f16>,
        mut mins: Vec<f16>,
    ) -> Self {
        let blocks = rows * columns.div_ceil(BLOCK);
        debug_assert_eq!(scales.len(), blocks);
        debug_assert_eq!(quants.len(), blocks * format.block_bytes());
        scales.resize(blocks + SPARE, f16::ZERO);
        if format == QuantFormat::Q4 {
            mins.resize(blocks + SPARE, f16::ZERO);
        }
        let inner = Arc::new(Blocks {
            format,
            rows,
            columns,
            quants: kept(quants),
            scales: kept(scales),
            mins: kept(mins),
        });
        Self { inner }
    }

    pub(crate) fn blocks(&self) -> &Blocks {
        &self.inner
    }

    /// The arrays without spare elements: numbers, scales, minima.
    pub(crate) fn parts(&self) -> (&[u8], &[f16], &[f16]) {
        let blocks = self.rows() * self.inner.row_blocks();
        let mins = self.inner.mins();
        (
            &self.inner.quants,
            &self.inner.scales()[..blocks],
            &mins[..blocks.min(mins.len())],
        )
    }

    /// Format of the blocks.
    pub fn format(&self) -> QuantFormat {
        self.inner.format
    }

    /// Output width of a linear.
    pub fn rows(&self) -> usize {
        self.inner.rows
    }

    /// Input width of a linear.
    pub fn columns(&self) -> usize {
        self.inner.columns
    }

    /// Bytes of the matrix in memory and in files.
    pub fn bytes(&self) -> usize {
        let (quants, scales, mins) = self.parts();
        quants.len() + 2 * (scales.len() + mins.len())
    }

    /// Writes the values of some rows, one after the other.
    pub(crate) fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_mut(self.columns().max(1))) {
            self.inner.read_row(row, out);
        }
    }

    /// The whole matrix in f32. `[rows, columns]`
    pub fn dequantize(&self) -> TensorData {
        let mut values = vec![0.0; self.rows() * self.columns()];
        self.read_rows(0..self.rows(), &mut values);
        TensorData::new(values, [self.rows(), self.columns()])
    }

    /// The matrix `name` with rows from `start` on replaced, and added where it ends before.
    ///
    /// # Errors
    /// As [`Self::quantize`].
    pub(crate) fn with_rows(
        &self,
        name: &str,
        start: usize,
        new: &[f32],
    ) -> Result<Self, ModelError> {
        let width = self.columns();
        let count = new.len() / width.max(1);
        let rows = self.rows().max(start + count);
        Self::quantize(name, self.format(), [rows, width], |row, out| {
            match row.checked_sub(start).filter(|&i| i < count) {
                Some(i) => out.copy_from_slice(&new[i * width..(i + 1) * width]),
                None if row < self.rows() => self.inner.read_row(row, out),
                None => out.fill(0.0),
            }
        })
    }

    /// `x Wᵀ` in the input's dtype, computed in f32. `[n, columns]` → `[n, rows]`
    pub fn product<B: Backend>(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = input.dtype();
        let input = input.cast(DType::F32);
        #[cfg(feature = "cpu")]
        let input = {
            use crate::kernels::cpu;
            let kernel = cpu::LinearKernel {
                blocks: Some(self.clone()),
                ..cpu::LinearKernel::plain()
            };
            match cpu::run::<B, _, 1>(kernel, [cpu::float(input)]) {
                Ok(output) => return cpu::tensor::<B, 2>(output).cast(dtype),
                Err([input]) => cpu::tensor::<B, 2>(input),
            }
        };
        // Other backends, which hold blocks of this kind on their way to files alone.
        let weight = Tensor::<B, 2>::from_data(self.dequantize(), (&input.device(), DType::F32));
        input.matmul(weight.transpose()).cast(dtype)
    }

    /// Rows by index, f32. `[n]` → `[n, columns]`
    pub fn select<B: Backend>(&self, indices: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let device = indices.device();
        let indices = indices.into_data();
        let width = self.columns();
        let mut out = Vec::new();
        for index in indices.iter::<i64>() {
            out.resize(out.len() + width, 0.0);
            let at = out.len() - width;
            // Ids were checked against the vocabulary; a dense table fails on others too.
            self.inner.read_row(index as usize, &mut out[at..]);
        }
        let data = TensorData::new(out, [indices.num_elements(), width]);
        Tensor::from_data(data, (&device, DType::F32))
    }
}

/// The error of a matrix that cannot be quantised.
pub(crate) fn not_finite(name: &str) -> ModelError {
    ModelError::Argument(format!(
        "the weight \"{name}\" cannot be quantised: it holds NaN, infinity or numbers beyond f16's; its file is damaged, or was trained to that"
    ))
}

/// The elements where the CPU reads them fastest.
fn kept<T: Element>(elements: Vec<T>) -> Bytes {
    let bytes = Bytes::from_elems(elements);
    #[cfg(feature = "cpu")]
    let bytes = crate::kernels::cpu::place(bytes);
    bytes
}

/// Whether a backend computes on the blocks themselves: flex, and autodiff on flex.
pub fn is_native<B: Backend>() -> bool {
    #[cfg(feature = "cpu")]
    {
        use burn::tensor::ops::FloatTensor;
        use std::any::TypeId;
        type Flex = burn_flex::Flex;
        let found = TypeId::of::<FloatTensor<B>>();
        found == TypeId::of::<FloatTensor<Flex>>()
            || found == TypeId::of::<FloatTensor<burn::backend::Autodiff<Flex>>>()
    }
    #[cfg(not(feature = "cpu"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_17_what_is_not_finite_is_not_quantised() {
        let (rows, columns) = (3, 70);
        let quantize = |format, values: &[f32]| {
            BlockMatrix::quantize("some.weight", format, [rows, columns], |row, out| {
                out.copy_from_slice(&values[row * columns..(row + 1) * columns]);
            })
        };
        let finite: Vec<f32> = (0..rows * columns).map(|i| i as f32 - 99.0).collect();
        for format in [QuantFormat::Q8, QuantFormat::Q4] {
            assert!(quantize(format, &finite).is_ok());
            // The last one is finite itself, but no scale in f16 holds it.
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
                for place in [0, 31, 32, 69, 70, rows * columns - 1] {
                    let mut values = finite.clone();
                    values[place] = bad;
                    let error = quantize(format, &values).unwrap_err().to_string();
                    assert!(
                        error.contains("\"some.weight\""),
                        "{bad} at {place}: {error}"
                    );
                }
            }
        }
    }
}
