//! Quantised matrices ([`BlockMatrix`]) in checkpoints.
//!
//! In a directory, a matrix `X.weight` `[out, in]` in blocks of 32 along `in` is kept as
//!
//! | key | type | shape | |
//! |---|---|---|---|
//! | `X.weight` | I8 (`q8`) | `[out, in]` | numbers |
//! | | U8 (`q4`) | `[out, in / 2]` | byte *j* of a block: element *j* low, *j* + 16 high |
//! | `X.weight_scale` | F16 | `[out, in / 32]` | d of each block |
//! | `X.weight_min` | F16 | `[out, in / 32]` | m, in `q4` alone |
//!
//! with `in` rounded up to whole blocks, and `config.json` says so:
//! `"quantization_config": {"quant_method": "sq-llava", "block_size": 32, …}`.
//! Blocks of a GGUF file are taken over without going through floats where they hold the same
//! numbers.

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use half::f16;

use super::fill::WeightMap;
use super::gguf::{BlockFormat, scale_and_min};
use super::tensor::{StoredTensor, StoredType};
use crate::error::ModelError;
use crate::kernels::blocks::{BLOCK, BlockMatrix, QuantFormat, is_native, not_finite};
use crate::language::llama::Llama;
use crate::language::quantize::{Quantize, Slot, check, for_each_slot, format_of};
use crate::ops::finite::all_finite;

/// Ends of the keys of scales and minima, behind `….weight`.
pub(super) const SCALE: &str = "_scale";
pub(super) const MIN: &str = "_min";

/// Takes the language model's matrices out of the map that are stored in blocks or wanted so, and
/// puts them into the model. What is left is filled as dense.
///
/// # Errors
/// If blocks are damaged, or `wanted` on a backend that cannot compute on them, or of a weight that
/// is not finite.
pub(super) fn fill_quantized<B: Backend>(
    llama: &mut Llama<B>,
    weights: &mut WeightMap,
    wanted: Option<Quantize>,
    dtype: DType,
) -> Result<(), ModelError> {
    if let Some(wanted) = wanted {
        check::<B>(wanted, &llama.model.norm.weight.lazy_device())?;
    }
    let native = is_native::<B>();
    let mut failed = None;
    for_each_slot(llama, &mut |slot| {
        if failed.is_some() {
            return;
        }
        let result = match native {
            true => fill_blocks(slot, weights, wanted, dtype),
            false => fill_tensor(slot, weights, wanted, dtype),
        };
        failed = result.err();
    });
    failed.map_or(Ok(()), Err)
}

/// One matrix in blocks for the CPU.
fn fill_blocks<B: Backend>(
    slot: Slot<'_, B>,
    weights: &mut WeightMap,
    wanted: Option<Quantize>,
    dtype: DType,
) -> Result<(), ModelError> {
    let shape = slot.weight.shape();
    if let Some(matrix) = take(weights, &slot.name, slot.table, shape, wanted)? {
        *slot.weight = slot.weight.in_blocks(matrix, dtype);
    }
    Ok(())
}

/// One matrix for other devices, which quantise the values themselves. What is stored in blocks
/// and not wanted so becomes dense.
fn fill_tensor<B: Backend>(
    slot: Slot<'_, B>,
    weights: &mut WeightMap,
    wanted: Option<Quantize>,
    dtype: DType,
) -> Result<(), ModelError> {
    let shape = slot.weight.shape();
    let format = wanted.and_then(|wanted| slot.device_format(wanted));
    let values = match take(weights, &slot.name, slot.table, shape, None)? {
        Some(matrix) => Some(matrix.dequantize()),
        None if format.is_some() => take_values(weights, &slot.name, shape)?,
        None => None,
    };
    let Some(values) = values else {
        return Ok(());
    };
    let device = slot.weight.device();
    *slot.weight = match format {
        Some(format) => {
            if !values.as_slice::<f32>().is_ok_and(all_finite) {
                return Err(not_finite(&slot.name));
            }
            let values = Tensor::from_data(values, (&device, DType::F32));
            slot.weight.on_device(values, format, dtype)
        }
        None => {
            let dense = Tensor::from_data(values, (&device, dtype)).set_require_grad(false);
            Param::initialized(slot.weight.id(), dense).into()
        }
    };
    Ok(())
}

/// The values of a dense matrix; nothing where filling the dense ones will report what is wrong.
fn take_values(
    weights: &mut WeightMap,
    name: &str,
    shape: [usize; 2],
) -> Result<Option<TensorData>, ModelError> {
    let Some(stored) = weights.get(name) else {
        return Ok(None);
    };
    if stored.shape != shape || matches!(stored.dtype, StoredType::Other(_)) {
        return Ok(None);
    }
    let values = stored.read(DType::F32)?;
    let label = stored.dtype.name().into();
    weights.taken(name, &[], label);
    Ok(Some(values))
}

