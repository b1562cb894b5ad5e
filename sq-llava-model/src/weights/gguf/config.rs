//! Configuration of a decoder from GGUF metadata and the tensors' shapes.

use sq_llava_data::gguf::{GgufHeader, GgufTensor, GgufValue};

use super::arch::{Architecture, windows};
use super::keys::unknown;
use super::names::layer;
use super::yarn;
use crate::config::{Family, LlamaConfig, SlidingWindow, SqLlavaConfig, judge_unknown};
use crate::error::ModelError;
use crate::ops::rope::RopeScaling;

/// The architecture of a file.
///
/// # Errors
/// If it is none that is known, or the file is a part of a model.
pub(super) fn read_architecture(header: &GgufHeader) -> Result<Architecture, ModelError> {
    let fail = |reason: String| ModelError::from(header.error(reason));
    let name = header.text("general.architecture")?;
    let Some(arch) = name.and_then(Architecture::of) else {
        let reason = match name {
            Some("clip") => {
                "this is the vision tower and projector of a model; name it with --mmproj beside the --model that is its language model".into()
            }
            other => format!(
                "the architecture {} is not supported; known are {}",
                other.map_or("(none named)".into(), |name| format!("\"{name}\"")),
                Architecture::known()
            ),
        };
        return Err(fail(reason));
    };
    let experts = format!("{}.expert_count", arch.name());
    for (key, what) in [
        (
            "split.count",
            "a file in parts; join them with `llama-gguf-split --merge`",
        ),
        (&experts, "a mixture of experts, which is not supported"),
    ] {
        if let Some(n) = header.size(key)?.filter(|&n| n > 1) {
            return Err(fail(format!("\"{key}\" is {n}: this is {what}")));
        }
    }
    Ok(arch)
}

