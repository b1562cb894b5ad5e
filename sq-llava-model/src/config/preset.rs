//! Named configurations: SQ-LLaVA's, with the paper's prototype extractor, and those of published models
//! that it trains on from.

use sq_llava_data::image::AnyResolution;

use super::{Family, LlamaConfig, PrototypeConfig, SelectFeature, SqLlavaConfig, VisionConfig};

impl SqLlavaConfig {
    /// Names of [`Self::preset`].
    pub const PRESETS: [&str; 6] = [
        "sq-llava-7b",
        "sq-llava-13b",
        "siglip-so400m-qwen3-1.7b",
        "llava-v1.6-7b",
        "onevision-qwen2-0.5b",
        "tiny",
    ];

    /// A model of [`Self::PRESETS`]; flavour `paper`, and without prototypes for `llava-v1.6-7b`
    /// (over Vicuna) and `onevision-qwen2-0.5b`.
    pub fn preset(name: &str) -> Option<Self> {
        let vicuna = LlamaConfig::new()
            .with_max_position_embeddings(4096)
            .with_rms_norm_eps(1e-5);
        let llava = |llama, vision, centers| {
            Self::over(llama, vision, centers)
                .with_bos_token_id(Some(1))
                .with_eos_token_ids(vec![2])
                .with_pad_token_id(Some(0))
        };
        Some(match name {
            "sq-llava-7b" => llava(vicuna, VisionConfig::large(336), 256),
            "sq-llava-13b" => {
                let vicuna = vicuna
                    .with_hidden_size(5120)
                    .with_intermediate_size(13824)
                    .with_num_hidden_layers(40)
                    .with_num_attention_heads(40)
                    .with_num_key_value_heads(40);
                llava(vicuna, VisionConfig::large(336), 256)
            }
            // All patches of SigLIP, and what Qwen's files say of ids.
            "siglip-so400m-qwen3-1.7b" => Self::over(qwen3(), VisionConfig::so400m(384), 256)
                .with_select_feature(SelectFeature::ClsPatch)
                .with_bos_token_id(Some(151_643))
                .with_eos_token_ids(vec![151_645])
                .with_pad_token_id(Some(151_643)),
            "llava-v1.6-7b" => {
                let vision = VisionConfig::large(336);
                llava(vicuna, vision, 256).tiled(AnyResolution::published(336, None))
            }
            // The tower is saved without its last layer.
            "onevision-qwen2-0.5b" => {
                let vision = VisionConfig::so400m(384).with_num_hidden_layers(26);
                Self::over(qwen2(), vision, 256)
                    .with_select_feature(SelectFeature::ClsPatch)
                    .with_select_layers(vec![-1])
                    .with_bos_token_id(Some(151_643))
                    .with_eos_token_ids(vec![151_645])
                    .with_pad_token_id(Some(151_643))
                    .tiled(AnyResolution::published(384, Some(9)))
            }
            "tiny" => llava(tiny_llama(), tiny_clip(), 8),
            _ => return None,
        })
    }

    fn over(llama: LlamaConfig, vision: VisionConfig, centers: usize) -> Self {
        let prototype = PrototypeConfig::new(vision.hidden_size).with_num_centers(centers);
        Self::new(llama)
            .with_vision(Some(vision))
            .with_prototype(Some(prototype))
    }

    /// A published model that lays pictures over tiles, and has no prototypes.
    fn tiled(mut self, anyres: AnyResolution) -> Self {
        self.image_aspect_ratio = Some(anyres.aspect_name());
        self.anyres = Some(anyres);
        self.prototype = None;
        self
    }
}

/// Qwen2 0.5B.
fn qwen2() -> LlamaConfig {
    Family::Qwen2
        .preset()
        .with_hidden_size(896)
        .with_intermediate_size(4864)
        .with_num_hidden_layers(24)
        .with_num_attention_heads(14)
        .with_num_key_value_heads(2)
        .with_max_position_embeddings(32_768)
        .with_rope_theta(1e6)
        .with_rms_norm_eps(1e-6)
        .with_tie_word_embeddings(true)
}

/// Qwen3 1.7B.
fn qwen3() -> LlamaConfig {
    Family::Qwen3
        .preset()
        .with_hidden_size(2048)
        .with_intermediate_size(6144)
        .with_num_hidden_layers(28)
        .with_num_attention_heads(16)
        .with_num_key_value_heads(8)
        .with_max_position_embeddings(40_960)
        .with_rope_theta(1e6)
        .with_tie_word_embeddings(true)
}

fn tiny_llama() -> LlamaConfig {
    LlamaConfig::new()
        .with_hidden_size(64)
        .with_intermediate_size(172)
        .with_num_hidden_layers(3)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(2)
        .with_vocab_size(320)
        .with_max_position_embeddings(512)
        .with_rms_norm_eps(1e-5)
}

fn tiny_clip() -> VisionConfig {
    VisionConfig::new()
        .with_hidden_size(64)
        .with_intermediate_size(256)
        .with_num_hidden_layers(4)
        .with_num_attention_heads(4)
        .with_image_size(56)
        .with_patch_size(14)
}
