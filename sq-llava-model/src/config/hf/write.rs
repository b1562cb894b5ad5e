//! The `config.json` of a whole model, written in two layouts.

use serde_json::{Value, json};

use super::decoder::decoder_json;
use super::towers::vision_json;
use crate::config::{Family, ProjectorConfig, SqLlavaConfig};
use crate::error::ModelError;

impl SqLlavaConfig {
    /// `config.json` in the original LLaVA layout, with this project's additions under `sq_` keys
    /// and the vision tower under `vision_config`.
    pub fn to_hf(&self) -> Value {
        let mut out = decoder_json(&self.llama);
        out["architectures"] = json!(["LlavaLlamaForCausalLM"]);
        out["model_type"] = json!("llava");
        self.write_ids(&mut out);
        if let Some(vision) = &self.vision {
            out["mm_hidden_size"] = json!(self.feature_width());
            out["vision_config"] = vision_json(vision);
        } else {
            self.write_family(&mut out);
            return out;
        }
        if self.llama.family != Family::Llama {
            out["sq_language_model"] = json!(self.llama.family.model_type());
        }
        out["mm_projector_type"] = json!(self.projector.name());
        if let ProjectorConfig::Cluster(cluster) = &self.projector {
            out["num_latents"] = json!(cluster.num_latents);
            out["sq_cluster_iterations"] = json!(cluster.num_iterations);
        }
        out["mm_vision_select_layer"] = self.layers_json();
        out["mm_vision_select_feature"] = json!(self.select_feature);
        if let Some(aspect) = &self.image_aspect_ratio {
            out["image_aspect_ratio"] = json!(aspect);
        }
        self.write_original_tiling(&mut out);
        out["mm_use_im_start_end"] = json!(false);
        out["mm_use_im_patch_token"] = json!(false);
        if let Some(prototype) = &self.prototype {
            out["sq_prototype"] = json!(prototype);
        }
        self.write_template(&mut out);
        if let Some(start) = self.new_tokens_start {
            out["sq_new_tokens_start"] = json!(start);
        }
        out
    }

    /// `config.json` in the llava-hf layout.
    ///
    /// # Errors
    /// If the model has parts that transformers' LLaVA classes cannot hold.
    pub(crate) fn to_llava_hf(&self) -> Result<Value, ModelError> {
        let (
            Some(vision),
            ProjectorConfig::Mlp {
                depth: 2,
                act,
                bias,
            },
            None,
        ) = (&self.vision, &self.projector, &self.prototype)
        else {
            return Err(ModelError::Argument(
                "the llava-hf layout holds a vision tower and an mlp2x_gelu projector only; export to the original layout instead".into(),
            ));
        };
        let mut text = decoder_json(&self.llama);
        self.write_family(&mut text);
        self.write_ids(&mut text);
        let mut out = json!({
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "ignore_index": -100,
            "projector_hidden_act": act,
            "multimodal_projector_bias": bias,
            "vision_feature_layer": self.layers_json(),
            "vision_feature_select_strategy": self.select_feature.strategy(),
            "image_seq_length": self.tokens_per_image(),
            "tie_word_embeddings": self.llama.tie_word_embeddings,
            "text_config": text,
            "vision_config": vision_json(vision),
        });
        let Some(id) = self.image_token_index else {
            return Err(ModelError::Argument(
                "the llava-hf layout needs the id of the token `<image>`, with a row in the embedding; add it to the tokenizer first".into(),
            ));
        };
        out["image_token_index"] = json!(id);
        self.write_transformers_tiling(&mut out)?;
        self.write_template(&mut out);
        if let Some(id) = self.pad_token_id {
            out["pad_token_id"] = json!(id);
        }
        Ok(out)
    }

    /// Not of transformers: the template that it was trained with.
    fn write_template(&self, out: &mut Value) {
        if let Some(conversation) = &self.conversation {
            out["sq_conversation"] = json!(conversation);
        }
        if let Some(role) = &self.asking_role {
            out["sq_asking_role"] = json!(role);
        }
    }

    /// One feature layer as a number, several as a list.
    fn layers_json(&self) -> Value {
        match self.select_layers.as_slice() {
            [layer] => json!(layer),
            layers => json!(layers),
        }
    }

    fn write_family(&self, out: &mut Value) {
        out["architectures"] = json!([self.llama.family.architecture()]);
        out["model_type"] = json!(self.llama.family.model_type());
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
