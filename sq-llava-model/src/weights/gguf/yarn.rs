//! YaRN in llama.cpp's files. Cosines and sines are multiplied there by `1 + 0.1 ln(factor)`, whatever
//! the file says, and by `rope.scaling.attn_factor`.

use sq_llava_data::gguf::{GgufField, GgufHeader};

use super::to_file::size_field;
use crate::error::ModelError;
use crate::ops::rope::RopeScaling;

/// Rotations in the old context at the ends of the ramp, high and low: the only ones that llama.cpp
/// knows for most architectures.
const BETAS: [f64; 2] = [32.0, 1.0];

/// What cosines and sines are multiplied by where a file says nothing.
fn usual(factor: f64) -> f64 {
    1.0 + 0.1 * factor.ln()
}

/// What llama.cpp computes otherwise.
pub(super) fn difference(scaling: &RopeScaling) -> Option<String> {
    let &RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        truncate,
        ..
    } = scaling
    else {
        return None;
    };
    let other = if [beta_fast, beta_slow] != BETAS {
        format!("\"beta_fast\" {beta_fast} and \"beta_slow\" {beta_slow}, not 32 and 1")
    } else if !truncate {
        "\"truncate\" false".into()
    } else if factor <= 1.0 {
        format!("factor {factor}, which lengthens nothing")
    } else {
        return None;
    };
    Some(format!("rope scaling \"yarn\" with {other}"))
}

/// The metadata of YaRN; of other kinds none.
pub(super) fn fields(scaling: &RopeScaling) -> Vec<(&'static str, GgufField)> {
    let &RopeScaling::Yarn {
        factor,
        attention_factor,
        original_max_position_embeddings: old,
        ..
    } = scaling
    else {
        return vec![];
    };
    let mut out = vec![
        ("rope.scaling.type", "yarn".into()),
        ("rope.scaling.factor", GgufField::F32(factor as f32)),
        ("rope.scaling.original_context_length", size_field(old)),
    ];
    let more = (attention_factor / usual(factor)) as f32;
    if (more - 1.0).abs() > f32::EPSILON {
        out.push(("rope.scaling.attn_factor", GgufField::F32(more)));
    }
    out
}

/// The YaRN of a file whose keys begin with `name`, in a context of `context` tokens. Converters
/// write the ends of the ramp and the model's own factor of cosines and sines
/// (`yarn_attn_factor`) too.
///
/// # Errors
/// If a value cannot be used.
pub(super) fn read(
    header: &GgufHeader,
    name: &str,
    factor: f64,
    context: usize,
) -> Result<RopeScaling, ModelError> {
    let number = |key: &str, default: f64| -> Result<f64, ModelError> {
        let key = format!("{name}.rope.scaling.{key}");
        match header.number(&key)?.unwrap_or(default) {
            n if n.is_finite() && n > 0.0 => Ok(n),
            n => Err(header.error(format!("\"{key}\" is {n}")).into()),
        }
    };
    let old = header.size(&format!("{name}.rope.scaling.original_context_length"))?;
    let whole = usual(factor) * number("attn_factor", 1.0)?;
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: number("yarn_beta_fast", BETAS[0])?,
        beta_slow: number("yarn_beta_slow", BETAS[1])?,
        truncate: true,
        attention_factor: number("yarn_attn_factor", whole)?,
        original_max_position_embeddings: old.filter(|&n| n > 0).unwrap_or(context),
    })
}
