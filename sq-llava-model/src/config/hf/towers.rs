//! The keys of a vision tower, read and written.

use std::path::Path;

use serde_json::{Value, json};

use super::known::Described;
use super::object::{Reader, judge_unknown, read_json};
use crate::config::{VisionConfig, VisionFamily};
use crate::error::ModelError;

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

/// The tower that an object describes; one without a type is CLIP's.
pub(crate) fn vision(r: &Reader) -> Result<VisionConfig, ModelError> {
    let family = match r.text("model_type")? {
        None => VisionFamily::Clip,
        Some(name) => VisionFamily::of(name).ok_or_else(|| {
            r.error(&format!(
                "the vision tower is a \"{name}\", which is not supported; known are {}",
                VisionFamily::known()
            ))
        })?,
    };
    let preset = family.preset();
    let (hidden, heads) = (
        r.positive("hidden_size", preset.hidden_size)?,
        r.positive("num_attention_heads", preset.num_attention_heads)?,
    );
    let (image, patch) = (
        r.positive("image_size", preset.image_size)?,
        r.positive("patch_size", preset.patch_size)?,
    );
    if hidden % heads != 0 || image < patch {
        return Err(r.error(&format!(
            "vision tower: hidden_size {hidden} with {heads} heads, image_size {image} with patch_size {patch}"
        )));
    }
    let config = preset
        .with_hidden_size(hidden)
        .with_num_hidden_layers(r.positive("num_hidden_layers", 12)?)
        .with_num_attention_heads(heads)
        .with_image_size(image)
        .with_patch_size(patch);
    let config = config
        .clone()
        .with_hidden_act(r.activation("hidden_act", config.hidden_act)?)
        .with_layer_norm_eps(r.float("layer_norm_eps", config.layer_norm_eps)?)
        .with_pre_layernorm(!r.flag(NO_PRE_NORM, !config.pre_layernorm)?)
        .with_post_layernorm(!r.flag(NO_POST_NORM, !config.post_layernorm)?)
        .with_patch_bias(r.flag(PATCH_BIAS, config.patch_bias)?);
    match family {
        VisionFamily::Clip => with_mlp(config, r),
        VisionFamily::Siglip => {
            let head = r.flag("vision_use_head", true)?;
            with_mlp(config.with_pooling_head(head), r)
        }
        VisionFamily::Dinov2 => dinov2(config, r),
    }
}

/// Ours: parts that a tower of its family has, and this one has not, or the other way round.
const NO_PRE_NORM: &str = "sq_no_pre_layernorm";
const NO_POST_NORM: &str = "sq_no_post_layernorm";
const PATCH_BIAS: &str = "sq_patch_bias";

fn with_mlp(config: VisionConfig, r: &Reader) -> Result<VisionConfig, ModelError> {
    let width = r.positive("intermediate_size", config.intermediate_size)?;
    Ok(config.with_intermediate_size(width))
}

/// The keys that DINOv2 alone has.
fn dinov2(config: VisionConfig, r: &Reader) -> Result<VisionConfig, ModelError> {
    let (ratio, gated) = (
        r.positive("mlp_ratio", 4)?,
        r.flag("use_swiglu_ffn", false)?,
    );
    let width = VisionConfig::mlp_width(config.hidden_size, ratio, gated)
        .ok_or_else(|| r.error(&format!("vision tower: \"mlp_ratio\" {ratio} is too large")))?;
    Ok(config
        .with_intermediate_size(width)
        .with_gated_mlp(gated)
        .with_qkv_bias(r.flag("qkv_bias", true)?))
}

/// Reads the `config.json` (or `vision_config.json`) of a vision tower: its own, or the
/// `vision_config` of a whole CLIP or SigLIP.
///
/// # Errors
/// If the file is missing or malformed, is of a kind that is not supported, or (unless
/// `allow_unused`) has a key that may change what is computed.
pub fn read_vision_config(path: &Path, allow_unused: bool) -> Result<VisionConfig, ModelError> {
    let value = read_json(path)?;
    let r = Reader::new(path, &value)?;
    let kind = r.text("model_type")?;
    let whole = kind.and_then(|kind| {
        let mut families = VisionFamily::ALL.into_iter();
        families.find(|family| family.whole() == Some(kind))
    });
    let inner = match whole {
        Some(_) => Some(r.inside("vision_config")?.ok_or_else(|| {
            r.error(&format!(
                "a \"{}\" without \"vision_config\"",
                kind.unwrap_or_default()
            ))
        })?),
        None => None,
    };
    let tower = inner.as_ref().unwrap_or(&r);
    let config = vision(tower)?;
    if let Some(family) = whole.filter(|&family| family != config.family) {
        return Err(r.error(&format!(
            "the tower of a \"{}\" is a \"{}\", but {} is expected",
            kind.unwrap_or_default(),
            config.family.model_type(),
            family.model_type()
        )));
    }
    judge_unknown(path, &tower.unknown(Described::Vision), allow_unused)?;
    Ok(config)
}

pub(crate) fn vision_json(c: &VisionConfig) -> Value {
    let mut out = json!({
        "model_type": c.family.model_type(),
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_act": c.hidden_act,
        "layer_norm_eps": c.layer_norm_eps,
    });
    match c.family {
        VisionFamily::Clip => out["intermediate_size"] = json!(c.intermediate_size),
        VisionFamily::Siglip => {
            out["intermediate_size"] = json!(c.intermediate_size);
            out["vision_use_head"] = json!(c.pooling_head);
        }
        VisionFamily::Dinov2 => {
            out["mlp_ratio"] = json!(c.mlp_ratio());
            out["qkv_bias"] = json!(c.qkv_bias);
            out["use_swiglu_ffn"] = json!(c.gated_mlp);
            // It counts in its own training alone, and is not kept.
            out["use_mask_token"] = json!(false);
        }
    }
    let plain = c.family.preset();
    for (key, value, usual) in [
        (NO_PRE_NORM, !c.pre_layernorm, !plain.pre_layernorm),
        (NO_POST_NORM, !c.post_layernorm, !plain.post_layernorm),
        (PATCH_BIAS, c.patch_bias, plain.patch_bias),
    ] {
        if value != usual {
            out[key] = json!(value);
        }
    }
    out
}
