//! Quantised weights: int8 and int4 in blocks of 32 along a row, kept so in memory and in files.
//!
//! | format | bits a weight | value of element *i* | of GGUF |
//! |---|---|---|---|
//! | `q8` | 8.5 | d·q, q from −127 to 127 | Q8_0 |
//! | `q4` | 5 | d·q + m, q from 0 to 15 | Q4_1 |
//!
//! d and m are f16, one (or two) for each block. On the CPU the products run on the blocks
//! themselves; weights are frozen, so the backward pass gives the input's gradient alone. Other
//! backends hold the linears as Burn's quantised tensors, see [`OnDevice`].

mod device;
mod encode;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Bytes, DType, Element, Int, Tensor, TensorData, backend::Backend};
use half::f16;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::linear::Linear;
use crate::llama::Llama;
use crate::sq_llava::for_each_llm_linear;

pub use device::{OnDevice, check};

/// Elements of a block.
pub const BLOCK: usize = 32;

/// Scales that vector code may read past the last row's.
const SPARE: usize = 16;

/// Format of a matrix's blocks.
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

/// What becomes of the language model's matrices at load or export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// All in 8 bits.
    Q8,
    /// Linears in 4 bits; embedding and head, which suffer most, in 8.
    Q4,
    /// What a GGUF file holds in blocks stays in blocks: 4-bit types in 4 bits, larger ones in 8.
    Stored,
}

impl FromStr for Quantize {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        match name {
            "q8" => Ok(Self::Q8),
            "q4" => Ok(Self::Q4),
            "stored" => Ok(Self::Stored),
            other => Err(ModelError::Argument(format!(
                "unknown quantisation \"{other}\"; known are q8, q4 and stored"
            ))),
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
    /// Likewise; empty in `q8`.
    mins: Bytes,
}

impl Blocks {
    /// Blocks of a row.
    pub fn row_blocks(&self) -> usize {
        self.columns.div_ceil(BLOCK)
    }

