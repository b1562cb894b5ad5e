//! The `config.json` of a whole model, read in the layouts that people have.

use std::path::Path;

use super::object::{Reader, read_json};
use super::towers::{llama, vision};
use crate::config::{ProjectorConfig, PrototypeConfig, SelectFeature, SqLlavaConfig};
use crate::error::ModelError;
use crate::ops::activation::Activation;

impl SqLlavaConfig {
    /// Reads the `config.json` of a model: original LLaVA and SQ-LLaVA, llava-hf, or a LLaMA-type
    /// language model alone. The vision tower of an original LLaVA stands in a file of its own
    /// ([`read_vision_config`](crate::config::read_vision_config)) unless `vision_config` is inside.
    ///
    /// # Errors
    /// If the file is missing or malformed, or describes an unknown kind of model.
    pub fn from_hf(path: &Path) -> Result<Self, ModelError> {
        let value = read_json(path)?;
        let r = Reader::new(path, &value)?;
        let model_type = r.text("model_type")?.unwrap_or("llama");
        let mut config = match (model_type, r.get("text_config")) {
            ("llava" | "llava_llama" | "sq_llava" | "share4v", Some(text)) => {
                llava_hf(&r, &Reader::new(path, text)?)?
            }
            ("llava" | "llava_llama" | "sq_llava" | "share4v" | "llama" | "vicuna", None) => {
                original(&r)?
            }
            ("mistral", None) if r.get("sliding_window").is_none() => original(&r)?,
            (other, _) => {
                return Err(r.error(&format!(
                    "unknown model type \"{other}\"; known are llava, llava_llama, share4v and llama"
                )));
            }
        };
        if let Some(inner) = r.get("vision_config") {
            config.vision = Some(vision(&Reader::new(path, inner)?)?);
        }
        if let Some(inner) = r.get("sq_prototype") {
            let parsed = serde_json::from_value::<PrototypeConfig>(inner.clone());
            let reason = |e| r.error(&format!("\"sq_prototype\": {e}"));
            config.prototype = Some(parsed.map_err(reason)?);
        }
        config.conversation = r.text("sq_conversation")?.map(Into::into);
        config.new_tokens_start = match r.size("sq_new_tokens_start", 0)? {
            0 => None,
            start => Some(start),
        };
        Ok(config)
    }
}

/// Original LLaVA and SQ-LLaVA: the language model's keys and `mm_*` in one object.
fn original(r: &Reader) -> Result<SqLlavaConfig, ModelError> {
    let mut config = SqLlavaConfig::new(llama(r)?);
    token_ids(&mut config, r)?;
    if let Some(name) = r.text("mm_projector_type")? {
        let latents = match r.size("num_latents", 0)? {
            0 => None,
            k => Some(k),
        };
        config.projector = ProjectorConfig::from_name(name, latents).ok_or_else(|| {
            r.error(&format!(
                "unknown mm_projector_type \"{name}\"; known are linear, mlpNx_gelu, cluster and identity"
            ))
        })?;
    } else if r.get("mm_hidden_size").is_some() {
        // LLaVA 1.0 configurations name no type: one linear.
        config.projector = ProjectorConfig::Linear { bias: true };
    }
    if let ProjectorConfig::Cluster(cluster) = &mut config.projector {
        cluster.num_iterations = r.positive("sq_cluster_iterations", 2)?;
    }
    config.select_layer = r.id("mm_vision_select_layer")?.unwrap_or(-2);
    config.select_feature = match r.text("mm_vision_select_feature")?.unwrap_or("patch") {
        "patch" => SelectFeature::Patch,
        "cls_patch" => SelectFeature::ClsPatch,
        other => {
            return Err(r.error(&format!(
                "unknown mm_vision_select_feature \"{other}\"; known are patch and cls_patch"
            )));
        }
    };
    if r.flag("mm_use_im_start_end", false)? {
        return Err(r.error("\"mm_use_im_start_end\" is true; such models are not supported"));
    }
    let aspect = r.text("image_aspect_ratio")?;
    config.image_aspect_ratio = match aspect {
        // LLaVA 1.0 leaves it out or says square: shortest side and centre crop.
        None | Some("square" | "crop") => "crop".into(),
        Some(known @ ("pad" | "resize")) => known.into(),
        Some(other) => {
            return Err(r.error(&format!(
                "unknown image_aspect_ratio \"{other}\"; known are pad, crop and resize"
            )));
        }
    };
    Ok(config)
}

fn llava_hf(r: &Reader, text: &Reader) -> Result<SqLlavaConfig, ModelError> {
    let mut config = SqLlavaConfig::new(llama(text)?);
    // The head's tying may be said outside.
    config.llama.tie_word_embeddings =
        r.flag("tie_word_embeddings", config.llama.tie_word_embeddings)?;
    token_ids(&mut config, text)?;
    token_ids(&mut config, r)?;
    config.projector = ProjectorConfig::Mlp {
        depth: 2,
        act: r.activation("projector_hidden_act", Activation::Gelu)?,
        bias: r.flag("multimodal_projector_bias", true)?,
    };
    config.select_layer = r.id("vision_feature_layer")?.unwrap_or(-2);
    config.select_feature = match r
        .text("vision_feature_select_strategy")?
        .unwrap_or("default")
    {
        "default" => SelectFeature::Patch,
        "full" => SelectFeature::ClsPatch,
        other => {
            return Err(r.error(&format!(
                "unknown vision_feature_select_strategy \"{other}\"; known are default and full"
            )));
        }
    };
    // llava-hf's processor crops; its converted checkpoints were trained on padded squares, and
    // LLaVA's own configuration says so.
    config.image_aspect_ratio = r.text("image_aspect_ratio")?.unwrap_or("pad").into();
    config.image_token_index = match r.id("image_token_index")? {
        Some(id) => Some(id),
        None => r.id("image_token_id")?,
    };
    Ok(config)
}

/// Token ids where this object has them; others stay.
fn token_ids(config: &mut SqLlavaConfig, r: &Reader) -> Result<(), ModelError> {
    config.bos_token_id = r.id("bos_token_id")?.or(config.bos_token_id);
    let eos = r.ids("eos_token_id")?;
    if !eos.is_empty() {
        config.eos_token_ids = eos;
    }
    config.pad_token_id = r.id("pad_token_id")?.or(config.pad_token_id);
    Ok(())
}
