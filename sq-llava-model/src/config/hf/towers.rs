//! The keys of a vision tower, read and written.

use std::path::Path;

use serde_json::{Value, json};

use super::known::Described;
use super::object::{Reader, judge_unknown, read_json};
use crate::config::VisionConfig;
use crate::error::ModelError;
use crate::ops::activation::Activation;

/// Refuses weights that are stored in another program's blocks.
pub(super) fn check_quantization(r: &Reader) -> Result<(), ModelError> {
    let Some(quantization) = r.inside("quantization_config")? else {
        return Ok(());
    };
    match quantization.text("quant_method")? {
        Some("sq-llava") => Ok(()),
        other => Err(r.error(&format!(
            "the weights are quantised by \"{}\" (\"quantization_config\"), which is not supported; take the model in 16 bits, or a GGUF file, and quantise it with --quantize",
            other.unwrap_or("an unknown method")
        ))),
    }
}

pub(crate) fn vision(r: &Reader) -> Result<VisionConfig, ModelError> {
    let (hidden, heads) = (
        r.positive("hidden_size", 768)?,
        r.positive("num_attention_heads", 12)?,
    );
    let (image, patch) = (
        r.positive("image_size", 224)?,
        r.positive("patch_size", 32)?,
    );
    if hidden % heads != 0 || image < patch {
        return Err(r.error(&format!(
            "vision tower: hidden_size {hidden} with {heads} heads, image_size {image} with patch_size {patch}"
        )));
    }
    Ok(VisionConfig::new()
        .with_hidden_size(hidden)
        .with_intermediate_size(r.positive("intermediate_size", 3072)?)
        .with_num_hidden_layers(r.positive("num_hidden_layers", 12)?)
        .with_num_attention_heads(heads)
        .with_image_size(image)
        .with_patch_size(patch)
        .with_hidden_act(r.activation("hidden_act", Activation::QuickGelu)?)
        .with_layer_norm_eps(r.float("layer_norm_eps", 1e-5)?)
        .with_pre_layernorm(!r.flag("sq_no_pre_layernorm", false)?)
        .with_post_layernorm(!r.flag("sq_no_post_layernorm", false)?)
        .with_patch_bias(r.flag("sq_patch_bias", false)?))
}

/// Reads the `config.json` (or `vision_config.json`) of a CLIP vision tower: its own, or the
/// `vision_config` of a whole CLIP model.
///
/// # Errors
/// If the file is missing or malformed, is not of CLIP's kind, or (unless `allow_unused`) has a
/// key that may change what is computed.
pub fn read_vision_config(path: &Path, allow_unused: bool) -> Result<VisionConfig, ModelError> {
    let value = read_json(path)?;
    let r = Reader::new(path, &value)?;
    let inner = match r.text("model_type")? {
        Some("clip") => Some(
            r.inside("vision_config")?
                .ok_or_else(|| r.error("a CLIP model without \"vision_config\""))?,
        ),
        Some("clip_vision_model") | None => None,
        Some(other) => {
            return Err(r.error(&format!(
                "unknown vision model type \"{other}\"; known are clip and clip_vision_model"
            )));
        }
    };
    let tower = inner.as_ref().unwrap_or(&r);
    check_vision_type(tower)?;
    let config = vision(tower)?;
    judge_unknown(path, &tower.unknown(Described::Vision), allow_unused)?;
    Ok(config)
}

/// The tower inside another configuration names its own type.
pub(crate) fn check_vision_type(r: &Reader) -> Result<(), ModelError> {
    match r.text("model_type")? {
        None | Some("clip_vision_model") => Ok(()),
        Some(other) => Err(r.error(&format!(
            "the vision tower is a \"{other}\", which is not supported; known is clip_vision_model"
        ))),
    }
}

pub(crate) fn vision_json(c: &VisionConfig) -> Value {
    let mut out = json!({
        "model_type": "clip_vision_model",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_act": c.hidden_act,
        "layer_norm_eps": c.layer_norm_eps,
    });
    for (key, present) in [
        ("sq_no_pre_layernorm", !c.pre_layernorm),
        ("sq_no_post_layernorm", !c.post_layernorm),
        ("sq_patch_bias", c.patch_bias),
    ] {
        if present {
            out[key] = json!(true);
        }
    }
    out
}
