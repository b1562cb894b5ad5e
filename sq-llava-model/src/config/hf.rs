//! Reading and writing Hugging Face `config.json` in the layouts that people have.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{
    ClipVisionConfig, LlamaConfig, ProjectorConfig, PrototypeConfig, SelectFeature, SqLlavaConfig,
};
use crate::activation::Activation;
use crate::error::ModelError;
use crate::rope::RopeScaling;

/// Reads a JSON file.
///
/// # Errors
/// If it is missing or malformed.
pub fn read_json(path: &Path) -> Result<Value, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|e| ModelError::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| ModelError::config(path, format!("not JSON: {e}")))
}

/// One JSON object of a configuration file, with typed access that names file and key.
pub(super) struct Reader<'a> {
    pub path: &'a Path,
    object: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, value: &'a Value) -> Result<Self, ModelError> {
        let object = value
            .as_object()
            .ok_or_else(|| ModelError::config(path, "not a JSON object"))?;
        Ok(Self { path, object })
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .ok_or_else(|| self.error(&format!("\"{key}\" is {value}, not {kind}")))
    }

    fn size(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let read = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        Ok(self.typed(key, "a size", read)?.unwrap_or(default))
    }

    /// A size that must not be zero.
    pub fn positive(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.size(key, default)? {
            0 => Err(self.error(&format!("\"{key}\" is 0"))),
            n => Ok(n),
        }
    }

    pub fn float(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self
            .typed(key, "a number", Value::as_f64)?
            .unwrap_or(default))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let read = self.typed(key, "true or false", Value::as_bool)?;
        Ok(read.unwrap_or(default))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn id(&self, key: &str) -> Result<Option<i64>, ModelError> {
        self.typed(key, "a token id", Value::as_i64)
    }

    /// A token id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        let read = |v: &Value| match v {
            Value::Array(list) => list.iter().map(Value::as_i64).collect(),
            other => other.as_i64().map(|id| vec![id]),
        };
        let ids = self.typed(key, "a token id or a list of them", read)?;
        Ok(ids.unwrap_or_default())
    }

    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| {
                self.error(&format!(
                    "\"{key}\" is {value}; known are quick_gelu, gelu, gelu_pytorch_tanh, silu and relu"
                ))
            }),
        }
    }

    pub fn error(&self, reason: &str) -> ModelError {
        ModelError::config(self.path, reason)
    }
}

fn llama(r: &Reader) -> Result<LlamaConfig, ModelError> {
    let heads = r.positive("num_attention_heads", 32)?;
    let kv_heads = r.positive("num_key_value_heads", heads)?;
    let hidden = r.positive("hidden_size", 4096)?;
    if heads % kv_heads != 0 {
        return Err(r.error(&format!(
            "{heads} attention heads cannot share {kv_heads} key-value heads"
        )));
    }
    let head_dim = match r.size("head_dim", 0)? {
        0 if hidden % heads != 0 => {
            return Err(r.error(&format!(
                "hidden_size {hidden} is not a multiple of {heads} attention heads"
            )));
        }
        0 => None,
        d => Some(d),
    };
    // transformers 5 nests theta and scaling in "rope_parameters".
    let nested = match r.get("rope_parameters") {
        Some(value) => Some(Reader::new(r.path, value)?),
        None => None,
    };
    let theta = match &nested {
        Some(n) => n.float("rope_theta", r.float("rope_theta", 10_000.0)?)?,
        None => r.float("rope_theta", 10_000.0)?,
    };
    let scaling = match (&nested, r.get("rope_scaling")) {
        (_, Some(value)) => rope_scaling(&Reader::new(r.path, value)?)?,
        (Some(nested), None) => rope_scaling(nested)?,
        (None, None) => None,
    };
    Ok(LlamaConfig::new()
        .with_hidden_size(hidden)
        .with_intermediate_size(r.positive("intermediate_size", 11008)?)
        .with_num_hidden_layers(r.positive("num_hidden_layers", 32)?)
        .with_num_attention_heads(heads)
        .with_num_key_value_heads(kv_heads)
        .with_head_dim(head_dim)
        .with_vocab_size(r.positive("vocab_size", 32000)?)
        .with_max_position_embeddings(r.positive("max_position_embeddings", 2048)?)
        .with_rms_norm_eps(r.float("rms_norm_eps", 1e-6)?)
        .with_rope_theta(theta)
        .with_rope_scaling(scaling)
        .with_hidden_act(r.activation("hidden_act", Activation::Silu)?)
        .with_tie_word_embeddings(r.flag("tie_word_embeddings", false)?)
        .with_attention_bias(r.flag("attention_bias", false)?)
        .with_mlp_bias(r.flag("mlp_bias", false)?))
}

