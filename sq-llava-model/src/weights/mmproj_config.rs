//! What an `mmproj` file of llama.cpp is, without a language model.

use std::path::Path;

use serde_json::Value;
use sq_llava_data::gguf::{GgufHeader, is_gguf};

use super::checkpoint::name_projector;
use super::fill::WeightMap;
use super::gguf::read_mmproj;
use super::layout::Section;
use super::plan::take_mmproj;
use crate::config::{LlamaConfig, SqLlavaConfig};
use crate::error::ModelError;

/// Tower, projector and treatment of pictures of an `mmproj` file; `None` for other files. Of the
/// language model that belongs to it, `llama.hidden_size` alone is known.
///
/// # Errors
/// If the file is damaged, or (unless `allow_unused`) has keys that may change what is computed.
pub fn mmproj_config(path: &Path, allow_unused: bool) -> Result<Option<SqLlavaConfig>, ModelError> {
    if !is_gguf(path) || GgufHeader::open(path)?.text("general.architecture")? != Some("clip") {
        return Ok(None);
    }
    let mut config = SqLlavaConfig::new(LlamaConfig::new());
    let mut weights = WeightMap::default();
    take_mmproj(read_mmproj(path, allow_unused)?, &mut config, &mut weights)?;
    name_projector(&mut config, &Value::Null, &weights);
    let names = weights.names(Section::Projector);
    let biases = names.filter_map(|name| Some((name.strip_suffix(".bias")?.parse().ok()?, name)));
    // The last linear's.
    let last = biases.max_by_key(|(number, _): &(usize, &str)| *number);
    let bias = last.and_then(|(_, name)| weights.get(&format!("mm_projector.{name}")));
    let Some(&width) = bias.and_then(|bias| bias.shape.first()) else {
        return Err(ModelError::weights(
            path,
            "no projector inside (mm.0, mm.2)",
        ));
    };
    config.llama.hidden_size = width;
    Ok(Some(config))
}
