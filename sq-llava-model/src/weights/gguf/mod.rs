//! GGUF files, the format of llama.cpp, as the language model.

mod arch;
mod blocks;
mod config;
mod encode;
mod keys;
mod mmproj;
mod mmproj_file;
mod mmproj_keys;
mod mmproj_names;
mod names;
mod output;
mod q4_k;
mod to_file;
mod yarn;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::DType;
use sq_llava_data::gguf::{GgufHeader, GgufTensor};

use arch::Architecture;
pub(super) use blocks::{BlockFormat, scale_and_min};
pub use encode::GgufType;
pub(super) use mmproj::{Mmproj, read_mmproj};
pub(super) use mmproj_file::PictureFile;
pub(super) use mmproj_names::mmproj_name;
pub(super) use names::{Spelling, file_name};
pub(super) use output::Tensor;
pub(super) use to_file::LanguageFile;

use super::source::check_sharing;
use super::tensor::{MappedFile, StoredTensor, StoredType};
use crate::config::{LlamaConfig, SqLlavaConfig};
use crate::error::ModelError;

/// What a GGUF file holds of a model.
pub(super) struct GgufModel {
    pub config: SqLlavaConfig,
    /// Tensors by canonical name.
    pub tensors: Vec<(String, StoredTensor)>,
    /// Names of tensors that the decoder has no place for.
    pub unknown: Vec<String>,
    /// Names of tensors that the configuration stands for.
    pub ignored: Vec<String>,
}

/// Lists the tensors of a file and reads its configuration. Nothing but the header is read.
///
/// # Errors
/// If the file is damaged, of another architecture, holds a tensor of an unsupported type, or
/// (unless `allow_unused`) has metadata that may change what is computed.
pub(super) fn read_gguf(path: &Path, allow_unused: bool) -> Result<GgufModel, ModelError> {
    let header = GgufHeader::open(path)?;
    if header.tensors.is_empty() {
        return Err(header
            .error("no tensors inside (a vocabulary alone?)")
            .into());
    }
    let file = MappedFile::open(path)?;
    let mut tensors = Vec::new();
    let (mut unknown, mut ignored) = (Vec::new(), Vec::new());
    let mut factors = config::RopeFactors::default();
    let arch = config::read_architecture(&header)?;
    let spelling = Spelling::of(&arch.0.preset());
    let listed = header.tensors.iter().map(|listed| stored(&file, listed));
    let listed = listed.collect::<Result<Vec<_>, _>>()?;
    check_sharing(path, &listed)?;
    for (listed, tensor) in header.tensors.iter().zip(listed) {
        let table = match listed.name.as_str() {
            "rope_freqs.weight" => Some(&mut factors.all),
            "rope_factors_short.weight" => Some(&mut factors.short),
            "rope_factors_long.weight" => Some(&mut factors.long),
            _ => None,
        };
        if let Some(table) = table {
            *table = Some(tensor.read(DType::F32)?.iter::<f32>().collect());
        }
        if names::is_computed(&listed.name) {
            ignored.push(tensor.name);
            continue;
        }
        match names::canonical(&listed.name, spelling) {
            Some(name) => tensors.push((name, tensor)),
            None => unknown.push(tensor.name),
        }
    }
    let config = config::read_config(&header, arch, factors, allow_unused)?;
    mark_converted(&header, arch, &config.llama, &mut tensors)?;
    let mut seen = std::collections::BTreeSet::new();
    if let Some((_, twice)) = tensors.iter().find(|(name, _)| !seen.insert(name.clone())) {
        let reason = format!("tensor \"{}\" is there twice", twice.name);
        return Err(header.error(reason).into());
    }
    Ok(GgufModel {
        config,
        tensors,
        unknown,
        ignored,
    })
}

