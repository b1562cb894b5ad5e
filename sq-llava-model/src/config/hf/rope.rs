//! The keys of rotary frequencies, read and written.

use serde_json::{Value, json};

use super::known::Described;
use super::object::Reader;
use crate::config::{Family, LlamaConfig};
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
    let given = rope_object(r)?;
    // As in transformers the outer number goes before the inner one; Phi-3's class always has it.
    let original = r.size(
        "original_max_position_embeddings",
        match config.family {
            Family::Phi3 => 4096,
            _ => 0,
        },
    )?;
    config.rope_theta = base(r, "rope_theta", outer)?;
    partial(r, given.as_ref(), config)?;
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
        if rope_scaling(&sliding, config, 1)?.is_some() {
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
    config.rope_scaling = rope_scaling(&given, config, original)?;
    unknown.extend(given.unknown(Described::Rope));
    Ok(())
}

/// Where theta and scaling stand nested: "rope_parameters" in transformers 5.
fn rope_object<'a>(r: &Reader<'a>) -> Result<Option<Reader<'a>>, ModelError> {
    match (r.inside("rope_scaling")?, r.inside("rope_parameters")?) {
        (Some(_), Some(_)) if r.get("rope_scaling") != r.get("rope_parameters") => Err(r.error(
            "\"rope_scaling\" and \"rope_parameters\" differ; take out the one that is not meant",
        )),
        (one, other) => Ok(one.or(other)),
    }
}

/// The share of a head that rotates, which Phi-3's class alone knows; the inner number goes before
/// the outer one. In other families the key stays unread, and must be 1.
fn partial(r: &Reader, given: Option<&Reader>, config: &mut LlamaConfig) -> Result<(), ModelError> {
    if config.family != Family::Phi3 {
        return Ok(());
    }
    let outer = r.float("partial_rotary_factor", 1.0)?;
    let share = match given {
        Some(given) => given.float("partial_rotary_factor", outer)?,
        None => outer,
    };
    config.partial_rotary_factor = share;
    let (width, rotated) = (config.head_dim(), config.rotated_width());
    if !(share > 0.0 && share <= 1.0) || rotated == 0 {
        return Err(r.error(&format!(
            "\"partial_rotary_factor\" is {share}: of a head of width {width} nothing or more than all would rotate"
        )));
    }
    Ok(())
}

fn base(r: &Reader, key: &str, theta: f64) -> Result<f64, ModelError> {
    match theta.is_finite() && theta > 0.0 {
        true => Ok(theta),
        false => Err(r.error(&format!("\"{key}\" is {theta}"))),
    }
}

/// The scaling that an object describes; `original` is the context before it was scaled.
fn rope_scaling(
    r: &Reader,
    config: &LlamaConfig,
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
    match (config.family, kind) {
        (_, "default") => Ok(None),
        // Its class has no other kind, and older files call it so.
        (Family::Phi3, "longrope" | "su" | "yarn") | (_, "longrope") => {
            long_rope(r, config, original).map(Some)
        }
        (Family::Phi3, other) => Err(r.error(&format!(
            "rope scaling \"{other}\" in a phi3 is not known; known is longrope"
        ))),
        (_, "linear") => Ok(Some(RopeScaling::Linear { factor: factor()? })),
        (_, "llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_position_embeddings: original,
        })),
        (_, "yarn") => yarn(r, config, original).map(Some),
        (_, "dynamic") if config.rotated_width() == 2 => {
            Err(r.error("rope scaling \"dynamic\" of heads of width 2 is not defined"))
        }
        (_, "dynamic") => Ok(Some(RopeScaling::Dynamic {
            factor: factor()?,
            original_max_position_embeddings: config.max_position_embeddings,
        })),
        (_, other) => Err(r.error(&format!(
            "rope scaling \"{other}\" is not supported; known are linear, dynamic, yarn, longrope and llama3"
        ))),
    }
}

