//! The keys of a language model, read and written.

use serde_json::{Value, json};

use super::object::Reader;
use super::rope::{rope, rope_json};
use super::towers::check_quantization;
use crate::config::{Family, LlamaConfig, SlidingWindow};
use crate::error::ModelError;

/// Reads a language model; keys that may change what is computed go to `unknown`.
pub(super) fn decoder(
    r: &Reader,
    family: Family,
    unknown: &mut Vec<String>,
) -> Result<LlamaConfig, ModelError> {
    let preset = family.preset();
    let mut config = sizes(r, preset)?;
    biases(r, &mut config)?;
    // LLaMA's layers are all alike and are not listed, whatever their number.
    if family != Family::Llama && config.num_hidden_layers > LlamaConfig::MOST_LAYERS {
        return Err(r.error(&format!(
            "\"num_hidden_layers\" is {}; more than {} are not supported in a {}",
            config.num_hidden_layers,
            LlamaConfig::MOST_LAYERS,
            family.model_type()
        )));
    }
    if family == Family::Smollm3 {
        config.unrotated_layers = unrotated(r, config.num_hidden_layers)?;
    }
    rope(r, &mut config, unknown)?;
    config.sliding_window = sliding_window(r, &config)?;
    if config.query_pre_attn_scalar.is_some() {
        gemma(r, &mut config)?;
    }
    check_quantization(r)?;
    Ok(config)
}

