//! Reading and writing Hugging Face `config.json` in the layouts that people have.

mod object;
mod read;
mod towers;
mod write;

pub(crate) use object::Reader;
pub use object::read_json;
pub use towers::read_vision_config;
pub(crate) use towers::{vision, vision_json};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::SqLlavaConfig;
    use crate::error::ModelError;
    use crate::ops::rope::RopeScaling;

    fn from_value(value: &Value) -> Result<SqLlavaConfig, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, value.to_string()).unwrap();
        SqLlavaConfig::from_hf(&path)
    }

    #[test]
    fn presets_survive_a_round_trip() {
        for name in ["sq-llava-7b", "sq-llava-13b", "tiny"] {
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
                json!({"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 2.0}}),
                "yarn",
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
}