/// Marks what llama.cpp's converter changed in tensors, to be undone as they are read.
fn mark_converted(
    header: &GgufHeader,
    arch: Architecture,
    llama: &LlamaConfig,
    tensors: &mut [(String, StoredTensor)],
) -> Result<(), ModelError> {
    for (name, tensor) in tensors {
        // The converter adds the one that such norms multiply by more than their weight.
        tensor.one_more = llama.norm_offset && name.ends_with("norm.weight");
        // llama.cpp turns pairs of neighbours, LLaMA halves: its converter reorders these rows.
        if !arch.turns_neighbours() {
            continue;
        }
        if name.contains(".self_attn.q_proj.") {
            tensor.interleaved_heads = Some(llama.num_attention_heads);
        } else if name.contains(".self_attn.k_proj.") {
            tensor.interleaved_heads = Some(llama.num_key_value_heads);
        }
        if let Some(heads) = tensor.interleaved_heads
            && !tensor.shape[0].is_multiple_of(2 * heads)
        {
            let reason = format!(
                "tensor \"{}\" has {} rows, which {heads} heads cannot share",
                tensor.name, tensor.shape[0]
            );
            return Err(header.error(reason).into());
        }
    }
    Ok(())
}

/// A listed tensor, checked to lie inside the file.
fn stored(file: &Arc<MappedFile>, listed: &GgufTensor) -> Result<StoredTensor, ModelError> {
    let fail = |reason: String| {
        ModelError::weights(&file.path, format!("tensor \"{}\" {reason}", listed.name))
    };
    let dtype = stored_type(listed.kind).map_err(|kind| {
        fail(format!(
            "is of type {kind}, which is not supported; known are F32, F16, BF16, F64, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS and MXFP4"
        ))
    })?;
    let columns = listed.shape.last().copied().unwrap_or(1);
    if listed.shape.is_empty() || listed.shape.contains(&0) {
        return Err(fail("has no elements".into()));
    }
    if let StoredType::Blocks(format) = dtype
        && columns % format.elements() != 0
    {
        return Err(fail(format!(
            "has rows of {columns}, which are not whole blocks of {}",
            format.name()
        )));
    }
    let start = usize::try_from(listed.start).unwrap_or(usize::MAX);
    let (name, shape, end) = (
        listed.name.clone(),
        listed.shape.clone(),
        file.bytes().len(),
    );
    StoredTensor::new(file, name, shape, dtype, start, end, None)
}

/// The element type of a `ggml_type`, or its name if it cannot be read.
fn stored_type(kind: u32) -> Result<StoredType, String> {
    Ok(match kind {
        0 => StoredType::F32,
        1 => StoredType::F16,
        2 => StoredType::Blocks(BlockFormat::Q4_0),
        3 => StoredType::Blocks(BlockFormat::Q4_1),
        6 => StoredType::Blocks(BlockFormat::Q5_0),
        7 => StoredType::Blocks(BlockFormat::Q5_1),
        8 => StoredType::Blocks(BlockFormat::Q8_0),
        10 => StoredType::Blocks(BlockFormat::Q2K),
        11 => StoredType::Blocks(BlockFormat::Q3K),
        12 => StoredType::Blocks(BlockFormat::Q4K),
        13 => StoredType::Blocks(BlockFormat::Q5K),
        14 => StoredType::Blocks(BlockFormat::Q6K),
        20 => StoredType::Blocks(BlockFormat::Iq4Nl),
        23 => StoredType::Blocks(BlockFormat::Iq4Xs),
        28 => StoredType::F64,
        30 => StoredType::BF16,
        39 => StoredType::Blocks(BlockFormat::Mxfp4),
        9 => return Err("Q8_1".into()),
        15 => return Err("Q8_K".into()),
        16 => return Err("IQ2_XXS".into()),
        17 => return Err("IQ2_XS".into()),
        18 => return Err("IQ3_XXS".into()),
        19 => return Err("IQ1_S".into()),
        21 => return Err("IQ3_S".into()),
        22 => return Err("IQ2_S".into()),
        24..=27 => return Err("I8 to I64".into()),
        29 => return Err("IQ1_M".into()),
        34 => return Err("TQ1_0".into()),
        35 => return Err("TQ2_0".into()),
        other => return Err(format!("number {other}")),
    })
}
