//! Reading and writing Hugging Face `config.json` in the layouts that people have.

mod decoder;
mod known;
mod object;
mod read;
mod rope;
mod tiles;
mod towers;
mod write;

pub(crate) use known::Described;
pub use object::read_json;
pub(crate) use object::{Reader, judge_unknown};
pub use towers::read_vision_config;
pub(crate) use towers::{vision, vision_json};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::{Family, SqLlavaConfig};
    use crate::error::ModelError;
    use crate::ops::rope::RopeScaling;

    fn from_value(value: &Value) -> Result<SqLlavaConfig, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, value.to_string()).unwrap();
        SqLlavaConfig::from_hf(&path, false)
    }

    #[test]
    fn presets_survive_a_round_trip() {
        for name in SqLlavaConfig::PRESETS {
            let config = SqLlavaConfig::preset(name).unwrap();
            assert_eq!(from_value(&config.to_hf()).unwrap(), config, "{name}");
        }
    }

    #[test]
    fn llama3_scaling_is_read_in_both_forms() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let old = from_value(&json!({"model_type": "llama", "rope_theta": 5e5,
            "rope_scaling": scaling}));
        let mut nested = scaling.clone();
        nested["rope_theta"] = json!(5e5);
        let new = from_value(&json!({"model_type": "llama", "rope_parameters": nested}));
        let (old, new) = (old.unwrap(), new.unwrap());
        assert!(matches!(
            old.llama.rope_scaling,
            Some(RopeScaling::Llama3 { factor: 8.0, .. })
        ));
        assert_eq!(old, new);
    }

    #[test]
    fn what_is_unknown_is_named() {
        for (config, named) in [
            (json!({"model_type": "qwen9"}), "qwen9"),
            (
                json!({"model_type": "llama", "hidden_size": "big"}),
                "hidden_size",
            ),
            (
                json!({"model_type": "llava", "mm_projector_type": "resampler"}),
                "resampler",
            ),
            (
                json!({"model_type": "llama", "rope_scaling": {"type": "spiral", "factor": 2.0}}),
                "spiral",
            ),
            (
                json!({"model_type": "llama", "num_attention_heads": 9}),
                "not a multiple",
            ),
        ] {
            let message = from_value(&config).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
            assert!(message.contains("config.json"), "{message}");
        }
    }

    fn refused(value: &Value, words: &[&str]) {
        let message = from_value(value).expect_err("refused").to_string();
        for word in words.iter().chain(&["config.json"]) {
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn fault_03_the_type_inside_a_llava_hf_configuration_counts() {
        let with = |text: &str, vision: &str| {
            json!({"model_type": "llava", "text_config": {"model_type": text},
                "vision_config": {"model_type": vision}})
        };
        from_value(&with("llama", "clip_vision_model")).unwrap();
        from_value(&json!({"model_type": "llava", "text_config": {}})).unwrap();
        for family in Family::ALL {
            let read = from_value(&with(family.model_type(), "clip_vision_model")).unwrap();
            assert_eq!(read.llama.family, family);
        }
        for text in ["qwen9", "gemma", "phi", "mixtral"] {
            refused(
                &with(text, "clip_vision_model"),
                &["text_config.model_type", text],
            );
        }
        for vision in [
            "siglip2_vision_model",
            "dinov2_with_registers",
            "clip",
            "pixtral",
        ] {
            refused(&with("llama", vision), &["vision tower", vision]);
        }
        for model in ["gemma", "phi", "llava_next", "llava_mpt"] {
            refused(&json!({"model_type": model}), &[model]);
        }
        refused(
            &json!({"architectures": ["Qwen2ForCausalLM"]}),
            &["Qwen2ForCausalLM"],
        );
    }

    #[test]
    fn fault_03_the_window_of_a_mistral_is_read_and_of_a_llama_refused() {
        let mistral = |window: Value, positions: usize| {
            json!({"model_type": "mistral", "sliding_window": window,
                "max_position_embeddings": positions})
        };
        let config = from_value(&mistral(Value::Null, 32768)).unwrap();
        let llama = config.llama;
        // MistralConfig's defaults.
        assert_eq!(
            (llama.intermediate_size, llama.num_key_value_heads),
            (14336, 8)
        );
        // A window as long as the context hides nothing.
        let window = |value: &Value| {
            let window = from_value(value).unwrap().llama.sliding_window;
            window.map(|window| (window.tokens, window.layers.contains(&false)))
        };
        assert_eq!(window(&mistral(json!(4096), 4096)), None);
        assert_eq!(window(&mistral(json!(4095), 4096)), Some((4095, false)));
        let absent = json!({"model_type": "mistral", "max_position_embeddings": 8192});
        assert_eq!(window(&absent), Some((4096, false)));
        let unused =
            json!({"model_type": "llama", "sliding_window": 5, "use_sliding_window": false});
        from_value(&unused).unwrap();
        refused(
            &json!({"model_type": "llama", "sliding_window": 5}),
            &["sliding window"],
        );
    }

    #[test]
    fn fault_25_layers_that_differ_are_not_listed_without_end() {
        for family in ["mistral", "gemma2", "gemma3_text", "smollm3", "qwen3"] {
            let many = json!({"model_type": family, "num_hidden_layers": 1_000_000_000});
            refused(&many, &["num_hidden_layers", "1000000000", family]);
        }
    }

    #[test]
    fn fault_03_a_key_that_may_change_the_model_is_refused_unless_let_pass() {
        let llama = |key: &str, value: Value| json!({"model_type": "llama", key: value});
        for (key, value) in [
            ("partial_rotary_factor", json!(0.5)),
            ("qk_layernorm", json!(true)),
            ("final_logit_softcapping", json!(30.0)),
            ("num_local_experts", json!(8)),
            ("embedding_multiplier", json!(12)),
            ("rope_interleaved", json!(true)),
            ("mm_patch_merge_type", json!("spatial_unpad")),
            ("mm_resampler_type", json!("perceiver")),
            ("per_layer_config", json!({"0": {"head_dim": 8}})),
        ] {
            let value = llama(key, value);
            refused(&value, &[key, "--allow-unused"]);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.json");
            std::fs::write(&path, value.to_string()).unwrap();
            SqLlavaConfig::from_hf(&path, true).unwrap();
        }
        let nested = |part: &str| {
            json!({"model_type": "llava", "text_config": {}, "vision_config": {}, part:
                {"strange_bias": 1}})
        };
        refused(&nested("text_config"), &["text_config.strange_bias"]);
        refused(&nested("vision_config"), &["vision_config.strange_bias"]);
        let rope = json!({"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]});
        refused(
            &llama("rope_scaling", rope),
            &["rope_scaling.mrope_section"],
        );
        refused(
            &llama(
                "quantization_config",
                json!({"quant_method": "bitsandbytes"}),
            ),
            &["bitsandbytes"],
        );
        for (key, value) in [
            ("partial_rotary_factor", json!(1)),
            ("qk_layernorm", json!(false)),
            ("mm_patch_merge_type", json!("flat")),
            ("mm_resampler_type", Value::Null),
            ("strange", Value::Null),
            ("attention_dropout", json!(0.1)),
        ] {
            from_value(&llama(key, value)).unwrap();
        }
    }

    #[test]
    fn fault_03_heads_and_factors_that_cannot_be_rotated_are_refused() {
        let llama = |extra: Value| {
            let mut config = json!({"model_type": "llama", "hidden_size": 64,
                "num_attention_heads": 4});
            config
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            config
        };
        refused(&llama(json!({"head_dim": 15})), &["head_dim", "15"]);
        refused(&llama(json!({"hidden_size": 60})), &["15"]);
        let long = |count: usize| {
            let list = vec![1.5; count];
            llama(
                json!({"rope_scaling": {"rope_type": "longrope", "attention_factor": 1.0,
                "short_factor": list, "long_factor": list,
                "original_max_position_embeddings": 64}}),
            )
        };
        from_value(&long(8)).unwrap();
        for count in [0, 7, 9] {
            refused(&long(count), &["short_factor", "need 8"]);
        }
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0});
        refused(
            &llama(json!({"rope_scaling": llama3})),
            &["high_freq_factor"],
        );
    }

    /// The keys of what people hold, and all that transformers 5 writes: each is known.
    #[test]
    fn fault_03_configurations_of_every_known_family_are_accepted() {
        let published = include_str!("published.json");
        let published: serde_json::Map<String, Value> = serde_json::from_str(published).unwrap();
        assert!(published.len() >= 12);
        for (name, value) in &published {
            let read = from_value(value);
            assert!(read.is_ok(), "{name}: {}", read.unwrap_err());
        }
    }
}
