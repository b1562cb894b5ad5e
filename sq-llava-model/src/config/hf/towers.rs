//! The keys of one tower: LLaMA's and CLIP's, read and written.

use std::path::Path;

use serde_json::{Value, json};

use super::known::Described;
use super::object::{Reader, judge_unknown, read_json};
use crate::config::{ClipVisionConfig, LlamaConfig};
use crate::error::ModelError;
use crate::ops::activation::Activation;
use crate::ops::rope::RopeScaling;

/// Language models that are computed as LLaMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    /// LLaMA with other defaults, and a sliding window unless the file says otherwise.
    Mistral,
}

impl Family {
    /// By `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "llama" | "vicuna" => Some(Self::Llama),
            "mistral" => Some(Self::Mistral),
            _ => None,
        }
    }
}

/// Reads a language model; keys that may change what is computed go to `unknown`.
pub(super) fn llama(
    r: &Reader,
    family: Family,
    unknown: &mut Vec<String>,
) -> Result<LlamaConfig, ModelError> {
    // transformers' LlamaConfig and MistralConfig.
    let (intermediate, kv_heads, positions) = match family {
        Family::Llama => (11008, None, 2048),
        Family::Mistral => (14336, Some(8), 131_072),
    };
    let heads = r.positive("num_attention_heads", 32)?;
    let kv_heads = r.positive("num_key_value_heads", kv_heads.unwrap_or(heads))?;
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
    let width = head_dim.unwrap_or(hidden / heads);
    if width % 2 == 1 {
        return Err(r.error(&format!(
            "heads of width {width} cannot be rotated: \"head_dim\" must be even"
        )));
    }
    let positions = r.positive("max_position_embeddings", positions)?;
    check_window(r, family, positions)?;
    let (theta, scaling) = rope(r, width, positions, unknown)?;
    let config = LlamaConfig::new()
        .with_hidden_size(hidden)
        .with_intermediate_size(r.positive("intermediate_size", intermediate)?)
        .with_num_hidden_layers(r.positive("num_hidden_layers", 32)?)
        .with_num_attention_heads(heads)
        .with_num_key_value_heads(kv_heads)
        .with_head_dim(head_dim)
        .with_vocab_size(r.positive("vocab_size", 32000)?)
        .with_max_position_embeddings(positions)
        .with_rms_norm_eps(r.float("rms_norm_eps", 1e-6)?)
        .with_rope_theta(theta)
        .with_rope_scaling(scaling)
        .with_hidden_act(r.activation("hidden_act", Activation::Silu)?)
        .with_tie_word_embeddings(r.flag("tie_word_embeddings", false)?)
        .with_attention_bias(family == Family::Llama && r.flag("attention_bias", false)?)
        .with_mlp_bias(family == Family::Llama && r.flag("mlp_bias", false)?);
    check_quantization(r)?;
    Ok(config)
}

/// A sliding window that is as long as the context hides nothing: the model is LLaMA. Without
/// `sliding_window` transformers gives Mistral one of 4096 tokens.
fn check_window(r: &Reader, family: Family, positions: usize) -> Result<(), ModelError> {
    let window = match family {
        Family::Mistral if !r.has("sliding_window") => 4096,
        _ => r.size("sliding_window", usize::MAX)?,
    };
    let used = r.flag("use_sliding_window", true)?;
    // From this layer on there is a window, in the models that have the key.
    r.size("max_window_layers", 0)?;
    if used && window < positions {
        return Err(r.error(&format!(
            "a sliding window of {window} tokens (\"sliding_window\") in a context of {positions} is not supported"
        )));
    }
    match r.get("layer_types") {
        None => Ok(()),
        Some(Value::Array(kinds)) if kinds.iter().all(|kind| kind == "full_attention") => Ok(()),
        Some(_) => Err(r.error("\"layer_types\" other than full_attention are not supported")),
    }
}

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

/// Base and scaling of the rotary frequencies of heads of `width`.
fn rope(
    r: &Reader,
    width: usize,
    positions: usize,
    unknown: &mut Vec<String>,
) -> Result<(f64, Option<RopeScaling>), ModelError> {
    let outer = r.float("rope_theta", 10_000.0)?;
    // transformers 5 nests theta and scaling in "rope_parameters".
    let given = match (r.inside("rope_scaling")?, r.inside("rope_parameters")?) {
        (Some(_), Some(_)) if r.get("rope_scaling") != r.get("rope_parameters") => {
            return Err(r.error(
                "\"rope_scaling\" and \"rope_parameters\" differ; take out the one that is not meant",
            ));
        }
        (one, other) => one.or(other),
    };
    // As in transformers the outer number takes precedence over the inner one.
    let original = r.size("original_max_position_embeddings", 0)?;
    let Some(given) = given else {
        return Ok((outer, None));
    };
    let theta = given.float("rope_theta", outer)?;
    if !(theta.is_finite() && theta > 0.0) {
        return Err(r.error(&format!("\"rope_theta\" is {theta}")));
    }
    let original = match original {
        0 => given.positive("original_max_position_embeddings", positions)?,
        n => n,
    };
    let scaling = rope_scaling(&given, width, original)?;
    unknown.extend(given.unknown(Described::Rope));
    Ok((theta, scaling))
}

fn rope_scaling(
    r: &Reader,
    width: usize,
    original: usize,
) -> Result<Option<RopeScaling>, ModelError> {
    let old_name = r.text("type")?;
    let kind = r.text("rope_type")?.or(old_name).unwrap_or("default");
    let needed = |key: &str| -> Result<f64, ModelError> {
        let number = r.typed(key, "a number", Value::as_f64)?;
        number.ok_or_else(|| r.error(&format!("rope scaling \"{kind}\" without \"{key}\"")))
    };
    let factor = || match needed("factor")? {
        f if f >= 1.0 => Ok(f),
        f => Err(r.error(&format!("rope scaling factor {f} is below 1"))),
    };
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: factor()? })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_position_embeddings: original,
        })),
        "longrope" => long_rope(r, width).map(Some),
        other => Err(r.error(&format!(
            "rope scaling \"{other}\" is not supported; known are linear and llama3"
        ))),
    }
}

/// Only where the factors are the same for short and long texts and nothing is scaled.
fn long_rope(r: &Reader, width: usize) -> Result<RopeScaling, ModelError> {
    let list = |key| -> Result<Vec<f64>, ModelError> {
        let read = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect();
        let list: Vec<f64> = r.typed(key, "a list of numbers", read)?.unwrap_or_default();
        if list.len() != width / 2 {
            return Err(r.error(&format!(
                "rope scaling: \"{key}\" holds {} numbers, but heads of width {width} need {}",
                list.len(),
                width / 2
            )));
        }
        Ok(list)
    };
    let (factors, long) = (list("short_factor")?, list("long_factor")?);
    let attention = r.float("attention_factor", 0.0)?;
    // Without effect beside an attention factor.
    r.float("factor", 1.0)?;
    if factors.iter().all(|&f| f > 0.0) && factors == long && attention == 1.0 {
        return Ok(RopeScaling::Factors { factors });
    }
    Err(r.error(
        "rope scaling \"longrope\" is supported only with equal lists and \"attention_factor\" 1",
    ))
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
/// If the file is missing or malformed, is not of CLIP's kind, or (unless `allow_unused`) has a
/// key that may change what is computed.
pub fn read_vision_config(path: &Path, allow_unused: bool) -> Result<ClipVisionConfig, ModelError> {
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
        // transformers' longrope with equal lists and no attention factor divides in the same way.
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
