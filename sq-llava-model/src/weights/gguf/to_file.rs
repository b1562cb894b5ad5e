//! A language model as the metadata and tensors of a GGUF file.

use sq_llava_data::gguf::GgufField;

use super::arch::{Architecture, windows};
use super::encode::GgufType;
use super::names::{Spelling, file_name};
use super::output::{Change, Tensor};
use super::yarn;
use crate::config::{Family, LlamaConfig, QkNorm};
use crate::error::ModelError;
use crate::ops::activation::Activation;
use crate::ops::rope::RopeScaling;
use crate::weights::write::Entry;

const EMBEDDING: &str = "language_model.model.embed_tokens.weight";
const HEAD: &str = "language_model.lm_head.weight";

/// What llama.cpp computes of such a model, or why it computes another.
pub(in crate::weights) struct LanguageFile<'a> {
    config: &'a LlamaConfig,
    arch: Architecture,
    kind: GgufType,
}

impl<'a> LanguageFile<'a> {
    /// A model that llama.cpp can compute.
    ///
    /// # Errors
    /// If its architecture of the family computes something else; the message names the setting.
    pub fn new(config: &'a LlamaConfig, kind: GgufType) -> Result<Self, ModelError> {
        let arch = Architecture::for_family(config.family);
        let file = Self { config, arch, kind };
        match file.difference() {
            None => Ok(file),
            Some(what) => Err(ModelError::Argument(format!(
                "llama.cpp's architecture \"{}\" cannot compute this model: {what}",
                arch.name()
            ))),
        }
    }

    /// What the architecture computes otherwise.
    fn difference(&self) -> Option<String> {
        let (c, arch) = (self.config, self.arch);
        let act = match arch.0 {
            Family::Gemma2 | Family::Gemma3Text => Activation::GeluPytorchTanh,
            _ => Activation::Silu,
        };
        if c.hidden_act != act {
            return Some(format!("\"hidden_act\" is {:?}, not {act:?}", c.hidden_act));
        }
        if arch.has_square_heads() && c.num_attention_heads * c.head_dim() != c.hidden_size {
            return Some(format!(
                "its heads are {} wide, {} together, not {}",
                c.head_dim(),
                c.num_attention_heads * c.head_dim(),
                c.hidden_size
            ));
        }
        if arch.0 != Family::Llama && (c.output_bias || c.mlp_bias) {
            return Some(
                "biases behind attention or in the MLP (\"attention_bias\", \"mlp_bias\")".into(),
            );
        }
        if arch.is_tied() && !c.tie_word_embeddings {
            return Some("its head is not the embedding (\"tie_word_embeddings\")".into());
        }
        if c.unrotated_layers != arch.unrotated(c.num_hidden_layers) {
            return Some(format!(
                "the layers {:?} do not rotate (\"no_rope_layers\"); there {:?} do not",
                c.unrotated_layers,
                arch.unrotated(c.num_hidden_layers)
            ));
        }
        let caps = (c.attn_logit_softcapping, c.final_logit_softcapping);
        if arch.0 == Family::Gemma2 && (caps.0.is_none() || caps.1.is_none()) {
            return Some("scores and logits have no soft limit (\"attn_logit_softcapping\", \"final_logit_softcapping\")".into());
        }
        if c.partial_rotary_factor != 1.0 && !arch.takes_two_factors() {
            return Some("a part of each head rotates (\"partial_rotary_factor\")".into());
        }
        self.other_rotation().or_else(|| self.other_window())
    }