/// A number that transformers' YaRN and longrope take from others unless it is given.
fn above_zero(r: &Reader, key: &str, default: f64) -> Result<f64, ModelError> {
    match r.float(key, default)? {
        n if n.is_finite() && n > 0.0 => Ok(n),
        n => Err(r.error(&format!("\"{key}\" of rope scaling is {n}"))),
    }
}

/// The factor of cosines and sines, to the digits that JSON keeps exactly.
fn attention_factor(r: &Reader, usual: f64) -> Result<f64, ModelError> {
    let factor = above_zero(r, "attention_factor", usual)?;
    Ok((factor * 1e12).round() / 1e12)
}

/// The defaults are those of `_compute_yarn_parameters`.
fn yarn(r: &Reader, config: &LlamaConfig, original: usize) -> Result<RopeScaling, ModelError> {
    let ratio = config.max_position_embeddings as f64 / original as f64;
    let factor = above_zero(r, "factor", ratio)?;
    let magnitude = |scale: f64| match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * scale * factor.ln() + 1.0,
    };
    let (mscale, all_dim) = (r.float("mscale", 0.0)?, r.float("mscale_all_dim", 0.0)?);
    let usual = match mscale != 0.0 && all_dim != 0.0 {
        true => magnitude(mscale) / magnitude(all_dim),
        false => magnitude(1.0),
    };
    let or = |value: f64, default: f64| if value == 0.0 { default } else { value };
    let truncate = r.flag("truncate", true)?;
    // Where a class has frequencies for both kinds of layers transformers looks for the key in
    // another place, and truncates.
    if !truncate && config.rope_local_base_freq.is_some() {
        return Err(r.error("\"truncate\" of rope scaling is false; this is not supported here"));
    }
    let fast = or(r.float("beta_fast", 32.0)?, 32.0);
    let slow = or(r.float("beta_slow", 1.0)?, 1.0);
    if !(fast > 0.0 && slow > 0.0) {
        return Err(r.error(&format!(
            "\"beta_fast\" {fast} and \"beta_slow\" {slow} of rope scaling must be above 0"
        )));
    }
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: fast,
        beta_slow: slow,
        truncate,
        attention_factor: attention_factor(r, usual)?,
        original_max_position_embeddings: original,
    })
}

