//! The `config.json` of a whole model, read in the layouts that people have.

use std::path::Path;

use serde_json::Value;
use sq_llava_data::image::AnyResolution;

use super::decoder::decoder;
use super::known::Described;
use super::object::{Reader, judge_unknown, read_json};
use super::tiles::{TILING, note_original, of_transformers};
use super::towers::{check_quantization, vision};
use crate::config::{
    Family, ProjectorConfig, PrototypeConfig, SelectFeature, SqLlavaConfig, VisionConfig,
};
use crate::error::ModelError;
use crate::ops::activation::Activation;

/// Model types in LLaVA's own layout; ShareGPT4V's is LLaVA by another name.
const LLAVA: [&str; 6] = [
    "llava",
    "llava_llama",
    "llava_mistral",
    "llava_qwen",
    "sq_llava",
    "share4v",
];

/// LLaVA's classes around language models that are not built here.
const OTHER_CLASSES: [&str; 3] = [
    "LlavaGemmaForCausalLM",
    "LlavaMixtralForCausalLM",
    "LlavaMptForCausalLM",
];

impl SqLlavaConfig {
    /// Reads the `config.json` of a model: original LLaVA and SQ-LLaVA, llava-hf, or a language
    /// model alone. The vision tower of an original LLaVA stands in a file of its own
    /// ([`read_vision_config`](crate::config::read_vision_config)) unless `vision_config` is
    /// inside.
    ///
    /// # Errors
    /// If the file is missing or malformed, describes an unknown kind of model, or (unless
    /// `allow_unused`) has a key that may change what is computed.
    pub fn from_hf(path: &Path, allow_unused: bool) -> Result<Self, ModelError> {
        let value = read_json(path)?;
        let r = Reader::new(path, &value)?;
        let model_type = model_type(&r)?;
        let text = r.inside("text_config")?;
        let mut unknown = Vec::new();
        let is_llava = LLAVA.contains(&model_type);
        let tiles = TILING.contains(&model_type);
        let mut config = match (&text, Family::of(model_type)) {
            (Some(text), _) if is_llava || tiles => {
                let config = llava_hf(&r, text, &mut unknown)?;
                unknown.extend(text.unknown(Described::Text));
                config
            }
            (None, _) if is_llava => {
                let family = language_model(&r, model_type)?;
                original(&r, family, &mut unknown)?
            }
            (None, Some(family)) => original(&r, family, &mut unknown)?,
            (None, _) if tiles => {
                return Err(r.error(&format!("a {model_type} without \"text_config\"")));
            }
            _ => {
                return Err(r.error(&format!(
                    "the model type \"{model_type}\" is not supported; known are llava (also {}, {}) and the language models {}",
                    LLAVA[1..].join(", "),
                    TILING.join(", "),
                    Family::known()
                )));
            }
        };
        if let Some(inner) = r.inside("vision_config")? {
            config.vision = Some(vision(&inner)?);
            unknown.extend(inner.unknown(Described::Vision));
        }
        config.read_original_tiling(path, &value)?;
        if let Some(inner) = r.get("sq_prototype") {
            let parsed = serde_json::from_value::<PrototypeConfig>(inner.clone());
            let reason = |e| r.error(&format!("\"sq_prototype\": {e}"));
            config.prototype = Some(parsed.map_err(reason)?);
        }
        config.conversation = r.text("sq_conversation")?.map(Into::into);
        if let Some(inner) = r.get("sq_asking_role") {
            let parsed = serde_json::from_value(inner.clone());
            let reason = |e| r.error(&format!("\"sq_asking_role\": {e}"));
            config.asking_role = Some(parsed.map_err(reason)?);
        }
        config.new_tokens_start = match r.size("sq_new_tokens_start", 0)? {
            0 => None,
            start => Some(start),
        };
        unknown.extend(r.unknown(match text {
            Some(_) => Described::LlavaHf,
            None => Described::Language,
        }));
        judge_unknown(path, &unknown, allow_unused)?;
        Ok(config)
    }
}

/// `model_type`; a file without one is a LLaMA unless its `architectures` say otherwise.
fn model_type<'a>(r: &Reader<'a>) -> Result<&'a str, ModelError> {
    if let Some(name) = r.text("model_type")? {
        return Ok(name);
    }
    let first = r
        .get("architectures")
        .and_then(|list| list.get(0)?.as_str());
    match first {
        None | Some("LlamaForCausalLM" | "LlamaModel") => Ok("llama"),
        Some(name) if name.starts_with("Llava") => Ok("llava"),
        Some(other) => Err(r.error(&format!(
            "no \"model_type\", and the architecture \"{other}\" is not supported"
        ))),
    }
}

/// The language model of a LLaVA in its own layout: by our own key, else by its type or class.
fn language_model(r: &Reader, model_type: &str) -> Result<Family, ModelError> {
    let unknown = |name: &str| {
        let known = Family::known();
        r.error(&format!(
            "the language model is a \"{name}\", which is not supported; known are {known}"
        ))
    };
    if let Some(name) = r.text("sq_language_model")? {
        return Family::of(name).ok_or_else(|| unknown(name));
    }
    match model_type {
        "llava_mistral" => return Ok(Family::Mistral),
        "llava_qwen" => return Ok(Family::Qwen2),
        _ => {}
    }
    let classes = r.get("architectures");
    match classes.and_then(|list| list.get(0)?.as_str()) {
        Some("LlavaMistralForCausalLM") => Ok(Family::Mistral),
        Some("LlavaQwenForCausalLM") => Ok(Family::Qwen2),
        Some(other) if OTHER_CLASSES.contains(&other) => Err(unknown(other)),
        _ => Ok(Family::Llama),
    }
}

