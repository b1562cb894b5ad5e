//! The keys of rotary frequencies, read and written.

use serde_json::{Value, json};

use super::known::Described;
use super::object::Reader;
use crate::config::LlamaConfig;
use crate::error::ModelError;
use crate::ops::rope::RopeScaling;

/// Base and scaling of the rotary frequencies.
pub(super) fn rope(
    r: &Reader,
    config: &mut LlamaConfig,
    unknown: &mut Vec<String>,
) -> Result<(), ModelError> {
    let outer = r.float("rope_theta", config.rope_theta)?;
    if let Some(local) = config.rope_local_base_freq {
        config.rope_local_base_freq = Some(base(
            r,
            "rope_local_base_freq",
            r.float("rope_local_base_freq", local)?,
        )?);
    }
    // transformers 5 nests theta and scaling in "rope_parameters".
    let given = match (r.inside("rope_scaling")?, r.inside("rope_parameters")?) {
        (Some(_), Some(_)) if r.get("rope_scaling") != r.get("rope_parameters") => {
            return Err(r.error(
                "\"rope_scaling\" and \"rope_parameters\" differ; take out the one that is not meant",
            ));
        }
        (one, other) => one.or(other),
    };
    // As in transformers the outer number goes before the inner one.
    let original = r.size("original_max_position_embeddings", 0)?;
    config.rope_theta = base(r, "rope_theta", outer)?;
    let Some(mut given) = given else {
        return Ok(());
    };
    // Gemma 3 has frequencies for both kinds of layers there.
    if let Some(local) = config.rope_local_base_freq
        && let (Some(sliding), Some(full)) = (
            given.inside("sliding_attention")?,
            given.inside("full_attention")?,
        )
    {
        let theta = sliding.float("rope_theta", local)?;
        config.rope_local_base_freq = Some(base(&sliding, "rope_theta", theta)?);
        if rope_scaling(&sliding, config.head_dim(), 1)?.is_some() {
            return Err(sliding.error("scaled frequencies in sliding layers are not supported"));
        }
        unknown.extend(sliding.unknown(Described::Rope));
        unknown.extend(given.unknown(Described::Rope));
        given = full;
    }
    let theta = given.float("rope_theta", outer)?;
    config.rope_theta = base(&given, "rope_theta", theta)?;
    let positions = config.max_position_embeddings;
    let original = match original {
        0 => given.positive("original_max_position_embeddings", positions)?,
        n => n,
    };
    config.rope_scaling = rope_scaling(&given, config.head_dim(), original)?;
    unknown.extend(given.unknown(Described::Rope));
    Ok(())
}

fn base(r: &Reader, key: &str, theta: f64) -> Result<f64, ModelError> {
    match theta.is_finite() && theta > 0.0 {
        true => Ok(theta),
        false => Err(r.error(&format!("\"{key}\" is {theta}"))),
    }
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

/// Writes base and scaling.
pub(super) fn rope_json(c: &LlamaConfig, out: &mut Value) {
    if let Some(local) = c.rope_local_base_freq {
        out["rope_local_base_freq"] = json!(local);
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
}
