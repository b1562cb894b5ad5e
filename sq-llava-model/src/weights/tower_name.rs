//! The vision tower that a checkpoint names and does not hold.

use std::path::Path;

use super::checkpoint::{Checkpoint, is_multimodal, read_checkpoint};
use super::checkpoint_dir::CheckpointDir;
use super::layout::Section;
use super::vision::{Described, tower_candidates};
use crate::error::ModelError;

/// The `mm_vision_tower` of a LLaVA that has no tower inside, where no directory of that name is
/// here: what has to be looked up before the model can take images. `None` for other checkpoints.
///
/// # Errors
/// If the checkpoint cannot be read; of its weights nothing but names and sizes is.
pub fn named_vision_tower(dir: &Path) -> Result<Option<String>, ModelError> {
    let listed = CheckpointDir::open(dir, "not a model directory, nor a .gguf file")?;
    if listed.is_run()? {
        return Ok(None);
    }
    // What the configuration holds beside is judged when the model is loaded.
    let Checkpoint {
        config,
        json,
        weights,
        dir,
        ..
    } = read_checkpoint(listed, true)?;
    if weights.has(Section::Vision) || !is_multimodal(&config, &json, &weights) {
        return Ok(None);
    }
    let places = [Described {
        dir: &dir,
        json: &json,
    }];
    if tower_candidates(&places).iter().any(|tower| tower.is_dir()) {
        return Ok(None);
    }
    let name = json.get("mm_vision_tower").and_then(|name| name.as_str());
    Ok(name.filter(|name| !name.is_empty()).map(str::to_owned))
}
