//! Quantising the language model: its linears, embedding and head in blocks, at load or afterwards.
//!
//! On the CPU the blocks are [`BlockMatrix`]; other backends hold the linears as Burn's quantised
//! tensors ([`OnDevice`](crate::ops::on_device::OnDevice)) and leave embedding and head dense.

use std::str::FromStr;

use burn::tensor::{backend::Backend, f16};
use serde::{Deserialize, Serialize};

use crate::config::LlamaConfig;
use crate::error::ModelError;
use crate::kernels::Kernels;
use crate::kernels::blocks::{BLOCK, BlockMatrix, QuantFormat, is_native, not_finite};
use crate::language::llama::Llama;
use crate::ops::finite::is_finite;
use crate::ops::weight::Weight;

/// How the matrices of the language model are quantised at load or export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// All in 8 bits.
    Q8,
    /// Linears in 4 bits; embedding and head, which lose most by it, in 8.
    Q4,
    /// What a GGUF file holds in blocks stays in blocks: 4-bit types in 4 bits, larger ones in 8.
    Stored,
}

impl Quantize {
    /// Bytes of a language model's weights in memory, `dense` for one that stays in floats. What a file
    /// holds in blocks only the file knows: it counts as floats.
    pub fn bytes(self, llama: &LlamaConfig, kernels: Kernels, dense: usize) -> usize {
        let matrix = |rows: usize, columns: usize, table: bool| {
            let kept = table && kernels != Kernels::Cpu;
            let scales = |format| match (kernels, format) {
                (Kernels::Cpu, QuantFormat::Q8) => size_of::<f16>(),
                (Kernels::Cpu, QuantFormat::Q4) => 2 * size_of::<f16>(),
                _ => size_of::<f32>(),
            };
            match format_of(self, table).filter(|_| !kept) {
                Some(format) => {
                    rows * columns.div_ceil(BLOCK) * (format.block_bytes() + scales(format))
                }
                None => rows * columns * dense,
            }
        };
        let tables = if llama.tie_word_embeddings { 1 } else { 2 };
        let (vocabulary, hidden) = (llama.vocab_size, llama.hidden_size);
        let linears = llama.linears();
        let values = |&(_, d_in, d_out): &(_, usize, usize)| d_in * d_out;
        let matrices = llama.num_hidden_layers * linears.iter().map(values).sum::<usize>()
            + tables * vocabulary * hidden;
        let layer = linears
            .iter()
            .map(|&(_, d_in, d_out)| matrix(d_out, d_in, false));
        llama.num_hidden_layers * layer.sum::<usize>()
            + tables * matrix(vocabulary, hidden, true)
            + (llama.parameters() - matrices) * dense
    }
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

/// Checks that a backend can do what is wanted.
///
/// # Errors
/// If a backend without kernels is to train on quantised weights, or one other than the CPU's to keep a
/// file's blocks.
pub(crate) fn check<B: Backend>(wanted: Quantize, device: &B::Device) -> Result<(), ModelError> {
    let refused = match wanted {
        _ if is_native::<B>() => return Ok(()),
        _ if B::ad_enabled(device) && Kernels::of::<B>() == Kernels::None => {
            "this device cannot train on quantised weights; choose another, or train on dense weights"
        }
        Quantize::Stored => {
            "a file's blocks are computed on by the CPU alone; choose device cpu, or q8 or q4 here"
        }
        Quantize::Q8 | Quantize::Q4 => return Ok(()),
    };
    Err(ModelError::Argument(refused.into()))
}

/// A matrix of the language model that may be quantised.
pub(crate) struct Slot<'a, B: Backend> {
    /// Canonical name, `….weight`.
    pub name: String,
    /// Whether it is the embedding or the head, which stay dense on devices other than the CPU.
    pub table: bool,
    pub weight: &'a mut Weight<B>,
}

impl<B: Backend> Slot<'_, B> {
    /// The format that a device other than the CPU brings the matrix to, if any.
    pub(crate) fn device_format(&self, wanted: Quantize) -> Option<QuantFormat> {
        format_of(wanted, self.table).filter(|_| !self.table)
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
    });
    for (path, linear) in llama.linears_mut() {
        f(Slot {
            name: format!("language_model.{path}.weight"),
            table: false,
            weight: &mut linear.weight,
        });
    }
    if let Some(head) = &mut llama.lm_head {
        f(Slot {
            name: "language_model.lm_head.weight".into(),
            table: true,
            weight: &mut head.weight,
        });
    }
}

