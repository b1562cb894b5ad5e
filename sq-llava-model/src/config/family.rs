//! What makes a family of decoders: its description beside LLaMA's.

use serde::{Deserialize, Serialize};

use super::LlamaConfig;
use crate::ops::activation::Activation;

/// Families of decoders, by the names of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// LLaMA 1 to 3.x, Vicuna, SmolLM 1 and 2.
    Llama,
    /// Mistral 7B.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Gemma 2.
    Gemma2,
    /// The text model of Gemma 3.
    Gemma3Text,
    /// SmolLM 3.
    Smollm3,
    /// OLMo 2.
    Olmo2,
    /// Phi-3, 3.5 and Phi-4 mini.
    Phi3,
}

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before attention and MLP.
    Before,
    /// Behind attention and MLP, before the sum.
    Behind,
    /// Before and behind each.
    Around,
}

/// Norms of queries and keys before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself; the weight is one head wide.
    Head,
    /// All heads at once, before they are split.
    All,
}

/// Layers that attend to the last tokens only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlidingWindow {
    /// Tokens that a token sees, itself included.
    pub tokens: usize,
    /// For each layer whether it has the window.
    pub layers: Vec<bool>,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3Text,
        Self::Smollm3,
        Self::Olmo2,
        Self::Phi3,
    ];

    /// Its `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3Text => "gemma3_text",
            Self::Smollm3 => "smollm3",
            Self::Olmo2 => "olmo2",
            Self::Phi3 => "phi3",
        }
    }

    /// Its class in transformers.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3Text => "Gemma3ForCausalLM",
            Self::Smollm3 => "SmolLM3ForCausalLM",
            Self::Olmo2 => "Olmo2ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
        }
    }

    /// By `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|f| f.model_type() == model_type);
        found.or((model_type == "vicuna").then_some(Self::Llama))
    }

    /// Names of all, for messages.
    pub(crate) fn known() -> String {
        Self::ALL.map(Self::model_type).join(", ")
    }

    /// What distinguishes the family, with the sizes that transformers' class has where a file is
    /// silent. Which layers slide and rotate is told by the file.
    pub fn preset(self) -> LlamaConfig {
        let llama = LlamaConfig::new().with_family(self);
        match self {
            Self::Llama => llama,
            Self::Mistral => llama
                .with_intermediate_size(14336)
                .with_num_key_value_heads(8)
                .with_max_position_embeddings(131_072),
            Self::Qwen2 => llama
                .with_attention_bias(true)
                .with_intermediate_size(22016)
                .with_max_position_embeddings(32_768)
                .with_vocab_size(151_936),
            Self::Qwen3 => llama
                .with_qk_norm(QkNorm::Head)
                .with_head_dim(Some(128))
                .with_intermediate_size(22016)
                .with_max_position_embeddings(32_768)
                .with_vocab_size(151_936),
            Self::Gemma2 => gemma(llama)
                .with_attn_logit_softcapping(Some(50.0))
                .with_final_logit_softcapping(Some(30.0))
                .with_max_position_embeddings(8192)
                .with_vocab_size(256_000),
            Self::Gemma3Text => gemma(llama)
                .with_qk_norm(QkNorm::Head)
                .with_rope_theta(1e6)
                .with_rope_local_base_freq(Some(1e4))
                .with_max_position_embeddings(131_072)
                .with_vocab_size(262_208),
            Self::Smollm3 => llama
                .with_hidden_size(2048)
                .with_num_hidden_layers(36)
                .with_num_attention_heads(16)
                .with_num_key_value_heads(4)
                .with_max_position_embeddings(32_768)
                .with_rope_theta(2e6)
                .with_tie_word_embeddings(true)
                .with_vocab_size(128_256),
            Self::Olmo2 => llama
                .with_norm_placement(NormPlacement::Behind)
                .with_qk_norm(QkNorm::All)
                .with_rms_norm_eps(1e-5)
                .with_vocab_size(50_304),
            Self::Phi3 => llama
                .with_fused_projections(true)
                .with_hidden_size(3072)
                .with_intermediate_size(8192)
                .with_max_position_embeddings(4096)
                .with_rms_norm_eps(1e-5)
                .with_vocab_size(32_064),
        }
    }
}

/// What Gemma 2 and 3 share.
fn gemma(llama: LlamaConfig) -> LlamaConfig {
    llama
        .with_norm_placement(NormPlacement::Around)
        .with_norm_offset(true)
        .with_embedding_scale(true)
        .with_query_pre_attn_scalar(Some(256.0))
        .with_hidden_act(Activation::GeluPytorchTanh)
        .with_tie_word_embeddings(true)
        .with_hidden_size(2304)
        .with_intermediate_size(9216)
        .with_num_hidden_layers(26)
        .with_num_attention_heads(8)
        .with_num_key_value_heads(4)
        .with_head_dim(Some(256))
}