/// Original LLaVA and SQ-LLaVA: the language model's keys and `mm_*` in one object.
fn original(
    r: &Reader,
    family: Family,
    unknown: &mut Vec<String>,
) -> Result<SqLlavaConfig, ModelError> {
    let mut config = SqLlavaConfig::new(decoder(r, family, unknown)?);
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
    feature_layers(&mut config, r, "mm_vision_select_layer")?;
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
    // LLaVA 1.0 leaves it out or says square: shortest side and centre crop.
    let ratio = r.text("image_aspect_ratio")?.unwrap_or("square");
    config.image_aspect_ratio = Some(aspect(ratio).map_err(|reason| r.error(&reason))?);
    note_original(r, ratio);
    Ok(config)
}

fn llava_hf(
    r: &Reader,
    text: &Reader,
    unknown: &mut Vec<String>,
) -> Result<SqLlavaConfig, ModelError> {
    let name = text.text("model_type")?.unwrap_or("llama");
    let family = Family::of(name).ok_or_else(|| {
        r.error(&format!(
            "the text model is a \"{name}\" (\"text_config.model_type\"), which is not supported; known are {}",
            Family::known()
        ))
    })?;
    let mut config = SqLlavaConfig::new(decoder(text, family, unknown)?);
    let kind = r.text("model_type")?.unwrap_or_default();
    let tied = r.flag("tie_word_embeddings", false)?;
    // Either may say that the head is tied, but LlavaNextConfig reads its own key alone.
    config.llama.tie_word_embeddings &= kind != "llava_next";
    config.llama.tie_word_embeddings |= tied;
    check_quantization(r)?;
    let usual = UsualKeys::of(kind);
    if r.get("vision_config").is_none() {
        config.vision = Some(usual.vision);
    }
    token_ids(&mut config, text)?;
    token_ids(&mut config, r)?;
    config.projector = ProjectorConfig::Mlp {
        depth: 2,
        act: r.activation("projector_hidden_act", Activation::Gelu)?,
        bias: r.flag("multimodal_projector_bias", true)?,
    };
    config.select_layers = vec![usual.layer];
    feature_layers(&mut config, r, "vision_feature_layer")?;
    config.select_feature = match r
        .text("vision_feature_select_strategy")?
        .unwrap_or(usual.strategy)
    {
        "default" => SelectFeature::Patch,
        "full" => SelectFeature::ClsPatch,
        other => {
            return Err(r.error(&format!(
                "unknown vision_feature_select_strategy \"{other}\"; known are default and full"
            )));
        }
    };
    // Its processor's own file says it, unless LLaVA's key is there.
    config.image_aspect_ratio = r
        .text("image_aspect_ratio")?
        .map(aspect)
        .transpose()
        .map_err(|reason| r.error(&reason))?;
    config.image_token_index = Some(match r.id("image_token_index")? {
        Some(id) => id,
        None => r.id("image_token_id")?.unwrap_or(usual.image_token),
    });
    if let Some(anyres) = of_transformers(r)? {
        config.image_aspect_ratio = Some(anyres.aspect_name());
        config.anyres = Some(anyres);
    }
    Ok(config)
}

/// What transformers' LlavaConfig and LlavaNextConfig, or LlavaOnevisionConfig, take for keys that
/// a file leaves out.
struct UsualKeys {
    vision: VisionConfig,
    layer: i64,
    strategy: &'static str,
    image_token: i64,
}

impl UsualKeys {
    fn of(model_type: &str) -> Self {
        match model_type {
            "llava_onevision" => Self {
                // SigLIP without its last layer.
                vision: VisionConfig::so400m(384).with_num_hidden_layers(26),
                layer: -1,
                strategy: "full",
                image_token: 151_646,
            },
            // OpenAI's ViT-L/14 at 336 pixels.
            _ => Self {
                vision: VisionConfig::large(336),
                layer: -2,
                strategy: "default",
                image_token: 32_000,
            },
        }
    }
}

/// One layer of the tower, or a list of them.
fn feature_layers(config: &mut SqLlavaConfig, r: &Reader, key: &str) -> Result<(), ModelError> {
    let read = |value: &Value| match value {
        Value::Array(list) => list.iter().map(Value::as_i64).collect(),
        other => other.as_i64().map(|layer| vec![layer]),
    };
    if let Some(layers) = r.typed(key, "a layer or a list of layers", read)? {
        if layers.is_empty() {
            return Err(r.error(&format!("\"{key}\" names no layer")));
        }
        config.select_layers = layers;
    }
    Ok(())
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

/// LLaVA's `image_aspect_ratio` by one name each.
fn aspect(name: &str) -> Result<String, String> {
    match name {
        "square" | "crop" => Ok("crop".into()),
        known @ ("pad" | "resize") => Ok(known.into()),
        tiled if AnyResolution::max_tiles_of(tiled).is_some() => Ok(tiled.into()),
        other => Err(format!(
            "unknown image_aspect_ratio \"{other}\"; known are pad, crop, resize, anyres and anyres_max_N"
        )),
    }
}