impl<B: Backend> Llama<B> {
    /// Quantises the dense matrices of linears, embedding and head; adapters, norms and new
    /// tokens stay as they are. Merge adapters first where they should be part of the weights.
    ///
    /// # Errors
    /// If `wanted` is [`Quantize::Stored`], which only loading knows, linears are quantised tensors
    /// already, or a weight is not finite; the model cannot be used after that.
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
        let mut failed = None;
        for_each_slot(self, &mut |slot| {
            let (Some(format), Weight::Dense(param)) =
                (format_of(wanted, slot.table), &slot.weight)
            else {
                return;
            };
            if failed.is_some() {
                return;
            }
            let weight = param.val().detach();
            let (shape, dtype) = (weight.dims(), weight.dtype());
            let values: Vec<f32> = weight.into_data().iter::<f32>().collect();
            let matrix = BlockMatrix::quantize(&slot.name, format, shape, |row, out| {
                out.copy_from_slice(&values[row * shape[1]..(row + 1) * shape[1]]);
            });
            match matrix {
                Ok(matrix) => *slot.weight = slot.weight.in_blocks(matrix, dtype),
                Err(error) => failed = Some(error),
            }
        });
        failed.map_or(Ok(()), Err)
    }

    /// As [`Self::quantize`], to compute on this device: backends other than the CPU's hold the
    /// linears as quantised tensors and leave embedding and head dense.
    ///
    /// # Errors
    /// As [`Self::quantize`], or if a backend without kernels is to train.
    pub fn quantize_here(&mut self, wanted: Quantize) -> Result<(), ModelError> {
        if is_native::<B>() {
            return self.quantize(wanted);
        }
        check::<B>(wanted, &self.model.norm.weight.lazy_device())?;
        quantize_linears(self, wanted)
    }

    /// Bytes of the weights that one decoded token reads: all linears and the head.
    pub fn bytes_per_token(&self) -> usize {
        let untied = self.lm_head.is_some();
        matrices(self)
            .into_iter()
            .filter(|(name, _)| !(untied && name.ends_with("embed_tokens.weight")))
            .map(|(_, weight)| weight.bytes())
            .sum()
    }
}

/// Brings the dense linears of a language model into blocks on their device.
///
/// # Errors
/// If a weight is not finite.
fn quantize_linears<B: Backend>(llama: &mut Llama<B>, wanted: Quantize) -> Result<(), ModelError> {
    let mut failed = None;
    for_each_slot(llama, &mut |slot| {
        if let (Weight::Dense(param), Some(format)) = (&slot.weight, slot.device_format(wanted)) {
            let values = param.val().detach();
            let dtype = values.dtype();
            if failed.is_none() && is_finite(&values) {
                *slot.weight = slot.weight.on_device(values, format, dtype);
            } else {
                failed.get_or_insert_with(|| not_finite(&slot.name));
            }
        }
    });
    failed.map_or(Ok(()), Err)
}

/// What may be quantised, by canonical name.
fn matrices<B: Backend>(llama: &Llama<B>) -> Vec<(String, &Weight<B>)> {
    let table = &llama.model.embed_tokens;
    let mut out = vec![(
        "language_model.model.embed_tokens.weight".to_string(),
        &table.weight,
    )];
    out.extend(
        llama
            .linears()
            .map(|(path, linear)| (format!("language_model.{path}.weight"), &linear.weight)),
    );
    if let Some(head) = &llama.lm_head {
        out.push(("language_model.lm_head.weight".into(), &head.weight));
    }
    out
}

/// The matrices in blocks by canonical name.
pub(crate) fn in_blocks<B: Backend>(llama: &Llama<B>) -> Vec<(String, &BlockMatrix)> {
    let named = matrices(llama).into_iter();
    named
        .filter_map(|(name, weight)| Some((name, weight.blocks()?)))
        .collect()
}

/// Whether a linear's weight is a quantised tensor, which files have no form for.
pub(crate) fn any_on_device<B: Backend>(llama: &Llama<B>) -> bool {
    let mut named = matrices(llama).into_iter();
    named.any(|(_, weight)| matches!(weight, Weight::OnDevice(_)))
}