fn rope_scaling(r: &Reader) -> Result<Option<RopeScaling>, ModelError> {
    let kind = match r.text("rope_type")? {
        Some(kind) => kind,
        None => r.text("type")?.unwrap_or("default"),
    };
    let factor = || -> Result<f64, ModelError> {
        match r.float("factor", 0.0)? {
            f if f >= 1.0 => Ok(f),
            f => Err(r.error(&format!("rope scaling factor {f} is below 1"))),
        }
    };
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: factor()? })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: r.float("low_freq_factor", 1.0)?,
            high_freq_factor: r.float("high_freq_factor", 4.0)?,
            original_max_position_embeddings: r
                .positive("original_max_position_embeddings", 8192)?,
        })),
        "longrope" => {
            let list = |key| -> Result<Vec<f64>, ModelError> {
                let read = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect();
                let list = r.typed(key, "a list of numbers", read)?.unwrap_or_default();
                Ok(list)
            };
            let factors = list("short_factor")?;
            let plain = factors.iter().all(|&f| f > 0.0)
                && factors == list("long_factor")?
                && r.float("attention_factor", 0.0)? == 1.0;
            match plain {
                true => Ok(Some(RopeScaling::Factors { factors })),
                false => Err(r.error(
                    "rope scaling \"longrope\" is supported only with equal lists and \"attention_factor\" 1",
                )),
            }
        }
        other => Err(r.error(&format!(
            "rope scaling \"{other}\" is not supported; known are linear and llama3"
        ))),
    }
}

pub(super) fn vision(r: &Reader) -> Result<ClipVisionConfig, ModelError> {
    let (hidden, heads) = (
        r.positive("hidden_size", 768)?,
        r.positive("num_attention_heads", 12)?,
    );
    let (image, patch) = (
        r.positive("image_size", 224)?,
        r.positive("patch_size", 32)?,
    );
    if hidden % heads != 0 || image < patch {
        return Err(r.error(&format!(
            "vision tower: hidden_size {hidden} with {heads} heads, image_size {image} with patch_size {patch}"
        )));
    }
    Ok(ClipVisionConfig::new()
        .with_hidden_size(hidden)
        .with_intermediate_size(r.positive("intermediate_size", 3072)?)
        .with_num_hidden_layers(r.positive("num_hidden_layers", 12)?)
        .with_num_attention_heads(heads)
        .with_image_size(image)
        .with_patch_size(patch)
        .with_hidden_act(r.activation("hidden_act", Activation::QuickGelu)?)
        .with_layer_norm_eps(r.float("layer_norm_eps", 1e-5)?)
        .with_pre_layernorm(!r.flag("sq_no_pre_layernorm", false)?)
        .with_post_layernorm(!r.flag("sq_no_post_layernorm", false)?)
        .with_patch_bias(r.flag("sq_patch_bias", false)?))
}

/// Reads the `config.json` (or `vision_config.json`) of a CLIP vision tower: its own, or the
/// `vision_config` of a whole CLIP model.
///
/// # Errors
/// If the file is missing or malformed, or is not of CLIP's kind.
pub fn read_vision_config(path: &Path) -> Result<ClipVisionConfig, ModelError> {
    let value = read_json(path)?;
    let r = Reader::new(path, &value)?;
    match r.text("model_type")? {
        Some("clip") => match r.get("vision_config") {
            Some(inner) => vision(&Reader::new(path, inner)?),
            None => Err(r.error("a CLIP model without \"vision_config\"")),
        },
        Some("clip_vision_model") | None => vision(&r),
        Some(other) => Err(r.error(&format!(
            "unknown vision model type \"{other}\"; known are clip and clip_vision_model"
        ))),
    }
}

