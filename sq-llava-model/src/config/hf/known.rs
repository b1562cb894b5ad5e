//! Keys of configuration files that change nothing of what is computed.
//!
//! A key that is neither read nor listed here may mean a part that this project does not have:
//! such a model is refused, for it would give wrong answers without a word. The lists follow the
//! configuration classes of transformers (`PreTrainedConfig`, `LlamaConfig`, `MistralConfig`,
//! `LlavaConfig`, `CLIPConfig` and its parts) and what LLaVA, ShareGPT4V, SQ-LLaVA and SmolLM2
//! write into their files.

use serde_json::{Value, json};

/// What an object of a configuration file describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Described {
    /// A language model, with LLaVA's `mm_*` keys or without.
    Language,
    /// A language model inside a llava-hf configuration.
    Text,
    /// The outer object of a llava-hf configuration.
    LlavaHf,
    /// A vision tower.
    Vision,
    /// CLIP's text tower.
    ClipText,
    /// The outer object of a whole CLIP.
    Clip,
    /// Rotary frequencies.
    Rope,
}

/// Of every transformers configuration: where it came from, how its classes are loaded, labels of
/// classifiers, how text is generated, and what counts in training alone.
const ANY: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "dropout",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "license",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
    // Parameters of generation, which stand in generation_config.json today.
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "penalty_alpha",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Beginnings of keys that say how a model was trained, or how text becomes ids.
const BEGINNINGS: &[&str] = &["freeze_", "tokenizer_", "tune_", "unfreeze_"];

/// Of a language model.
const LANGUAGE: &[&str] = &[
    // Written by old conversions beside max_position_embeddings.
    "max_sequence_length",
    "model_max_length",
    // How products were split for tensor parallel training; the sum is the same.
    "pretraining_tp",
    // Phi-3: dropout in training.
    "embd_pdrop",
    "resid_pdrop",
    // SmolLM2's note for another program.
    "is_llama_config",
    // LLaVA: what the loader looks at, learning rates, what its image processor takes for other
    // aspect ratios than those that are read, and how videos are shown.
    "add_faster_video",
    "add_time_instruction",
    "faster_token_stride",
    "force_sample",
    "image_crop_resolution",
    "image_grid_pinpoints",
    "image_split_resolution",
    "image_token_index",
    "mm_hidden_size",
    "mm_newline_position",
    "mm_pooling_position",
    "mm_projector_lr",
    "mm_spatial_pool_mode",
    "mm_spatial_pool_out_channels",
    "mm_spatial_pool_stride",
    "mm_tunable_parts",
    "mm_use_im_patch_token",
    "mm_vision_tower",
    "mm_vision_tower_lr",
    "pos_skipping_range",
    "pretrain_mm_mlp_adapter",
    "use_mm_proj",
    "vision_tower_pretrained",
    "vision_tower_lr",
    // SQ-LLaVA: its loss, and the prototypes of other projectors than `cluster`.
    "loss_alpha",
    "num_latents",
    "qav_loss",
];

/// Of the language model inside a llava-hf configuration: the outer object says it.
const TEXT: &[&str] = &[
    "image_aspect_ratio",
    "mm_projector_type",
    "mm_use_im_start_end",
    "mm_vision_select_feature",
    "mm_vision_select_layer",
];

/// Of a llava-hf configuration's outer object. The vocabulary is the text model's.
const LLAVA_HF: &[&str] = &[
    "ignore_index",
    "image_grid_pinpoints",
    "image_seq_length",
    // Old files of llava_next; it always has one.
    "use_image_newline_parameter",
    "video_token_id",
    "video_token_index",
    "vocab_size",
];

/// Of a vision tower. CLIP's projection is behind the tower, and there are no words; of DINOv2,
/// training, how layer scales began, the mask of its pretraining, and the form in which it serves
/// as a backbone.
const VISION: &[&str] = &[
    "apply_layernorm",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "hidden_dropout_prob",
    "layerscale_value",
    "logit_scale_init_value",
    "out_features",
    "out_indices",
    "projection_dim",
    "reshape_hidden_states",
    "stage_names",
    "tie_word_embeddings",
    "use_mask_token",
    "vocab_size",
];

/// Of CLIP's text tower; the projection's width is the outer object's.
const CLIP_TEXT: &[&str] = &[
    "logit_scale_init_value",
    "projection_dim",
    "tie_word_embeddings",
];

/// Of a whole CLIP. The scale is a weight of the file.
const CLIP: &[&str] = &["logit_scale_init_value", "tie_word_embeddings"];

/// Of rotary frequencies: ignored by the kinds that do not use it.
const ROPE: &[&str] = &["original_max_position_embeddings"];

impl Described {
    fn own(self) -> &'static [&'static str] {
        match self {
            Self::Language => LANGUAGE,
            Self::Text => TEXT,
            Self::LlavaHf => LLAVA_HF,
            Self::Vision => VISION,
            Self::ClipText => CLIP_TEXT,
            Self::Clip => CLIP,
            Self::Rope => ROPE,
        }
    }

    /// Whether a key with this value changes nothing of what is computed.
    pub fn is_harmless(self, key: &str, value: &Value) -> bool {
        self.own().contains(&key)
            || (self == Self::Text && LANGUAGE.contains(&key))
            || (self != Self::Rope
                && (ANY.contains(&key) || BEGINNINGS.iter().any(|start| key.starts_with(start))))
            || is_neutral(key, value)
    }
}

/// Whether a key has the value of a plain model.
fn is_neutral(key: &str, value: &Value) -> bool {
    let plain = match key {
        "add_cross_attention" | "is_encoder_decoder" | "tie_encoder_decoder" => json!(false),
        // Mistral has none.
        "attention_bias" | "mlp_bias" | "lm_head_bias" => json!(false),
        // Phi-4 mini: every layer attends alike, and positions are not interpolated.
        "full_attn_mod" | "interpolate_factor" => return value.as_f64() == Some(1.0),
        "bias" | "qk_layernorm" | "qk_norm" | "use_qk_norm" => json!(false),
        "rope_interleaved" => json!(false),
        "s2" | "use_s2" | "use_pos_skipping" => json!(false),
        "mm_patch_merge_type" => json!("flat"),
        "partial_rotary_factor" => return value.as_f64() == Some(1.0),
        "num_channels" => json!(3),
        "pruned_heads" => json!({}),
        _ => return false,
    };
    *value == plain
}
