//! A checkpoint with all weights of a model or of an LLM, before its vision tower is looked for.

use std::path::PathBuf;

use serde_json::Value;

use super::checkpoint_dir::CheckpointDir;
use super::fill::WeightMap;
use super::gguf;
use super::layout::Section;
use super::source::{read_file, read_files};
use super::vision::projector_by_keys;
use crate::config::{SqLlavaConfig, read_json};
use crate::error::ModelError;

/// Its configuration and weights.
pub(super) struct Checkpoint {
    pub config: SqLlavaConfig,
    pub json: Value,
    pub weights: WeightMap,
    /// The directory that the weights lie in.
    pub dir: CheckpointDir,
    /// Where the tokenizer is: files in that directory, else inside a GGUF file.
    pub tokenizer: Option<PathBuf>,
}

/// Reads a directory with all weights of a model or of an LLM, or a GGUF file.
pub(super) fn read_checkpoint(
    dir: CheckpointDir,
    allow_unused: bool,
) -> Result<Checkpoint, ModelError> {
    let tokenizer = dir.has_tokenizer().then(|| dir.path.clone());
    if let Some(file) = dir.gguf()? {
        let (config, weights) = WeightMap::from_gguf(gguf::read_gguf(&file, allow_unused)?);
        return Ok(Checkpoint {
            config,
            json: Value::Null,
            weights,
            tokenizer: tokenizer.or(Some(file)),
            dir,
        });
    }
    let path = dir.path.join("config.json");
    let json = read_json(&path)?;
    let config = SqLlavaConfig::from_hf(&path, allow_unused)?;
    let files = dir.own_weights(
        "no weights here (model.safetensors, pytorch_model.bin, or their shards with an index)",
    )?;
    let mut weights = WeightMap::default();
    weights.add(read_files(&files)?, &[])?;
    if !weights.has(Section::Projector)
        && let Some(file) = dir.projector()
    {
        let parts = [Section::Projector, Section::ImageNewline];
        weights.add(read_file(&file)?, &parts)?;
    }
    Ok(Checkpoint {
        config,
        json,
        weights,
        dir,
        tokenizer,
    })
}

/// Whether a checkpoint takes images.
pub(super) fn is_multimodal(config: &SqLlavaConfig, json: &Value, weights: &WeightMap) -> bool {
    config.vision.is_some()
        || ["mm_vision_tower", "mm_hidden_size", "mm_projector_type"]
            .iter()
            .any(|key| json.get(key).is_some_and(|v| !v.is_null()))
        || weights.has(Section::Vision)
        || weights.has(Section::Projector)
}

/// Takes the kind of projector from the keys where the configuration names none.
pub(super) fn name_projector(config: &mut SqLlavaConfig, json: &Value, weights: &WeightMap) {
    let named = ["mm_projector_type", "mm_hidden_size", "text_config"]
        .iter()
        .any(|key| json.get(key).is_some_and(|v| !v.is_null()));
    if !named && let Some(projector) = projector_by_keys(weights) {
        config.projector = projector;
    }
}