/// One matrix, if it is stored in blocks or wanted so.
fn take(
    weights: &mut WeightMap,
    name: &str,
    table: bool,
    shape: [usize; 2],
    wanted: Option<Quantize>,
) -> Result<Option<BlockMatrix>, ModelError> {
    if weights.get(&format!("{name}{SCALE}")).is_some() {
        return stored_blocks(weights, name, shape).map(Some);
    }
    let Some(stored) = weights.get(name) else {
        return Ok(None);
    };
    // Another shape is reported when the dense ones are filled.
    if stored.shape != shape {
        return Ok(None);
    }
    let format = match (wanted, stored.dtype) {
        (None, _) => return Ok(None),
        (Some(Quantize::Stored), StoredType::Blocks(format)) => match format {
            BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q4K => Some(QuantFormat::Q4),
            _ => Some(QuantFormat::Q8),
        },
        (Some(wanted), _) => format_of(wanted, table),
    };
    let Some(format) = format else {
        return Ok(None);
    };
    if matches!(stored.dtype, StoredType::Other(_)) {
        return Ok(None);
    }
    let matrix = match (format, stored.dtype) {
        (QuantFormat::Q8, StoredType::Blocks(BlockFormat::Q8_0)) => {
            same_blocks(stored, format, shape)
        }
        (
            QuantFormat::Q4,
            StoredType::Blocks(BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q4K),
        ) => same_blocks(stored, format, shape),
        _ => {
            let bytes = stored.row_major_bytes();
            let width = bytes.len() / shape[0].max(1);
            let read = |row: usize, out: &mut [f32]| {
                stored.widen(&bytes[row * width..(row + 1) * width], out);
            };
            BlockMatrix::quantize(&stored.name, format, shape, read)
                .map_err(|error| ModelError::weights(&stored.file.path, error.to_string()))?
        }
    };
    let label = format!("{} as {}", stored.dtype.name(), format.name());
    weights.taken(name, &[], label);
    Ok(Some(matrix))
}

/// Blocks of a GGUF file that hold the numbers of `format`, taken over as they are.
fn same_blocks(stored: &StoredTensor, format: QuantFormat, shape: [usize; 2]) -> BlockMatrix {
    let StoredType::Blocks(kind) = stored.dtype else {
        unreachable!("the caller has looked");
    };
    let bytes = stored.row_major_bytes();
    let count = shape[0] * shape[1] / BLOCK;
    let mut quants = Vec::with_capacity(count * format.block_bytes());
    let mut scales = Vec::with_capacity(count);
    let mut mins = Vec::new();
    let half = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    for block in bytes.chunks_exact(kind.bytes()) {
        match kind {
            BlockFormat::Q8_0 => {
                scales.push(half(block, 0));
                quants.extend_from_slice(&block[2..]);
            }
            BlockFormat::Q4_0 => {
                scales.push(half(block, 0));
                // d·(q − 8): 8d is exact.
                mins.push(f16::from_f32(-8.0 * half(block, 0).to_f32()));
                quants.extend_from_slice(&block[2..]);
            }
            BlockFormat::Q4_1 => {
                scales.push(half(block, 0));
                mins.push(half(block, 2));
                quants.extend_from_slice(&block[4..]);
            }
            // Eight sub-blocks, whose scale and minimum are rounded to f16 here; two share the
            // low and high halves of 32 bytes.
            _ => {
                let (d, m) = (half(block, 0).to_f32(), half(block, 2).to_f32());
                for i in 0..8 {
                    let (scale, min) = scale_and_min(&block[4..16], i);
                    scales.push(f16::from_f32(d * f32::from(scale)));
                    mins.push(f16::from_f32(-m * f32::from(min)));
                    let shift = 4 * (i % 2);
                    let nibbles = &block[16 + i / 2 * 32..][..32];
                    let nibble = |j: usize| (nibbles[j] >> shift) & 15;
                    quants.extend((0..16).map(|j| nibble(j) | (nibble(j + 16) << 4)));
                }
            }
        }
    }
    BlockMatrix::from_parts(format, shape, quants, scales, mins)
}

/// A matrix that a directory keeps in blocks.
fn stored_blocks(
    weights: &mut WeightMap,
    name: &str,
    shape: [usize; 2],
) -> Result<BlockMatrix, ModelError> {
    let (scale, min) = (format!("{name}{SCALE}"), format!("{name}{MIN}"));
    let blocks = shape[1].div_ceil(BLOCK);
    let Some(scales) = weights.get(&scale) else {
        unreachable!("the caller has looked");
    };
    let fail = |tensor: &StoredTensor, reason: String| {
        let reason = format!("tensor \"{}\" {reason}", tensor.name);
        ModelError::weights(&tensor.file.path, reason)
    };
    let Some(numbers) = weights.get(name) else {
        return Err(fail(scales, "has no numbers beside it".into()));
    };
    let halves = |tensor: &StoredTensor| -> Result<Vec<f16>, ModelError> {
        if tensor.dtype != StoredType::F16 || tensor.shape != [shape[0], blocks] {
            return Err(fail(
                tensor,
                format!(
                    "is {:?} of {}; scales of this matrix are [{}, {blocks}] of F16",
                    tensor.shape,
                    tensor.dtype.name(),
                    shape[0]
                ),
            ));
        }
        let bytes = tensor.row_major_bytes();
        let halves = bytes.chunks_exact(2);
        Ok(halves.map(|b| f16::from_le_bytes([b[0], b[1]])).collect())
    };
    let (format, mins) = match weights.get(&min) {
        Some(mins) => (QuantFormat::Q4, halves(mins)?),
        None => (QuantFormat::Q8, Vec::new()),
    };
    let width = blocks * format.block_bytes();
    if numbers.dtype != StoredType::Other(1) || numbers.shape != [shape[0], width] {
        return Err(fail(
            numbers,
            format!(
                "is {:?}; numbers of this matrix in {} are [{}, {width}] of one byte",
                numbers.shape,
                format.name(),
                shape[0]
            ),
        ));
    }
    let scales = halves(scales)?;
    let quants = numbers.row_major_bytes().into_owned();
    let matrix = BlockMatrix::from_parts(format, shape, quants, scales, mins);
    weights.taken(name, &[&scale, &min], format.name().into());
    Ok(matrix)
}