fn sizes(r: &Reader, preset: LlamaConfig) -> Result<LlamaConfig, ModelError> {
    let heads = r.positive("num_attention_heads", preset.num_attention_heads)?;
    let kv_heads = match preset.family {
        Family::Llama | Family::Phi3 => heads,
        _ => preset.num_key_value_heads,
    };
    let kv_heads = r.positive("num_key_value_heads", kv_heads)?;
    let hidden = r.positive("hidden_size", preset.hidden_size)?;
    if heads % kv_heads != 0 {
        return Err(r.error(&format!(
            "{heads} attention heads cannot share {kv_heads} key-value heads"
        )));
    }
    let head_dim = match r.size("head_dim", preset.head_dim.unwrap_or(0))? {
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
    // Gemma's older files have both keys; its MLP takes the newer one.
    let act = match preset.family {
        Family::Gemma2 | Family::Gemma3Text => {
            r.get("hidden_act");
            "hidden_activation"
        }
        _ => "hidden_act",
    };
    let act = r.activation(act, preset.hidden_act)?;
    let tied = preset.tie_word_embeddings;
    let positions = r.positive("max_position_embeddings", preset.max_position_embeddings)?;
    Ok(LlamaConfig {
        intermediate_size: r.positive("intermediate_size", preset.intermediate_size)?,
        num_hidden_layers: r.positive("num_hidden_layers", preset.num_hidden_layers)?,
        vocab_size: r.positive("vocab_size", preset.vocab_size)?,
        rms_norm_eps: r.float("rms_norm_eps", preset.rms_norm_eps)?,
        tie_word_embeddings: r.flag("tie_word_embeddings", tied)?,
        hidden_size: hidden,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings: positions,
        hidden_act: act,
        ..preset
    })
}

/// Mistral's, Qwen 2's and Phi-3's classes have no such keys.
fn biases(r: &Reader, config: &mut LlamaConfig) -> Result<(), ModelError> {
    match config.family {
        Family::Mistral | Family::Qwen2 | Family::Phi3 => return Ok(()),
        _ => {
            config.attention_bias = r.flag("attention_bias", false)?;
            config.output_bias = config.attention_bias;
        }
    }
    if matches!(config.family, Family::Llama | Family::Smollm3) {
        config.mlp_bias = r.flag("mlp_bias", false)?;
    }
    Ok(())
}

/// What Gemma 2 and 3 have beside sizes. Gemma 3's class has a soft limit of the scores that its
/// attention does not use.
fn gemma(r: &Reader, config: &mut LlamaConfig) -> Result<(), ModelError> {
    let positive = |key: &str, default: Option<f64>| -> Result<Option<f64>, ModelError> {
        let given = match r.has(key) {
            true => r.typed(key, "a number", Value::as_f64)?,
            false => default,
        };
        match given {
            Some(n) if !(n.is_finite() && n > 0.0) => Err(r.error(&format!("\"{key}\" is {n}"))),
            given => Ok(given),
        }
    };
    config.query_pre_attn_scalar = positive("query_pre_attn_scalar", config.query_pre_attn_scalar)?;
    config.final_logit_softcapping =
        positive("final_logit_softcapping", config.final_logit_softcapping)?;
    let scores = positive("attn_logit_softcapping", config.attn_logit_softcapping)?;
    config.attn_logit_softcapping = scores.filter(|_| config.family == Family::Gemma2);
    if r.flag("use_bidirectional_attention", false)? {
        return Err(r.error("\"use_bidirectional_attention\" is true; this is not supported"));
    }
    // Of generation: how the cache is laid out.
    r.get("cache_implementation");
    Ok(())
}

/// Layers that see a window, where it changes anything.
fn sliding_window(r: &Reader, config: &LlamaConfig) -> Result<Option<SlidingWindow>, ModelError> {
    let family = config.family;
    // In Qwen's files `sliding_window` alone means nothing.
    let used = match family {
        Family::Qwen2 | Family::Qwen3 | Family::Smollm3 => r.flag("use_sliding_window", false)?,
        _ => r.flag("use_sliding_window", true)?,
    };
    let tokens = window_tokens(r, family, used)?;
    let rule = sliding_rule(r, config, used)?;
    let given = layer_types(r, config.num_hidden_layers)?;
    // These classes do not read the list: it must not matter.
    let unread = matches!(
        family,
        Family::Llama | Family::Mistral | Family::Olmo2 | Family::Phi3
    );
    if let Some(given) = &given
        && unread
        && given.contains(&true)
        && (*given != rule || tokens.is_none())
    {
        let name = family.model_type();
        return Err(r.error(&format!(
            "sliding layers in \"layer_types\" of a {name} are not known"
        )));
    }
    let slides = match &given {
        Some(given) if !unread => given.clone(),
        _ => rule,
    };
    if !slides.contains(&true) {
        // LLaMA and OLMo 2 do not read the key: what it says must not matter.
        let short = tokens.is_some_and(|tokens| tokens < config.context_window());
        if short && used && matches!(family, Family::Llama | Family::Olmo2) {
            return Err(r.error(&format!(
                "a sliding window of {} tokens (\"sliding_window\") in a {} is not known",
                tokens.unwrap_or_default(),
                family.model_type()
            )));
        }
        return Ok(None);
    }
    match tokens {
        Some(tokens) if config.window_counts(tokens, config.context_window()) => {
            Ok(Some(SlidingWindow {
                tokens,
                layers: slides,
            }))
        }
        Some(_) => Ok(None),
        None if given.is_some() => {
            Err(r.error("\"layer_types\" has sliding layers, but there is no \"sliding_window\""))
        }
        None => Ok(None),
    }
}

/// How far a sliding layer sees: as the file says, else as transformers' class of the family does.
fn window_tokens(r: &Reader, family: Family, used: bool) -> Result<Option<usize>, ModelError> {
    if r.has("sliding_window") {
        return Ok(Some(r.size("sliding_window", 0)?).filter(|&tokens| tokens > 0));
    }
    Ok(match family {
        Family::Mistral | Family::Gemma2 | Family::Gemma3Text => Some(4096),
        Family::Qwen2 | Family::Qwen3 if used => Some(4096),
        _ => None,
    })
}

/// For each layer whether it slides by its family's rule; none for LLaMA, which has no rule.
fn sliding_rule(r: &Reader, config: &LlamaConfig, used: bool) -> Result<Vec<bool>, ModelError> {
    let family = config.family;
    let from = match family {
        Family::Qwen2 | Family::Qwen3 => r.size("max_window_layers", 28)?,
        _ => r.size("max_window_layers", 0)?,
    };
    let pattern = match family {
        Family::Gemma3Text => {
            let other = r.size("_sliding_window_pattern", 6)?;
            r.positive("sliding_window_pattern", other)?
        }
        _ => 1,
    };
    let slides = |layer: usize| match family {
        Family::Llama | Family::Olmo2 => false,
        Family::Mistral | Family::Phi3 => true,
        Family::Qwen2 | Family::Qwen3 => layer >= from,
        Family::Gemma2 => layer.is_multiple_of(2),
        Family::Gemma3Text => !(layer + 1).is_multiple_of(pattern),
        Family::Smollm3 => config.unrotated_layers.contains(&layer),
    };
    Ok(match family {
        Family::Llama => Vec::new(),
        _ => (0..config.num_hidden_layers)
            .map(|layer| used && slides(layer))
            .collect(),
    })
}

/// For each layer whether it slides, where the file lists them.
fn layer_types(r: &Reader, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(value) = r.get("layer_types") else {
        return Ok(None);
    };
    let read = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let listed = value.as_array().map(|kinds| kinds.iter().map(read));
    let slides: Option<Vec<bool>> = listed.and_then(Iterator::collect);
    match slides {
        Some(slides) if slides.len() == layers => Ok(Some(slides)),
        Some(slides) => Err(r.error(&format!(
            "\"layer_types\" lists {} layers of {layers}",
            slides.len()
        ))),
        None => Err(r.error(
            "\"layer_types\" other than full_attention and sliding_attention are not supported",
        )),
    }
}

/// SmolLM 3: 0 marks the layers that do not rotate.
fn unrotated(r: &Reader, layers: usize) -> Result<Vec<usize>, ModelError> {
    let interval = r.positive("no_rope_layer_interval", 4)?;
    let read = |v: &Value| v.as_array()?.iter().map(Value::as_u64).collect();
    let marks: Option<Vec<u64>> = r.typed("no_rope_layers", "a list of 0 and 1", read)?;
    match marks {
        Some(marks) if marks.len() == layers => {
            Ok((0..layers).filter(|&layer| marks[layer] == 0).collect())
        }
        Some(marks) => Err(r.error(&format!(
            "\"no_rope_layers\" lists {} layers of {layers}",
            marks.len()
        ))),
        None => Ok((0..layers)
            .filter(|layer| (layer + 1).is_multiple_of(interval))
            .collect()),
    }
}

/// The configuration of a language model alone, in transformers' keys.
pub(super) fn decoder_json(c: &LlamaConfig) -> Value {
    let act = match c.family {
        Family::Gemma2 | Family::Gemma3Text => "hidden_activation",
        _ => "hidden_act",
    };
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
        (act): c.hidden_act,
        "tie_word_embeddings": c.tie_word_embeddings,
    });
    if !matches!(c.family, Family::Mistral | Family::Qwen2 | Family::Phi3) {
        out["attention_bias"] = json!(c.attention_bias);
    }
    if matches!(c.family, Family::Llama | Family::Smollm3) {
        out["mlp_bias"] = json!(c.mlp_bias);
    }
    if let Some(d) = c.head_dim {
        out["head_dim"] = json!(d);
    }
    if let Some(scalar) = c.query_pre_attn_scalar {
        out["query_pre_attn_scalar"] = json!(scalar);
        out["attn_logit_softcapping"] = json!(c.attn_logit_softcapping);
        out["final_logit_softcapping"] = json!(c.final_logit_softcapping);
    }
    if c.family == Family::Smollm3 {
        let rotates = |layer| u8::from(!c.unrotated_layers.contains(&layer));
        let marks: Vec<u8> = (0..c.num_hidden_layers).map(rotates).collect();
        out["no_rope_layers"] = json!(marks);
    }
    write_window(c, &mut out);
    rope_json(c, &mut out);
    out
}

fn write_window(c: &LlamaConfig, out: &mut Value) {
    let Some(window) = &c.sliding_window else {
        // Their classes have a window unless the file says otherwise.
        if matches!(
            c.family,
            Family::Mistral | Family::Gemma2 | Family::Gemma3Text
        ) {
            out["sliding_window"] = match c.family {
                Family::Mistral => Value::Null,
                _ => json!(c.context_window()),
            };
        }
        return;
    };
    out["sliding_window"] = json!(window.tokens);
    if matches!(c.family, Family::Qwen2 | Family::Qwen3 | Family::Smollm3) {
        out["use_sliding_window"] = json!(true);
    }
    let kinds = window.layers.iter().map(|slides| match slides {
        true => "sliding_attention",
        false => "full_attention",
    });
    // Mistral's and Phi-3's classes slide in every layer, and have no such key.
    if !matches!(c.family, Family::Mistral | Family::Phi3) {
        out["layer_types"] = kinds.collect();
    }
}
