//! A whole CLIP model: `CLIPConfig` and `CLIPTextConfig` of transformers.

use std::path::Path;

use burn::config::Config;

use super::hf::{Described, Reader, judge_unknown, read_json, vision};
use super::{VisionConfig, VisionFamily};
use crate::error::ModelError;
use crate::ops::activation::Activation;

/// CLIP text tower sizes; field names as in Hugging Face's `CLIPTextConfig`.
#[derive(Config, Debug, PartialEq)]
pub struct ClipTextConfig {
    /// Rows of the embedding.
    #[config(default = 49408)]
    pub vocab_size: usize,
    /// Width of the residual stream.
    #[config(default = 512)]
    pub hidden_size: usize,
    /// Width of the MLP.
    #[config(default = 2048)]
    pub intermediate_size: usize,
    /// Number of layers.
    #[config(default = 12)]
    pub num_hidden_layers: usize,
    /// Attention heads.
    #[config(default = 8)]
    pub num_attention_heads: usize,
    /// Longest text in tokens, begin and end included.
    #[config(default = 77)]
    pub max_position_embeddings: usize,
    /// MLP non-linearity.
    #[config(default = "Activation::QuickGelu")]
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    #[config(default = 1e-5)]
    pub layer_norm_eps: f64,
    /// The token at which a text's feature is taken. 2 stands in OpenAI's own files and is not
    /// the end token's id: see [`Self::pools_at_highest`].
    #[config(default = 49407)]
    pub eos_token_id: i64,
}

impl ClipTextConfig {
    /// Whether a text's feature stands at its highest id, as files with the `eos_token_id` 2 from
    /// before transformers 4.31 have it; else it stands at the first end token.
    pub fn pools_at_highest(&self) -> bool {
        self.eos_token_id == 2
    }
}

/// Both towers of CLIP and the width in which they meet.
#[derive(Config, Debug, PartialEq)]
pub struct ClipConfig {
    /// The text tower.
    pub text: ClipTextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Width of the embeddings.
    #[config(default = 512)]
    pub projection_dim: usize,
}

impl ClipConfig {
    /// Reads the `config.json` of a `CLIPModel`.
    ///
    /// # Errors
    /// If the file is missing or malformed, describes another kind of model, or (unless
    /// `allow_unused`) has a key that may change what is computed.
    pub fn from_hf(path: &Path, allow_unused: bool) -> Result<Self, ModelError> {
        let value = read_json(path)?;
        let r = Reader::new(path, &value)?;
        match r.text("model_type")? {
            Some("clip") => {}
            other => {
                return Err(r.error(&format!(
                    "\"model_type\" is {}, but a whole CLIP model (\"clip\") is needed",
                    other.map_or("missing".into(), |kind| format!("\"{kind}\""))
                )));
            }
        }
        // Old files have each part twice; transformers takes the `_dict` one with its defaults.
        let part = |name: &str| -> Result<Reader<'_>, ModelError> {
            let (new, old) = (r.inside(name)?, r.inside(&format!("{name}_dict"))?);
            let missing = || r.error(&format!("a CLIP model without \"{name}\""));
            old.or(new).ok_or_else(missing)
        };
        let (words, pictures) = (part("text_config")?, part("vision_config")?);
        let tower = vision(&pictures)?;
        if tower.family != VisionFamily::Clip {
            return Err(r.error(&format!(
                "the vision tower is a \"{}\"; a CLIP's is a clip_vision_model",
                tower.family.model_type()
            )));
        }
        if let Some(other) = words
            .text("model_type")?
            .filter(|&kind| kind != "clip_text_model")
        {
            return Err(r.error(&format!(
                "the text tower is a \"{other}\", which is not supported; known is clip_text_model"
            )));
        }
        let config =
            Self::new(text(&words)?, tower).with_projection_dim(r.positive("projection_dim", 512)?);
        let mut unknown = words.unknown(Described::ClipText);
        unknown.extend(pictures.unknown(Described::Vision));
        unknown.extend(r.unknown(Described::Clip));
        judge_unknown(path, &unknown, allow_unused)?;
        Ok(config)
    }
}

fn text(r: &Reader) -> Result<ClipTextConfig, ModelError> {
    let (hidden, heads) = (
        r.positive("hidden_size", 512)?,
        r.positive("num_attention_heads", 8)?,
    );
    if hidden % heads != 0 {
        return Err(r.error(&format!(
            "text tower: hidden_size {hidden} is not a multiple of {heads} attention heads"
        )));
    }
    Ok(ClipTextConfig::new()
        .with_vocab_size(r.positive("vocab_size", 49408)?)
        .with_hidden_size(hidden)
        .with_intermediate_size(r.positive("intermediate_size", 2048)?)
        .with_num_hidden_layers(r.positive("num_hidden_layers", 12)?)
        .with_num_attention_heads(heads)
        .with_max_position_embeddings(r.positive("max_position_embeddings", 77)?)
        .with_hidden_act(r.activation("hidden_act", Activation::QuickGelu)?)
        .with_layer_norm_eps(r.float("layer_norm_eps", 1e-5)?)
        .with_eos_token_id(r.id("eos_token_id")?.unwrap_or(49407)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value) -> Result<ClipConfig, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, value.to_string()).unwrap();
        ClipConfig::from_hf(&path, false)
    }

    #[test]
    fn the_older_form_of_a_part_wins_whole() {
        let config = read(&json!({
            "model_type": "clip", "projection_dim": 768,
            "text_config": {"hidden_size": 64, "eos_token_id": 2, "hidden_act": "gelu"},
            "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
            "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14},
            "vision_config_dict": null,
        }))
        .unwrap();
        assert_eq!((config.text.hidden_size, config.projection_dim), (768, 768));
        assert_eq!(config.text.hidden_act, Activation::QuickGelu);
        assert!(!config.text.pools_at_highest());
        assert_eq!(config.vision.hidden_size, 1024);
    }

    #[test]
    fn fault_03_parts_of_another_kind_and_unknown_keys_are_refused() {
        let with = |text: Value, vision: Value, more: (&str, Value)| {
            json!({"model_type": "clip", "text_config": text, "vision_config": vision,
                more.0: more.1})
        };
        let plain = || json!({});
        let none = || ("logit_scale_init_value", json!(2.6592));
        read(&with(plain(), plain(), none())).unwrap();
        for (value, word) in [
            (
                with(json!({"model_type": "siglip_text_model"}), plain(), none()),
                "siglip_text_model",
            ),
            (
                with(
                    plain(),
                    json!({"model_type": "siglip_vision_model"}),
                    none(),
                ),
                "siglip_vision_model",
            ),
            (
                with(json!({"causal": false}), plain(), none()),
                "text_config.causal",
            ),
            (
                with(plain(), json!({"num_channels": 4}), none()),
                "vision_config.num_channels",
            ),
            (
                with(plain(), json!({"use_head": true}), none()),
                "vision_config.use_head",
            ),
            (
                with(plain(), plain(), ("logit_bias", json!(1.0))),
                "logit_bias",
            ),
        ] {
            let error = read(&value).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn what_is_no_clip_is_named() {
        for (value, word) in [
            (json!({"model_type": "llava"}), "llava"),
            (json!({"text_config": {}}), "missing"),
            (
                json!({"model_type": "clip", "vision_config": {}}),
                "text_config",
            ),
            (
                json!({"model_type": "clip", "text_config": {"hidden_size": 30}, "vision_config": {}}),
                "30",
            ),
        ] {
            let error = read(&value).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
