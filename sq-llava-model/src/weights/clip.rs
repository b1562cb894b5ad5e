//! A whole CLIP model from its directory.

use std::path::Path;

use burn::tensor::{FloatDType, backend::Backend};

use super::fill::{FillOptions, WeightMap, fill};
use super::load::Progress;
use super::report::{LoadReport, list};
use super::source::{model_files, read_files};
use super::write::file_dtype;
use crate::clip_model::ClipModel;
use crate::config::ClipConfig;
use crate::error::ModelError;

/// Loads a `CLIPModel`: its config.json and its weights, from safetensors or PyTorch files.
///
/// # Errors
/// If a file is missing or damaged, the configuration is not CLIP's, or weights are missing or
/// have another shape; the message names the keys.
pub fn load_clip<B: Backend>(
    dir: &Path,
    dtype: FloatDType,
    progress: Option<&Progress>,
    device: &B::Device,
) -> Result<(ClipModel<B>, LoadReport), ModelError> {
    let dtype = file_dtype(dtype)?;
    if !dir.is_dir() {
        return Err(ModelError::config(dir, "not a model directory"));
    }
    let config = ClipConfig::from_hf(&dir.join("config.json"))?;
    let files = model_files(dir)?;
    if files.is_empty() {
        return Err(ModelError::weights(
            dir,
            "no weights here (model.safetensors, pytorch_model.bin, or their shards with an index)",
        ));
    }
    let mut weights = WeightMap::default();
    for mut tensor in read_files(&files)? {
        // A computed buffer of older files.
        if tensor.name.ends_with("embeddings.position_ids") {
            continue;
        }
        if tensor.shape.is_empty() {
            tensor.shape = vec![1]; // The scale is a scalar; ours has one element.
        }
        weights.insert(tensor.name.clone(), tensor);
    }
    let options = FillOptions {
        dtype,
        trainable_dtype: dtype,
        freeze_base: true,
        fresh: &[],
        progress: progress.map(|p| &**p as &dyn Fn(u64, u64)),
    };
    let (model, report) = fill(config.init::<B>(device), weights, &options)?;
    if let Some(failure) = report.failure() {
        return Err(ModelError::Incomplete(format!(
            "{}: {failure}",
            dir.display()
        )));
    }
    if !report.unexpected.is_empty() {
        tracing::warn!(
            "{}: {} keys of the files are not part of CLIP: {}",
            dir.display(),
            report.unexpected.len(),
            list(&report.unexpected)
        );
    }
    Ok((model, report))
}