/// Divisors of the rotary frequencies that a file holds.
#[derive(Debug, Default)]
pub(super) struct RopeFactors {
    /// `rope_freqs.weight`.
    pub all: Option<Vec<f32>>,
    /// `rope_factors_short.weight`.
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long.weight`.
    pub long: Option<Vec<f32>>,
}

/// Reads the configuration.
///
/// # Errors
/// If a key is missing, sizes differ from the tensors', or (unless `allow_unused`) a key may change
/// what is computed.
pub(super) fn read_config(
    header: &GgufHeader,
    arch: Architecture,
    rope_factors: RopeFactors,
    allow_unused: bool,
) -> Result<SqLlavaConfig, ModelError> {
    let keys = Keys { header, arch };
    let mut llama = keys.sizes()?;
    keys.check_shapes(&llama)?;
    let context = llama.max_position_embeddings;
    judge_unknown(&header.path, &unknown(header, arch, context), allow_unused)?;
    llama.rms_norm_eps = match keys.number("attention.layer_norm_rms_epsilon")? {
        Some(eps) => eps,
        None if arch.0 == Family::Llama => 1e-5,
        None => return Err(keys.missing("attention.layer_norm_rms_epsilon")),
    };
    llama.rope_theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    llama.rope_scaling = keys.rope_scaling(rope_factors, &llama)?;
    llama.tie_word_embeddings = keys.find("output.weight").is_none();
    llama.attention_bias = keys.find("blk.0.attn_q.bias").is_some();
    llama.output_bias = keys.find("blk.0.attn_output.bias").is_some();
    llama.mlp_bias = keys.find("blk.0.ffn_gate.bias").is_some();
    llama.unrotated_layers = arch.unrotated(llama.num_hidden_layers);
    llama.sliding_window = keys.sliding_window(&llama)?;
    keys.gemma(&mut llama)?;
    let mut config = SqLlavaConfig::new(llama);
    read_ids(header, &mut config)?;
    Ok(config)
}

fn read_ids(header: &GgufHeader, config: &mut SqLlavaConfig) -> Result<(), ModelError> {
    let id = |key: &str| -> Result<Option<i64>, ModelError> {
        let id = header.size(&format!("tokenizer.ggml.{key}_token_id"))?;
        Ok(id.map(|id| id as i64))
    };
    config.bos_token_id = id("bos")?;
    for key in ["eos", "eot", "eom"] {
        if let Some(id) = id(key)?
            && !config.eos_token_ids.contains(&id)
        {
            config.eos_token_ids.push(id);
        }
    }
    config.pad_token_id = id("padding")?;
    Ok(())
}

/// The keys of an architecture.
struct Keys<'a> {
    header: &'a GgufHeader,
    arch: Architecture,
}

impl Keys<'_> {
    fn fail(&self, reason: String) -> ModelError {
        self.header.error(reason).into()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch.name())
    }

    fn missing(&self, name: &str) -> ModelError {
        self.fail(format!("no \"{}\" in the metadata", self.key(name)))
    }

    fn size(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        match self.header.size(&key)? {
            Some(0) => Err(self.fail(format!("\"{key}\" is 0"))),
            n => Ok(n),
        }
    }

    fn needed(&self, name: &str) -> Result<usize, ModelError> {
        self.size(name)?.ok_or_else(|| self.missing(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        Ok(self.header.number(&self.key(name))?)
    }

    /// A number above 0.
    fn positive(&self, name: &str) -> Result<Option<f64>, ModelError> {
        match self.number(name)? {
            Some(n) if n <= 0.0 => Err(self.fail(format!("\"{}\" is {n}", self.key(name)))),
            n => Ok(n),
        }
    }

    fn find(&self, name: &str) -> Option<&GgufTensor> {
        self.header.tensors.iter().find(|t| t.name == name)
    }

    fn shape(&self, name: &str) -> Result<[usize; 2], ModelError> {
        let tensor = self
            .find(name)
            .ok_or_else(|| self.fail(format!("no tensor \"{name}\" inside")))?;
        let shape: Result<[usize; 2], _> = tensor.shape.clone().try_into();
        shape.map_err(|shape| self.fail(format!("tensor \"{name}\" is {shape:?}, not a matrix")))
    }

    /// The family with its sizes.
    fn sizes(&self) -> Result<LlamaConfig, ModelError> {
        let hidden = self.needed("embedding_length")?;
        let heads = self.needed("attention.head_count")?;
        let kv_heads = self.size("attention.head_count_kv")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.fail(format!(
                "{heads} attention heads cannot share {kv_heads} key-value heads"
            )));
        }
        let head_dim = self.size("attention.key_length")?.unwrap_or(hidden / heads);
        let rotated = self.size("rope.dimension_count")?.unwrap_or(head_dim);
        let partial = self.arch.takes_two_factors() && rotated < head_dim && rotated % 2 == 0;
        for name in ["attention.value_length", "rope.dimension_count"] {
            if name == "rope.dimension_count" && partial {
                continue;
            }
            if let Some(n) = self.size(name)?.filter(|&n| n != head_dim) {
                return Err(self.fail(format!(
                    "\"{}\" is {n}, but heads are {head_dim} wide; this is not supported",
                    self.key(name)
                )));
            }
        }
        if head_dim == 0 || head_dim % 2 == 1 {
            return Err(self.fail(format!("heads of width {head_dim} cannot be rotated")));
        }
        let layers = self.needed("block_count")?;
        let found = self.header.tensors.iter().filter_map(|t| layer(&t.name));
        let found = found.max().map_or(0, |last| last.saturating_add(1));
        if found != layers || layers > LlamaConfig::MOST_LAYERS {
            return Err(self.fail(format!(
                "\"{}\" is {layers}, but the tensors are those of {found} layers",
                self.key("block_count")
            )));
        }
        let [vocabulary, _] = self.shape("token_embd.weight")?;
        let preset = self.arch.0.preset();
        Ok(preset
            .with_hidden_size(hidden)
            .with_intermediate_size(self.needed("feed_forward_length")?)
            .with_num_hidden_layers(layers)
            .with_num_attention_heads(heads)
            .with_num_key_value_heads(kv_heads)
            .with_head_dim((head_dim.checked_mul(heads) != Some(hidden)).then_some(head_dim))
            .with_vocab_size(vocabulary)
            .with_partial_rotary_factor(rotated as f64 / head_dim as f64)
            .with_max_position_embeddings(self.needed("context_length")?))
    }

    /// The model is laid out by these numbers before any tensor is looked at: they must be those
    /// of the file's own tensors, which end where the file ends.
    fn check_shapes(&self, c: &LlamaConfig) -> Result<(), ModelError> {
        let (hidden, width) = (c.hidden_size, c.head_dim());
        let rows = |heads: usize| heads.checked_mul(width);
        let (heads, kv_heads) = (c.num_attention_heads, c.num_key_value_heads);
        let mut known = vec![("token_embd.weight", Some(c.vocab_size), hidden)];
        if c.fused_projections {
            let all = kv_heads.checked_mul(2).and_then(|kv| kv.checked_add(heads));
            known.push(("blk.0.attn_qkv.weight", all.and_then(rows), hidden));
            let both = c.intermediate_size.checked_mul(2);
            known.push(("blk.0.ffn_up.weight", both, hidden));
        } else {
            known.push(("blk.0.attn_q.weight", rows(heads), hidden));
            known.push(("blk.0.attn_k.weight", rows(kv_heads), hidden));
            known.push(("blk.0.ffn_gate.weight", Some(c.intermediate_size), hidden));
        }
        if self.find("output.weight").is_some() {
            known.push(("output.weight", Some(c.vocab_size), hidden));
        }
        for (name, rows, columns) in known {
            let shape = self.shape(name)?;
            if rows != Some(shape[0]) || shape[1] != columns {
                return Err(self.fail(format!(
                    "tensor \"{name}\" is {shape:?}, but the metadata make it [{}, {columns}]",
                    rows.map_or("above 2⁶⁴".into(), |rows| rows.to_string())
                )));
            }
        }
        Ok(())
    }

    /// A list of divisors, one for each pair of entries that rotates.
    fn divisors(
        &self,
        name: &str,
        list: Vec<f32>,
        c: &LlamaConfig,
    ) -> Result<Vec<f64>, ModelError> {
        let pairs = c.rotated_width() / 2;
        if list.len() != pairs || list.iter().any(|&f| !f.is_finite() || f <= 0.0) {
            return Err(self.fail(format!(
                "\"{name}.weight\" has to hold {pairs} positive numbers"
            )));
        }
        Ok(list.into_iter().map(f64::from).collect())
    }

    fn rope_scaling(
        &self,
        factors: RopeFactors,
        c: &LlamaConfig,
    ) -> Result<Option<RopeScaling>, ModelError> {
        let foreign = |name: &str| {
            self.fail(format!(
                "\"{name}.weight\" in a file of the architecture \"{}\" is not known",
                self.arch.name()
            ))
        };
        if let Some(list) = factors.all {
            if !self.arch.takes_factors() {
                return Err(foreign("rope_freqs"));
            }
            let factors = self.divisors("rope_freqs", list, c)?;
            return Ok(Some(RopeScaling::Factors { factors }));
        }
        match (factors.short, factors.long) {
            (None, None) => {}
            _ if !self.arch.takes_two_factors() => return Err(foreign("rope_factors_long")),
            (Some(short), Some(long)) => {
                return Ok(Some(RopeScaling::LongRope {
                    short_factor: self.divisors("rope_factors_short", short, c)?,
                    long_factor: self.divisors("rope_factors_long", long, c)?,
                    attention_factor: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
                    original_max_position_embeddings: self
                        .needed("rope.scaling.original_context_length")?,
                }));
            }
            _ => {
                return Err(self.fail(
                    "one of rope_factors_short.weight and rope_factors_long.weight is missing"
                        .into(),
                ));
            }
        }
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        let kind = self.key("rope.scaling.type");
        match (self.header.text(&kind)?, factor) {
            (None | Some("none"), None) | (Some("none"), _) => Ok(None),
            (None | Some("linear"), Some(1.0)) => Ok(None),
            (None | Some("linear"), Some(factor)) if factor > 1.0 => {
                Ok(Some(RopeScaling::Linear { factor }))
            }
            (Some("yarn"), Some(factor)) if factor > 1.0 && self.arch.takes_yarn() => {
                let (name, context) = (self.arch.name(), c.max_position_embeddings);
                yarn::read(self.header, name, factor, context).map(Some)
            }
            (found, factor) => Err(self.fail(format!(
                "\"{kind}\" {found:?} with factor {factor:?} is not supported; known are none, linear, yarn and the tensor rope_freqs.weight"
            ))),
        }
    }

    /// The layers that see a window, of the architectures that have one.
    fn sliding_window(&self, c: &LlamaConfig) -> Result<Option<SlidingWindow>, ModelError> {
        let pattern = match self.arch.window_pattern() {
            Some(pattern) => pattern,
            // All layers, as transformers has it; llama.cpp reads the key and lets it be.
            None if self.arch.0 == Family::Phi3 => 0,
            None => return Ok(None),
        };
        let tokens = match self.header.size(&self.key("attention.sliding_window"))? {
            Some(tokens) => Some(tokens).filter(|&tokens| tokens > 0),
            None => self.arch.default_window(),
        };
        let key = self.key("attention.sliding_window_pattern");
        let layers = c.num_hidden_layers;
        let listed = match self.header.metadata.get(&key) {
            Some(GgufValue::Integers(list)) => Some(list.iter().map(|&n| n != 0).collect()),
            _ => None,
        };
        let window = match (tokens, listed) {
            (None, _) => return Ok(None),
            (Some(tokens), Some(slides)) => {
                let slides: Vec<bool> = slides;
                if slides.len() != layers {
                    return Err(self.fail(format!(
                        "\"{key}\" lists {} layers of {layers}",
                        slides.len()
                    )));
                }
                SlidingWindow {
                    tokens,
                    layers: slides,
                }
            }
            (Some(tokens), None) => {
                windows(tokens, self.header.size(&key)?.unwrap_or(pattern), layers)
            }
        };
        let hides = c.window_counts(window.tokens, c.max_position_embeddings)
            && window.layers.contains(&true);
        Ok(hides.then_some(window))
    }

    /// What Gemma's files have beside sizes.
    fn gemma(&self, c: &mut LlamaConfig) -> Result<(), ModelError> {
        if c.query_pre_attn_scalar.is_none() {
            return Ok(());
        }
        c.query_pre_attn_scalar = Some(self.arch.score_scalar(c));
        if self.arch.0 == Family::Gemma2 {
            let scores = self.positive("attn_logit_softcapping")?;
            c.attn_logit_softcapping = scores.or(c.attn_logit_softcapping);
        }
        let logits = self.number("final_logit_softcapping")?;
        c.final_logit_softcapping = match logits {
            None => c.final_logit_softcapping,
            // llama.cpp's way to say that there is none.
            Some(0.0) if self.arch.0 == Family::Gemma3Text => None,
            Some(_) => self.positive("final_logit_softcapping")?,
        };
        if let Some(usual) = c.rope_local_base_freq {
            let local = self.positive("rope.freq_base_swa")?;
            c.rope_local_base_freq = Some(local.unwrap_or(usual));
        }
        Ok(())
    }
}
