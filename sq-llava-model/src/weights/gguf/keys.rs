//! Metadata of an architecture that may change what is computed.

use sq_llava_data::gguf::{GgufHeader, GgufValue};

use super::arch::Architecture;
use crate::config::Family;

/// Keys that are read, or say nothing about what is computed.
const KNOWN: [&str; 17] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

/// Keys that are read beside the scaling "yarn".
const YARN: [&str; 4] = [
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Keys that are read of some architectures.
fn of_family(name: &str, family: Family) -> bool {
    match name {
        "attention.sliding_window" => {
            matches!(family, Family::Gemma2 | Family::Gemma3Text | Family::Phi3)
        }
        "attention.sliding_window_pattern" => {
            matches!(family, Family::Gemma2 | Family::Gemma3Text)
        }
        "rope.scaling.attn_factor" => family == Family::Phi3,
        "attn_logit_softcapping" => family == Family::Gemma2,
        "final_logit_softcapping" => matches!(family, Family::Gemma2 | Family::Gemma3Text),
        "rope.freq_base_swa" => family == Family::Gemma3Text,
        _ => false,
    }
}

/// The keys of an architecture that are neither known nor at the value of a plain decoder, with
/// their values; `context` is the context's length in tokens.
pub(super) fn unknown(header: &GgufHeader, arch: Architecture, context: usize) -> Vec<String> {
    let prefix = format!("{}.", arch.name());
    let kind = header.metadata.get(&format!("{prefix}rope.scaling.type"));
    let yarn = arch.takes_yarn() && kind == Some(&GgufValue::Text("yarn".into()));
    let own = header
        .metadata
        .iter()
        .filter_map(|(key, value)| Some((key, key.strip_prefix(&prefix)?, value)));
    own.filter(|(_, name, value)| {
        !(KNOWN.contains(name)
            || of_family(name, arch.0)
            || (yarn && YARN.contains(name))
            || is_plain(name, value, context))
    })
    .map(|(key, _, value)| format!("\"{key}\": {}", shown(value)))
    .collect()
}

fn is_plain(name: &str, value: &GgufValue, context: usize) -> bool {
    let number = match value {
        GgufValue::Integer(n) => Some(*n as f64),
        GgufValue::F32(x) => Some(f64::from(*x)),
        GgufValue::F64(x) => Some(*x),
        _ => None,
    };
    match name {
        "expert_count" | "expert_used_count" => number.is_some_and(|n| n <= 1.0),
        "leading_dense_block_count" | "pooling_type" => number == Some(0.0),
        "rope.scaling.attn_factor" | "logit_scale" | "residual_scale" | "embedding_scale" => {
            number == Some(1.0)
        }
        // A window as long as the context hides nothing.
        "attention.sliding_window" => number.is_some_and(|n| n == 0.0 || n >= context as f64),
        "attention.causal" => *value == GgufValue::Bool(true),
        "use_parallel_residual" => *value == GgufValue::Bool(false),
        // llama.cpp's note of how the converter orders the rows, which is read as it is.
        "tensor_data_layout" => *value == GgufValue::Text("Meta AI original pth".into()),
        _ => false,
    }
}

fn shown(value: &GgufValue) -> String {
    match value {
        GgufValue::Integer(n) => n.to_string(),
        GgufValue::F32(x) => x.to_string(),
        GgufValue::F64(x) => x.to_string(),
        GgufValue::Bool(flag) => flag.to_string(),
        GgufValue::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        _ => "a list".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_03_metadata_of_another_architecture_is_found() {
        let mut header = GgufHeader {
            path: "x.gguf".into(),
            metadata: Default::default(),
            tensors: vec![],
        };
        let mut put = |key: &str, value| {
            header.metadata.insert(key.into(), value);
            let arch = key.split('.').next().and_then(Architecture::of);
            unknown(&header, arch.unwrap_or(Architecture(Family::Llama)), 4096)
        };
        for (key, plain) in [
            ("general.name", GgufValue::Text("a".into())),
            ("llama.vocab_size", GgufValue::Integer(32000)),
            ("llama.expert_count", GgufValue::Integer(0)),
            ("llama.attention.sliding_window", GgufValue::Integer(4096)),
            ("llama.attention.causal", GgufValue::Bool(true)),
            ("llama.rope.scaling.attn_factor", GgufValue::F32(1.0)),
            ("gemma2.attention.sliding_window", GgufValue::Integer(512)),
            ("gemma2.final_logit_softcapping", GgufValue::F32(30.0)),
            ("gemma3.rope.freq_base_swa", GgufValue::F32(1e4)),
        ] {
            assert!(put(key, plain).is_empty(), "{key}");
        }
        for (key, strange) in [
            ("llama.rope.scaling.yarn_beta_fast", GgufValue::F32(32.0)),
            ("llama.attention.scale", GgufValue::F32(0.1)),
            ("llama.attention.sliding_window", GgufValue::Integer(512)),
            ("llama.final_logit_softcapping", GgufValue::F32(30.0)),
            ("qwen2.attention.sliding_window", GgufValue::Integer(512)),
            ("olmo2.attention.sliding_window", GgufValue::Integer(512)),
            ("gemma3.attn_logit_softcapping", GgufValue::F32(50.0)),
            (
                "llama.rope.dimension_sections",
                GgufValue::Integers(vec![1]),
            ),
        ] {
            let found = put(key, strange).join(", ");
            assert!(found.contains(key), "{found}");
        }
        let kind = GgufValue::Text("yarn".into());
        let found = put("llama.rope.scaling.type", kind).join(", ");
        assert!(!found.contains("yarn_beta_fast"), "{found}");
    }
}
