//! Configuration of a LLaMA from GGUF metadata and the tensors' shapes.

use sq_llava_data::gguf::{GgufHeader, GgufTensor};

use super::keys::unknown;
use super::names::layer;
use crate::config::{LlamaConfig, SqLlavaConfig, judge_unknown};
use crate::error::ModelError;
use crate::ops::rope::RopeScaling;

/// Reads the configuration; `rope_factors` are the values of `rope_freqs.weight`.
///
/// # Errors
/// If a key is missing, the architecture is another, sizes differ from the tensors', or (unless
/// `allow_unused`) a key may change what is computed.
pub(super) fn read_config(
    header: &GgufHeader,
    rope_factors: Option<Vec<f32>>,
    allow_unused: bool,
) -> Result<SqLlavaConfig, ModelError> {
    let fail = |reason: String| ModelError::from(header.error(reason));
    match header.text("general.architecture")? {
        Some("llama") => {}
        other => {
            return Err(fail(format!(
                "the architecture {} is not supported, only llama",
                other.map_or("(none named)".into(), |name| format!("\"{name}\""))
            )));
        }
    }
    for (key, what) in [
        (
            "split.count",
            "a file in parts; join them with `llama-gguf-split --merge`",
        ),
        (
            "llama.expert_count",
            "a mixture of experts, which is not supported",
        ),
    ] {
        if let Some(n) = header.size(key)?.filter(|&n| n > 1) {
            return Err(fail(format!("\"{key}\" is {n}: this is {what}")));
        }
    }
    let size = |key: &str| -> Result<Option<usize>, ModelError> {
        let key = format!("llama.{key}");
        match header.size(&key)? {
            Some(0) => Err(fail(format!("\"{key}\" is 0"))),
            n => Ok(n),
        }
    };
    let needed = |key: &str| -> Result<usize, ModelError> {
        size(key)?.ok_or_else(|| fail(format!("no \"llama.{key}\" in the metadata")))
    };
    let hidden = needed("embedding_length")?;
    let heads = needed("attention.head_count")?;
    let kv_heads = size("attention.head_count_kv")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fail(format!(
            "{heads} attention heads cannot share {kv_heads} key-value heads"
        )));
    }
    let head_dim = size("attention.key_length")?.unwrap_or(hidden / heads);
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(n) = size(key)?.filter(|&n| n != head_dim) {
            return Err(fail(format!(
                "\"llama.{key}\" is {n}, but heads are {head_dim} wide; this is not supported"
            )));
        }
    }
    if head_dim == 0 || head_dim % 2 == 1 {
        return Err(fail(format!("heads of width {head_dim} cannot be rotated")));
    }
    let shapes = Shapes { header };
    let [vocabulary, _] = shapes.of("token_embd.weight")?;
    let layers = needed("block_count")?;
    let found = header.tensors.iter().filter_map(|t| layer(&t.name)).max();
    if found.map(|last| last + 1) != Some(layers) {
        return Err(fail(format!(
            "\"llama.block_count\" is {layers}, but the tensors are those of {} layers",
            found.map_or(0, |last| last.saturating_add(1))
        )));
    }
    // The model is laid out by these numbers before any tensor is looked at: they must be those
    // of the file's own tensors, which end where the file ends.
    let intermediate = needed("feed_forward_length")?;
    for (name, rows, columns) in [
        ("token_embd.weight", Some(vocabulary), hidden),
        ("blk.0.attn_q.weight", heads.checked_mul(head_dim), hidden),
        (
            "blk.0.attn_k.weight",
            kv_heads.checked_mul(head_dim),
            hidden,
        ),
        ("blk.0.ffn_gate.weight", Some(intermediate), hidden),
    ] {
        let shape = shapes.of(name)?;
        if rows != Some(shape[0]) || shape[1] != columns {
            return Err(fail(format!(
                "tensor \"{name}\" is {shape:?}, but the metadata make it [{}, {columns}]",
                rows.map_or("above 2⁶⁴".into(), |rows| rows.to_string())
            )));
        }
    }

    let context = needed("context_length")?;
    judge_unknown(&header.path, &unknown(header, context), allow_unused)?;
    let llama = LlamaConfig::new()
        .with_hidden_size(hidden)
        .with_intermediate_size(intermediate)
        .with_num_hidden_layers(layers)
        .with_num_attention_heads(heads)
        .with_num_key_value_heads(kv_heads)
        .with_head_dim((head_dim * heads != hidden).then_some(head_dim))
        .with_vocab_size(vocabulary)
        .with_max_position_embeddings(context)
        .with_rms_norm_eps(
            header
                .number("llama.attention.layer_norm_rms_epsilon")?
                .unwrap_or(1e-5),
        )
        .with_rope_theta(header.number("llama.rope.freq_base")?.unwrap_or(10_000.0))
        .with_rope_scaling(rope_scaling(header, rope_factors, head_dim)?)
        .with_tie_word_embeddings(shapes.find("output.weight").is_none())
        .with_attention_bias(shapes.find("blk.0.attn_q.bias").is_some())
        .with_output_bias(shapes.find("blk.0.attn_output.bias").is_some())
        .with_mlp_bias(shapes.find("blk.0.ffn_gate.bias").is_some());
    let mut config = SqLlavaConfig::new(llama);
    let id = |key: &str| -> Result<Option<i64>, ModelError> {
        let id = header.size(&format!("tokenizer.ggml.{key}_token_id"))?;
        Ok(id.map(|id| id as i64))
    };
    config.bos_token_id = id("bos")?;
    for key in ["eos", "eot"] {
        if let Some(id) = id(key)?
            && !config.eos_token_ids.contains(&id)
        {
            config.eos_token_ids.push(id);
        }
    }
    config.pad_token_id = id("padding")?;
    Ok(config)
}

