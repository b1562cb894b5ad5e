//! The keys of one tower: LLaMA's and CLIP's, read and written.

use std::path::Path;

use serde_json::{Value, json};

use super::object::{Reader, read_json};
use crate::config::{ClipVisionConfig, LlamaConfig};
use crate::error::ModelError;
use crate::ops::activation::Activation;
use crate::ops::rope::RopeScaling;

pub(super) fn llama(r: &Reader) -> Result<LlamaConfig, ModelError> {
    let heads = r.positive("num_attention_heads", 32)?;
    let kv_heads = r.positive("num_key_value_heads", heads)?;
    let hidden = r.positive("hidden_size", 4096)?;
    if heads % kv_heads != 0 {
        return Err(r.error(&format!(
            "{heads} attention heads cannot share {kv_heads} key-value heads"
        )));
    }
    let head_dim = match r.size("head_dim", 0)? {
        0 if hidden % heads != 0 => {
            return Err(r.error(&format!(
                "hidden_size {hidden} is not a multiple of {heads} attention heads"
            )));
        }
        0 => None,
        d => Some(d),
    };
    // transformers 5 nests theta and scaling in "rope_parameters".
    let nested = match r.get("rope_parameters") {
        Some(value) => Some(Reader::new(r.path, value)?),
        None => None,
    };
    let theta = match &nested {
        Some(n) => n.float("rope_theta", r.float("rope_theta", 10_000.0)?)?,
        None => r.float("rope_theta", 10_000.0)?,
    };
    let scaling = match (&nested, r.get("rope_scaling")) {
        (_, Some(value)) => rope_scaling(&Reader::new(r.path, value)?)?,
        (Some(nested), None) => rope_scaling(nested)?,
        (None, None) => None,
    };
    Ok(LlamaConfig::new()
        .with_hidden_size(hidden)
        .with_intermediate_size(r.positive("intermediate_size", 11008)?)
        .with_num_hidden_layers(r.positive("num_hidden_layers", 32)?)
        .with_num_attention_heads(heads)
        .with_num_key_value_heads(kv_heads)
        .with_head_dim(head_dim)
        .with_vocab_size(r.positive("vocab_size", 32000)?)
        .with_max_position_embeddings(r.positive("max_position_embeddings", 2048)?)
        .with_rms_norm_eps(r.float("rms_norm_eps", 1e-6)?)
        .with_rope_theta(theta)
        .with_rope_scaling(scaling)
        .with_hidden_act(r.activation("hidden_act", Activation::Silu)?)
        .with_tie_word_embeddings(r.flag("tie_word_embeddings", false)?)
        .with_attention_bias(r.flag("attention_bias", false)?)
        .with_mlp_bias(r.flag("mlp_bias", false)?))
}

fn rope_scaling(r: &Reader) -> Result<Option<RopeScaling>, ModelError> {
    let kind = match r.text("rope_type")? {
        Some(kind) => kind,
        None => r.text("type")?.unwrap_or("default"),
    };
    let factor = || -> Result<f64, ModelError> {
        match r.float("factor", 0.0)? {
            f if f >= 1.0 => Ok(f),
            f => Err(r.error(&format!("rope scaling factor {f} is below 1"))),
        }
    };
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: factor()? })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: r.float("low_freq_factor", 1.0)?,
            high_freq_factor: r.float("high_freq_factor", 4.0)?,
            original_max_position_embeddings: r
                .positive("original_max_position_embeddings", 8192)?,
        })),
        "longrope" => {
            let list = |key| -> Result<Vec<f64>, ModelError> {
                let read = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect();
                let list = r.typed(key, "a list of numbers", read)?.unwrap_or_default();
                Ok(list)
            };
            let factors = list("short_factor")?;
            let plain = factors.iter().all(|&f| f > 0.0)
                && factors == list("long_factor")?
                && r.float("attention_factor", 0.0)? == 1.0;
            match plain {
                true => Ok(Some(RopeScaling::Factors { factors })),
                false => Err(r.error(
                    "rope scaling \"longrope\" is supported only with equal lists and \"attention_factor\" 1",
                )),
            }
        }
        other => Err(r.error(&format!(
            "rope scaling \"{other}\" is not supported; known are linear and llama3"
        ))),
    }
}

pub(crate) fn vision(r: &Reader) -> Result<ClipVisionConfig, ModelError> {
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
    Ok(ClipVisionConfig::new()
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
/// If the file is missing or malformed, or is not of CLIP's kind.
pub fn read_vision_config(path: &Path) -> Result<ClipVisionConfig, ModelError> {
    let value = read_json(path)?;
    let r = Reader::new(path, &value)?;
    match r.text("model_type")? {
        Some("clip") => match r.get("vision_config") {
            Some(inner) => vision(&Reader::new(path, inner)?),
            None => Err(r.error("a CLIP model without \"vision_config\"")),
        },
        Some("clip_vision_model") | None => vision(&r),
        Some(other) => Err(r.error(&format!(
            "unknown vision model type \"{other}\"; known are clip and clip_vision_model"
        ))),
    }
}

pub(super) fn llama_json(c: &LlamaConfig) -> Value {
    let mut out = json!({
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "hidden_act": c.hidden_act,
        "tie_word_embeddings": c.tie_word_embeddings,
        "attention_bias": c.attention_bias,
        "mlp_bias": c.mlp_bias,
    });
    if let Some(d) = c.head_dim {
        out["head_dim"] = json!(d);
    }
    match &c.rope_scaling {
        None => {}
        // transformers' longrope with equal lists and no attention factor divides likewise.
        Some(RopeScaling::Factors { factors }) => {
            out["rope_scaling"] = json!({
                "rope_type": "longrope",
                "factor": 1.0,
                "attention_factor": 1.0,
                "short_factor": factors,
                "long_factor": factors,
                "original_max_position_embeddings": c.max_position_embeddings,
            });
        }
        Some(RopeScaling::Linear { factor }) => {
            out["rope_scaling"] =
                json!({"rope_type": "linear", "type": "linear", "factor": factor});
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => {
            out["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            });
        }
    }
    out
}

pub(crate) fn vision_json(c: &ClipVisionConfig) -> Value {
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
