//! Saving a vision tower alone, as the hub has its family's.

use std::path::Path;

use burn::tensor::{FloatDType, backend::Backend};

use super::write::{Entry, entries, file_dtype, make_model_dir, write_json, write_safetensors};
use crate::config::{VisionConfig, vision_json};
use crate::error::ModelError;
use crate::vision::tower::VisionTower;

/// Saves `config.json` and `model.safetensors` of a tower into a directory of its own.
///
/// # Errors
/// If the tower has adapters beside its weights, the directory already holds a model, or a file
/// cannot be written.
pub fn save_vision_tower<B: Backend>(
    tower: &VisionTower<B>,
    config: &VisionConfig,
    dir: &Path,
    dtype: FloatDType,
) -> Result<(), ModelError> {
    let dtype = file_dtype(dtype)?;
    if tower.linears().any(|(_, linear)| linear.lora.is_some()) {
        return Err(ModelError::Argument(
            "the vision tower has adapters beside its weights; merge them before saving it".into(),
        ));
    }
    let entries = entries(tower).into_iter();
    let mut entries: Vec<Entry> = entries.map(|(_, entry)| entry).collect();
    let alone = match config.family.whole() {
        Some(_) => "vision_model.",
        None => "",
    };
    for entry in &mut entries {
        entry.shape = config.file_shape(&entry.name, &entry.shape);
        entry.name = format!("{alone}{}", config.file_name(&entry.name));
        entry.dtype = dtype;
    }
    make_model_dir(dir)?;
    let mut json = vision_json(config);
    json["architectures"] = serde_json::json!([config.family.architecture()]);
    let weights = write_safetensors(dir.join("model.safetensors"), &entries, &[])?;
    let config = write_json(dir.join("config.json"), &json)?;
    weights.commit()?;
    config.commit()?;
    Ok(())
}