/// The defaults are those of `_compute_longrope_parameters`.
fn long_rope(r: &Reader, config: &LlamaConfig, original: usize) -> Result<RopeScaling, ModelError> {
    let width = config.rotated_width();
    let list = |key| -> Result<Vec<f64>, ModelError> {
        let read = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect();
        let list: Vec<f64> = r.typed(key, "a list of numbers", read)?.unwrap_or_default();
        if list.len() != width / 2 || !width.is_multiple_of(2) {
            return Err(r.error(&format!(
                "rope scaling: \"{key}\" holds {} numbers, but {width} rotating entries need {}",
                list.len(),
                width / 2
            )));
        }
        match list.iter().all(|&f| f.is_finite() && f > 0.0) {
            true => Ok(list),
            false => Err(r.error(&format!(
                "rope scaling: \"{key}\" holds numbers that are not above 0"
            ))),
        }
    };
    let (short, long) = (list("short_factor")?, list("long_factor")?);
    let ratio = config.max_position_embeddings as f64 / original as f64;
    let factor = above_zero(r, "factor", ratio)?;
    let usual = match factor <= 1.0 {
        true => 1.0,
        false => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let attention = attention_factor(r, usual)?;
    if short == long && attention == 1.0 {
        return Ok(RopeScaling::Factors { factors: short });
    }
    Ok(RopeScaling::LongRope {
        short_factor: short,
        long_factor: long,
        attention_factor: attention,
        original_max_position_embeddings: original,
    })
}

/// Writes base and scaling.
pub(super) fn rope_json(c: &LlamaConfig, out: &mut Value) {
    if let Some(local) = c.rope_local_base_freq {
        out["rope_local_base_freq"] = json!(local);
    }
    if c.family == Family::Phi3 {
        out["partial_rotary_factor"] = json!(c.partial_rotary_factor);
    }
    let Some(scaling) = &c.rope_scaling else {
        return;
    };
    let written = scaling_json(c, scaling);
    // The class's own default would go before a number inside.
    if c.family == Family::Phi3
        && let Some(original) = written.get("original_max_position_embeddings")
    {
        out["original_max_position_embeddings"] = original.clone();
    }
    out["rope_scaling"] = written;
}

fn scaling_json(c: &LlamaConfig, scaling: &RopeScaling) -> Value {
    match scaling {
        // transformers' longrope with equal lists and no attention factor divides likewise.
        RopeScaling::Factors { factors } => json!({
            "rope_type": "longrope",
            "factor": 1.0,
            "attention_factor": 1.0,
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": c.max_position_embeddings,
        }),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            attention_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "longrope",
            "attention_factor": attention_factor,
            "short_factor": short_factor,
            "long_factor": long_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Linear { factor } => {
            json!({"rope_type": "linear", "type": "linear", "factor": factor})
        }
        RopeScaling::Dynamic { factor, .. } => {
            json!({"rope_type": "dynamic", "type": "dynamic", "factor": factor})
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "truncate": truncate,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::SqLlavaConfig;
    use crate::error::ModelError;
    use crate::ops::rope::RopeScaling;

    fn read(config: &Value) -> Result<SqLlavaConfig, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        SqLlavaConfig::from_hf(&path, false)
    }

    fn refused(config: &Value, words: &[&str]) {
        let message = read(config).expect_err("refused").to_string();
        for word in words.iter().chain(&["config.json"]) {
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    /// The lines that Qwen 2.5's card has for long texts.
    #[test]
    fn yarn_lengthens_the_context() {
        let mut config = json!({"model_type": "qwen2", "max_position_embeddings": 32768,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768,
                "type": "yarn"}});
        assert_eq!(read(&config).unwrap().llama.context_window(), 131_072);
        config["rope_scaling"]["beta_fast"] = json!(-1);
        refused(&config, &["beta_fast"]);
        config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
        assert_eq!(read(&config).unwrap().llama.context_window(), 65_536);
    }

    #[test]
    fn a_phi3_knows_one_kind_of_scaling_and_rotates_in_part() {
        let list = vec![1.5; 24];
        let long = |kind: &str| {
            json!({"model_type": "phi3", "partial_rotary_factor": 0.5,
                "max_position_embeddings": 131072,
                "rope_scaling": {"type": kind, "short_factor": list, "long_factor": list}})
        };
        for kind in ["longrope", "su", "yarn"] {
            let llama = read(&long(kind)).unwrap().llama;
            assert_eq!(llama.rotated_width(), 48);
            let Some(RopeScaling::LongRope {
                original_max_position_embeddings,
                attention_factor,
                ..
            }) = llama.rope_scaling
            else {
                panic!("{:?}", llama.rope_scaling);
            };
            // The class's own number.
            assert_eq!(original_max_position_embeddings, 4096);
            let expected = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
            assert!((attention_factor - expected).abs() < 1e-11);
        }
        refused(&long("dynamic"), &["dynamic", "phi3"]);
        for factor in [0.0, 1.5, 0.01] {
            let config = json!({"model_type": "phi3", "partial_rotary_factor": factor});
            refused(&config, &["partial_rotary_factor"]);
        }
    }

    #[test]
    fn numbers_that_scale_nothing_are_refused() {
        let llama = |scaling: Value| {
            json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
                "rope_scaling": scaling})
        };
        let list = vec![1.5; 8];
        for (scaling, word) in [
            (json!({"type": "dynamic"}), "factor"),
            (json!({"type": "dynamic", "factor": 0.5}), "below 1"),
            (json!({"type": "yarn", "factor": -2.0}), "factor"),
            (
                json!({"type": "yarn", "factor": 2.0, "attention_factor": -1.0}),
                "attention_factor",
            ),
            (
                json!({"type": "longrope", "short_factor": [0, 1, 1, 1, 1, 1, 1, 1],
                    "long_factor": list}),
                "short_factor",
            ),
        ] {
            refused(&llama(scaling), &[word]);
        }
    }
}