    /// Numbers of a row.
    pub fn row_quants(&self, row: usize) -> &[u8] {
        let width = self.row_blocks() * self.format.block_bytes();
        &self.quants[row * width..(row + 1) * width]
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
        let (quants, scales) = (self.row_quants(row), self.scales_from(row));
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
    /// Quantises a matrix as the `gguf` package and llama.cpp do; `read` writes the values of a
    /// row. Rows are shared among the cores.
    pub fn quantize(
        format: QuantFormat,
        [rows, columns]: [usize; 2],
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let blocks = columns.div_ceil(BLOCK);
        let width = blocks * format.block_bytes();
        let mut quants = vec![0u8; rows * width];
        let mut scales = vec![f16::ZERO; rows * blocks];
        let mut mins = match format {
            QuantFormat::Q8 => Vec::new(),
            QuantFormat::Q4 => vec![f16::ZERO; rows * blocks],
        };
        if quants.is_empty() {
            return Self::from_parts(format, [rows, columns], quants, scales, mins);
        }
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let part = rows.div_ceil(threads);
        std::thread::scope(|scope| {
            let mut min_parts = mins.chunks_mut(part * blocks);
            let parts = quants
                .chunks_mut(part * width)
                .zip(scales.chunks_mut(part * blocks));
            for (index, (quants, scales)) in parts.enumerate() {
                let mins = min_parts.next().unwrap_or_default();
                let read = &read;
                scope.spawn(move || {
                    let mut values = vec![0.0f32; columns];
                    let rows = quants.chunks_mut(width).zip(scales.chunks_mut(blocks));
                    for (i, (quants, scales)) in rows.enumerate() {
                        read(index * part + i, &mut values);
                        match format {
                            QuantFormat::Q8 => encode::write_q8(&values, quants, scales),
                            QuantFormat::Q4 => {
                                let mins = &mut mins[i * blocks..(i + 1) * blocks];
                                encode::write_q4(&values, quants, scales, mins);
                            }
                        }
                    }
                });
            }
        });
        Self::from_parts(format, [rows, columns], quants, scales, mins)
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
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
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

    /// The matrix with rows from `start` on replaced, and added where it ends before.
    pub(crate) fn with_rows(&self, start: usize, new: &[f32]) -> Self {
        let width = self.columns();
        let count = new.len() / width.max(1);
        let rows = self.rows().max(start + count);
        Self::quantize(self.format(), [rows, width], |row, out| {
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
            use crate::cpu;
            let kernel = cpu::LinearKernel {
                blocks: Some(self.clone()),
                ..cpu::LinearKernel::plain()
            };
            let stand_in = Tensor::<B, 2>::zeros([1, 1], (&input.device(), DType::F32));
            match cpu::run::<B, _, 2>(kernel, [cpu::float(input), cpu::float(stand_in)]) {
                Ok(output) => return cpu::tensor::<B, 2>(output).cast(dtype),
                Err([input, _]) => cpu::tensor::<B, 2>(input),
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
            // Ids were held against the vocabulary; a dense table fails on others likewise.
            self.inner.read_row(index as usize, &mut out[at..]);
        }
        let data = TensorData::new(out, [indices.num_elements(), width]);
        Tensor::from_data(data, (&device, DType::F32))
    }
}

/// The elements where the CPU reads them fastest.
fn kept<T: Element>(elements: Vec<T>) -> Bytes {
    let bytes = Bytes::from_elems(elements);
    #[cfg(feature = "cpu")]
    let bytes = crate::cpu::place(bytes);
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

/// A matrix of the language model that may be quantised.
pub(crate) struct Slot<'a, B: Backend> {
    /// Canonical name, `….weight`.
    pub name: String,
    /// Whether it is the embedding or the head.
    pub table: bool,
    pub weight: &'a mut Param<Tensor<B, 2>>,
    pub quantized: &'a mut Option<BlockMatrix>,
    /// Where its weight may be a quantised tensor: a linear that is not the head.
    pub on_device: Option<&'a mut Option<OnDevice>>,
}

impl<B: Backend> Slot<'_, B> {
    /// Puts a quantised matrix in place of the dense one.
    pub fn fill(&mut self, matrix: BlockMatrix, dtype: DType) {
        let device = self.weight.lazy_device();
        // Parameters have no empty state: one number that nothing reads.
        let stand_in = Tensor::zeros([1, 1], (&device, dtype)).set_require_grad(false);
        *self.weight = Param::initialized(self.weight.id, stand_in);
        *self.quantized = Some(matrix);
    }
}

/// The format that a matrix is brought to.
pub(crate) fn format_of(wanted: Quantize, table: bool) -> Option<QuantFormat> {
    match (wanted, table) {
        (Quantize::Q8, _) | (Quantize::Q4, true) => Some(QuantFormat::Q8),
        (Quantize::Q4, false) => Some(QuantFormat::Q4),
        (Quantize::Stored, _) => None,
    }
}

/// Every matrix of the language model that may be quantised, in the order of the checkpoint.
pub(crate) fn for_each_slot<B: Backend>(llama: &mut Llama<B>, f: &mut dyn FnMut(Slot<'_, B>)) {
    f(Slot {
        name: "language_model.model.embed_tokens.weight".into(),
        table: true,
        weight: &mut llama.model.embed_tokens.weight,
        quantized: &mut llama.model.embed_tokens.quantized,
        on_device: None,
    });
    for (index, layer) in llama.model.layers.iter_mut().enumerate() {
        for_each_llm_linear(layer, |name, linear| {
            let part = match name {
                "gate_proj" | "up_proj" | "down_proj" => "mlp",
                _ => "self_attn",
            };
            f(Slot {
                name: format!("language_model.model.layers.{index}.{part}.{name}.weight"),
                table: false,
                weight: &mut linear.weight,
                quantized: &mut linear.quantized,
                on_device: Some(&mut linear.on_device),
            });
        });
    }
    if let Some(head) = &mut llama.lm_head {
        f(Slot {
            name: "language_model.lm_head.weight".into(),
            table: true,
            weight: &mut head.weight,
            quantized: &mut head.quantized,
            on_device: None,
        });
    }
}

impl<B: Backend> Llama<B> {
    /// Quantises the dense matrices of linears, embedding and head; adapters, norms and new
    /// tokens stay as they are. Merge adapters first where they should be part of the weights.
    ///
    /// # Errors
    /// If `wanted` is [`Quantize::Stored`], which only loading knows, or linears are quantised
    /// tensors already.
    pub fn quantize(&mut self, wanted: Quantize) -> Result<(), ModelError> {
        if any_on_device(self) {
            return Err(ModelError::Argument(
                "the weights are quantised already, for this device alone".into(),
            ));
        }
        if wanted == Quantize::Stored {
            return Err(ModelError::Argument(
                "\"stored\" keeps the blocks of a file and applies to loading; choose q8 or q4"
                    .into(),
            ));
        }
        for_each_slot(self, &mut |mut slot| {
            let (Some(format), None) = (format_of(wanted, slot.table), &slot.quantized) else {
                return;
            };
            let weight = slot.weight.val().detach();
            let (shape, dtype) = (weight.dims(), weight.dtype());
            let values: Vec<f32> = weight.into_data().iter::<f32>().collect();
            let matrix = BlockMatrix::quantize(format, shape, |row, out| {
                out.copy_from_slice(&values[row * shape[1]..(row + 1) * shape[1]]);
            });
            slot.fill(matrix, dtype);
        });
        Ok(())
    }

    /// As [`Self::quantize`], to compute on this device: backends other than the CPU's hold the
    /// linears as quantised tensors and leave embedding and head dense.
    ///
    /// # Errors
    /// As [`Self::quantize`], and as [`check`].
    pub fn quantize_here(&mut self, wanted: Quantize) -> Result<(), ModelError> {
        if is_native::<B>() {
            return self.quantize(wanted);
        }
        check::<B>(wanted, &self.model.norm.weight.lazy_device())?;
        device::quantize_linears(self, wanted);
        Ok(())
    }

    /// Bytes of the weights that one decoded token reads: all linears and the head.
    pub fn bytes_per_token(&self) -> usize {
        let untied = self.lm_head.is_some();
        matrices(self)
            .into_iter()
            .filter(|held| !(untied && held.name.ends_with("embed_tokens.weight")))
            .map(|held| match (held.quantized, held.on_device) {
                (Some(matrix), _) => matrix.bytes(),
                (None, Some(on_device)) => on_device.bytes(held.weight.lazy_shape()[0]),
                (None, None) => {
                    held.weight.lazy_shape().num_elements() * held.weight.val().dtype().size()
                }
            })
            .sum()
    }
}

/// What may be quantised, by canonical name.
struct Named<'a, B: Backend> {
    name: String,
    weight: &'a Param<Tensor<B, 2>>,
    quantized: Option<&'a BlockMatrix>,
    on_device: Option<&'a OnDevice>,
}

fn matrices<B: Backend>(llama: &Llama<B>) -> Vec<Named<'_, B>> {
    let table = &llama.model.embed_tokens;
    let mut out = vec![Named {
        name: "language_model.model.embed_tokens.weight".to_string(),
        weight: &table.weight,
        quantized: table.quantized.as_ref(),
        on_device: None,
    }];
    for (index, layer) in llama.model.layers.iter().enumerate() {
        let (a, m) = (&layer.self_attn, &layer.mlp);
        for (name, linear) in [
            ("self_attn.q_proj", &a.q_proj),
            ("self_attn.k_proj", &a.k_proj),
            ("self_attn.v_proj", &a.v_proj),
            ("self_attn.o_proj", &a.o_proj),
            ("mlp.gate_proj", &m.gate_proj),
            ("mlp.up_proj", &m.up_proj),
            ("mlp.down_proj", &m.down_proj),
        ] {
            let name = format!("language_model.model.layers.{index}.{name}.weight");
            out.push(Named::linear(name, linear));
        }
    }
    if let Some(head) = &llama.lm_head {
        out.push(Named::linear("language_model.lm_head.weight".into(), head));
    }
    out
}

impl<'a, B: Backend> Named<'a, B> {
    fn linear(name: String, linear: &'a Linear<B>) -> Self {
        Self {
            name,
            weight: &linear.weight,
            quantized: linear.quantized.as_ref(),
            on_device: linear.on_device.as_ref(),
        }
    }
}

/// The quantised matrices by canonical name.
pub(crate) fn quantized<B: Backend>(llama: &Llama<B>) -> Vec<(String, &BlockMatrix)> {
    let named = matrices(llama).into_iter();
    named
        .filter_map(|held| Some((held.name, held.quantized?)))
        .collect()
}

/// Whether a linear's weight is a quantised tensor, which files have no form for.
pub(crate) fn any_on_device<B: Backend>(llama: &Llama<B>) -> bool {
    matrices(llama).iter().any(|held| held.on_device.is_some())
}