    fn other_rotation(&self) -> Option<String> {
        let scaling = match &self.config.rope_scaling {
            None | Some(RopeScaling::Linear { .. }) => return None,
            Some(RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. })
                if self.arch.takes_factors() =>
            {
                return None;
            }
            Some(RopeScaling::LongRope { .. }) if self.arch.takes_two_factors() => return None,
            // These architectures read no ends of the ramp.
            Some(scaling @ RopeScaling::Yarn { .. }) if self.arch.takes_yarn() => {
                return yarn::difference(scaling);
            }
            Some(scaling) => scaling,
        };
        let kind = match scaling {
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::Yarn { .. } => "yarn",
            RopeScaling::Dynamic { .. } => "dynamic",
            RopeScaling::LongRope { .. } | RopeScaling::Factors { .. } => "longrope",
        };
        Some(format!("rope scaling \"{kind}\""))
    }

    fn other_window(&self) -> Option<String> {
        let window = self.config.sliding_window.as_ref()?;
        if self.arch.window_pattern().is_some() {
            return None;
        }
        let tokens = window.tokens;
        Some(format!(
            "layers that see the last {tokens} tokens alone (\"sliding_window\"); in a context of {tokens} they hide nothing: --context {tokens} writes such a model"
        ))
    }

    /// Metadata of the architecture.
    pub fn fields(&self) -> Vec<(String, GgufField)> {
        let (c, name) = (self.config, self.arch.name());
        let mut out = vec![
            ("general.architecture".to_owned(), name.into()),
            ("general.type".into(), "model".into()),
            (
                "general.file_type".into(),
                GgufField::U32(self.kind.file_number()),
            ),
            ("general.quantization_version".into(), GgufField::U32(2)),
        ];
        let mut put = |key: &str, field| out.push((format!("{name}.{key}"), field));
        for (key, size) in [
            ("vocab_size", c.vocab_size),
            ("context_length", c.max_position_embeddings),
            ("embedding_length", c.hidden_size),
            ("block_count", c.num_hidden_layers),
            ("feed_forward_length", c.intermediate_size),
            ("attention.head_count", c.num_attention_heads),
            ("attention.head_count_kv", c.num_key_value_heads),
            ("attention.key_length", c.head_dim()),
            ("attention.value_length", c.head_dim()),
            ("rope.dimension_count", c.rotated_width()),
        ] {
            put(key, size_field(size));
        }
        let mut float = |key: &str, x: f64| put(key, GgufField::F32(x as f32));
        float("attention.layer_norm_rms_epsilon", c.rms_norm_eps);
        float("rope.freq_base", c.rope_theta);
        if let Some(local) = c.rope_local_base_freq {
            float("rope.freq_base_swa", local);
        }
        if let Some(cap) = c.attn_logit_softcapping {
            float("attn_logit_softcapping", cap);
        }
        if let Some(cap) = c.final_logit_softcapping {
            float("final_logit_softcapping", cap);
        }
        if let Some(RopeScaling::Linear { factor }) = c.rope_scaling {
            float("rope.scaling.factor", factor);
            put("rope.scaling.type", "linear".into());
        }
        for (key, field) in self.config.rope_scaling.iter().flat_map(yarn::fields) {
            put(key, field);
        }
        if let Some(RopeScaling::LongRope {
            attention_factor,
            original_max_position_embeddings: old,
            ..
        }) = c.rope_scaling
        {
            put("rope.scaling.type", "longrope".into());
            put(
                "rope.scaling.attn_factor",
                GgufField::F32(attention_factor as f32),
            );
            put("rope.scaling.original_context_length", size_field(old));
        }
        for (key, field) in self.window() {
            put(key, field);
        }
        out
    }

    /// The window, of architectures that have one.
    fn window(&self) -> Vec<(&'static str, GgufField)> {
        let (c, layers) = (self.config, self.config.num_hidden_layers);
        let Some(pattern) = self.arch.window_pattern() else {
            return vec![];
        };
        let Some(window) = &c.sliding_window else {
            // One as long as the context hides nothing; without the key there may be another.
            let tokens = self
                .arch
                .default_window()
                .map(|_| c.max_position_embeddings);
            let field = tokens.map(|tokens| ("attention.sliding_window", size_field(tokens)));
            return field.into_iter().collect();
        };
        let mut out = vec![("attention.sliding_window", size_field(window.tokens))];
        if *window != windows(window.tokens, pattern, layers) {
            let slides = GgufField::Bools(window.layers.clone());
            out.push(("attention.sliding_window_pattern", slides));
        }
        out
    }

    /// The tensors of the language model among those of a model, by canonical names, as they are
    /// written.
    ///
    /// # Errors
    /// If one has no name there.
    pub fn tensors(&self, entries: Vec<Entry>) -> Result<Vec<Tensor>, ModelError> {
        let c = self.config;
        let mut out = Vec::new();
        for (name, factors) in self.rope_factors() {
            out.push(Tensor::vector(name, factors));
        }
        let has_head = entries.iter().any(|entry| entry.name == HEAD);
        for entry in entries {
            let canonical = entry.name.clone();
            let Some(name) = file_name(&canonical, Spelling::of(c)) else {
                return Err(ModelError::Argument(format!(
                    "the weight \"{canonical}\" has no place in a GGUF file"
                )));
            };
            let table = canonical == EMBEDDING || canonical == HEAD;
            let tensor = Tensor::new(name, entry, self.change(&canonical), self.kind, table);
            if canonical == EMBEDDING && self.arch.needs_head() && !has_head {
                out.push(tensor.renamed("output.weight"));
            }
            out.push(tensor);
        }
        Ok(out)
    }

    /// What is done to a weight before it is written.
    fn change(&self, name: &str) -> Change {
        let c = self.config;
        let turns = |projection: &str| self.arch.turns_neighbours() && name.contains(projection);
        let interleaved_heads = if turns(".self_attn.q_proj.") {
            Some(c.num_attention_heads)
        } else if turns(".self_attn.k_proj.") {
            Some(c.num_key_value_heads)
        } else {
            None
        };
        let query = match c.qk_norm {
            QkNorm::None => ".self_attn.q_proj.",
            _ => ".self_attn.q_norm.",
        };
        // Scores there are divided by another number than the model's: queries make up for it.
        let factor = match c.query_pre_attn_scalar {
            Some(scalar) if name.contains(query) => (self.arch.score_scalar(c) / scalar).sqrt(),
            _ => 1.0,
        };
        Change {
            interleaved_heads,
            one_more: c.norm_offset && name.ends_with("norm.weight"),
            factor: factor as f32,
        }
    }

    /// Tables of divisors of the frequencies; those of LLaMA 3.1 as
    /// `LlamaModel.generate_extra_tensors` of the converter has them.
    fn rope_factors(&self) -> Vec<(&'static str, Vec<f32>)> {
        let c = self.config;
        let narrow = |list: &[f64]| list.iter().map(|&factor| factor as f32).collect();
        match &c.rope_scaling {
            Some(RopeScaling::Factors { factors }) => {
                vec![("rope_freqs.weight", narrow(factors))]
            }
            Some(RopeScaling::LongRope {
                short_factor,
                long_factor,
                ..
            }) => vec![
                ("rope_factors_short.weight", narrow(short_factor)),
                ("rope_factors_long.weight", narrow(long_factor)),
            ],
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: old,
            }) => {
                let (width, old) = (c.head_dim(), *old as f64);
                let divisor = |i: usize| {
                    let freq = c.rope_theta.powf((2 * i) as f64 / width as f64).recip();
                    let turns = old * freq / std::f64::consts::TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    ((1.0 - smooth) / factor + smooth).recip() as f32
                };
                vec![("rope_freqs.weight", (0..width / 2).map(divisor).collect())]
            }
            _ => vec![],
        }
    }
}

pub(super) fn size_field(size: usize) -> GgufField {
    // Sizes of a model that is in memory.
    GgufField::U32(u32::try_from(size).unwrap_or(u32::MAX))
}