struct Shapes<'a> {
    header: &'a GgufHeader,
}

impl Shapes<'_> {
    fn find(&self, name: &str) -> Option<&GgufTensor> {
        self.header.tensors.iter().find(|t| t.name == name)
    }

    fn of(&self, name: &str) -> Result<[usize; 2], ModelError> {
        let tensor = self
            .find(name)
            .ok_or_else(|| self.header.error(format!("no tensor \"{name}\" inside")))?;
        let shape: Result<[usize; 2], _> = tensor.shape.clone().try_into();
        shape.map_err(|shape| {
            let reason = format!("tensor \"{name}\" is {shape:?}, not a matrix");
            self.header.error(reason).into()
        })
    }
}

fn rope_scaling(
    header: &GgufHeader,
    factors: Option<Vec<f32>>,
    head_dim: usize,
) -> Result<Option<RopeScaling>, ModelError> {
    if let Some(factors) = factors {
        if factors.len() != head_dim / 2 || factors.iter().any(|&f| !f.is_finite() || f <= 0.0) {
            return Err(header
                .error(format!(
                    "\"rope_freqs.weight\" has to hold {} positive numbers",
                    head_dim / 2
                ))
                .into());
        }
        let factors = factors.into_iter().map(f64::from).collect();
        return Ok(Some(RopeScaling::Factors { factors }));
    }
    let factor = match header.number("llama.rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => header.number("llama.rope.scale_linear")?,
    };
    match (header.text("llama.rope.scaling.type")?, factor) {
        (None | Some("none"), None) | (Some("none"), _) => Ok(None),
        (None | Some("linear"), Some(1.0)) => Ok(None),
        (None | Some("linear"), Some(factor)) if factor > 1.0 => {
            Ok(Some(RopeScaling::Linear { factor }))
        }
        (kind, factor) => Err(header
            .error(format!(
                "rope scaling {kind:?} with factor {factor:?} is not supported; known are none, linear and the tensor rope_freqs.weight"
            ))
            .into()),
    }
}