impl SqLlavaConfig {
    /// Reads the `config.json` of a model: original LLaVA and SQ-LLaVA, llava-hf, or a LLaMA-type
    /// language model alone. The vision tower of an original LLaVA stands in a file of its own
    /// ([`read_vision_config`]) unless `vision_config` is inside.
    ///
    /// # Errors
    /// If the file is missing or malformed, or describes an unknown kind of model.
    pub fn from_hf(path: &Path) -> Result<Self, ModelError> {
        let value = read_json(path)?;
        let r = Reader::new(path, &value)?;
        let model_type = r.text("model_type")?.unwrap_or("llama");
        let mut config = match (model_type, r.get("text_config")) {
            ("llava" | "llava_llama" | "sq_llava", Some(text)) => {
                llava_hf(&r, &Reader::new(path, text)?)?
            }
            ("llava" | "llava_llama" | "sq_llava" | "llama" | "vicuna", None) => original(&r)?,
            ("mistral", None) if r.get("sliding_window").is_none() => original(&r)?,
            (other, _) => {
                return Err(r.error(&format!(
                    "unknown model type \"{other}\"; known are llava, llava_llama and llama"
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

    /// `config.json` in the original LLaVA layout, with this project's additions under `sq_` keys
    /// and the vision tower under `vision_config`.
    pub fn to_hf(&self) -> Value {
        let mut out = llama_json(&self.llama);
        out["architectures"] = json!(["LlavaLlamaForCausalLM"]);
        out["model_type"] = json!("llava");
        self.write_ids(&mut out);
        if let Some(vision) = &self.vision {
            out["mm_hidden_size"] = json!(vision.hidden_size);
            out["vision_config"] = vision_json(vision);
        } else {
            out["architectures"] = json!(["LlamaForCausalLM"]);
            out["model_type"] = json!("llama");
            return out;
        }
        out["mm_projector_type"] = json!(self.projector.name());
        if let ProjectorConfig::Cluster(cluster) = &self.projector {
            out["num_latents"] = json!(cluster.num_latents);
            out["sq_cluster_iterations"] = json!(cluster.num_iterations);
        }
        out["mm_vision_select_layer"] = json!(self.select_layer);
        out["mm_vision_select_feature"] = json!(self.select_feature);
        out["image_aspect_ratio"] = json!(self.image_aspect_ratio);
        out["mm_use_im_start_end"] = json!(false);
        out["mm_use_im_patch_token"] = json!(false);
        if let Some(prototype) = &self.prototype {
            out["sq_prototype"] = json!(prototype);
        }
        if let Some(conversation) = &self.conversation {
            out["sq_conversation"] = json!(conversation);
        }
        if let Some(start) = self.new_tokens_start {
            out["sq_new_tokens_start"] = json!(start);
        }
        out
    }

    /// `config.json` in the llava-hf layout.
    ///
    /// # Errors
    /// If the model has parts that `LlavaForConditionalGeneration` cannot hold.
    pub fn to_llava_hf(&self) -> Result<Value, ModelError> {
        let (
            Some(vision),
            ProjectorConfig::Mlp {
                depth: 2,
                act,
                bias,
            },
            None,
            None,
        ) = (
            &self.vision,
            &self.projector,
            &self.prototype,
            self.new_tokens_start,
        )
        else {
            return Err(ModelError::Argument(
                "the llava-hf layout holds a vision tower and an mlp2x_gelu projector only; export to the original layout instead".into(),
            ));
        };
        let mut text = llama_json(&self.llama);
        text["model_type"] = json!("llama");
        text["architectures"] = json!(["LlamaForCausalLM"]);
        self.write_ids(&mut text);
        let strategy = match self.select_feature {
            SelectFeature::Patch => "default",
            SelectFeature::ClsPatch => "full",
        };
        let mut out = json!({
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "ignore_index": -100,
            "projector_hidden_act": act,
            "multimodal_projector_bias": bias,
            "vision_feature_layer": self.select_layer,
            "vision_feature_select_strategy": strategy,
            "image_seq_length": self.tokens_per_image(),
            "tie_word_embeddings": self.llama.tie_word_embeddings,
            "text_config": text,
            "vision_config": vision_json(vision),
        });
        if let Some(id) = self.image_token_index {
            out["image_token_index"] = json!(id);
        }
        if let Some(id) = self.pad_token_id {
            out["pad_token_id"] = json!(id);
        }
        Ok(out)
    }

    fn write_ids(&self, out: &mut Value) {
        if let Some(id) = self.bos_token_id {
            out["bos_token_id"] = json!(id);
        }
        match self.eos_token_ids.as_slice() {
            [] => {}
            [id] => out["eos_token_id"] = json!(id),
            ids => out["eos_token_id"] = json!(ids),
        }
        if let Some(id) = self.pad_token_id {
            out["pad_token_id"] = json!(id);
        }
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

fn llama_json(c: &LlamaConfig) -> Value {
    let mut out = json!({
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "hidden_act": c.hidden_act,
        "tie_word_embeddings": c.tie_word_embeddings,
        "attention_bias": c.attention_bias,
        "mlp_bias": c.mlp_bias,
    });
    if let Some(d) = c.head_dim {
        out["head_dim"] = json!(d);
    }
    match &c.rope_scaling {
        None => {}
        // transformers' longrope with equal lists and no attention factor divides likewise.
        Some(RopeScaling::Factors { factors }) => {
            out["rope_scaling"] = json!({
                "rope_type": "longrope",
                "factor": 1.0,
                "attention_factor": 1.0,
                "short_factor": factors,
                "long_factor": factors,
                "original_max_position_embeddings": c.max_position_embeddings,
            });
        }
        Some(RopeScaling::Linear { factor }) => {
            out["rope_scaling"] =
                json!({"rope_type": "linear", "type": "linear", "factor": factor});
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => {
            out["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            });
        }
    }
    out
}

fn vision_json(c: &ClipVisionConfig) -> Value {
    let mut out = json!({
        "model_type": "clip_vision_model",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_act": c.hidden_act,
        "layer_norm_eps": c.layer_norm_eps,
    });
    for (key, present) in [
        ("sq_no_pre_layernorm", !c.pre_layernorm),
        ("sq_no_post_layernorm", !c.post_layernorm),
        ("sq_patch_bias", c.patch_bias),
    ] {
        if present {
            out[key] = json!(true);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
