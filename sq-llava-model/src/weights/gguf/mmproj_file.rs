//! Vision tower and projector as the metadata and tensors of an `mmproj` file for llama.cpp.

use sq_llava_data::gguf::GgufField;
use sq_llava_data::image::{ImageAspect, ImageProcessorConfig, PatchMerge};

use super::encode::GgufType;
use super::mmproj_keys::{ASPECT, MERGE, PINPOINTS};
use super::mmproj_names::{layer, mmproj_name};
use super::output::{Change, Tensor};
use super::to_file::size_field;
use crate::config::{ProjectorConfig, SelectFeature, SqLlavaConfig, VisionConfig, VisionFamily};
use crate::error::ModelError;
use crate::ops::activation::Activation;
use crate::weights::write::Entry;

/// The part of a model that looks at pictures.
pub(in crate::weights) struct PictureFile<'a> {
    config: &'a SqLlavaConfig,
    vision: &'a VisionConfig,
    pictures: &'a ImageProcessorConfig,
    /// Index of the hidden state that becomes image features.
    feature_layer: usize,
    kind: GgufType,
}

impl<'a> PictureFile<'a> {
    /// A part that llama.cpp can compute; quantised models keep theirs in f16.
    ///
    /// # Errors
    /// If it cannot; the message names the setting.
    pub fn new(
        config: &'a SqLlavaConfig,
        vision: &'a VisionConfig,
        pictures: &'a ImageProcessorConfig,
        kind: GgufType,
    ) -> Result<Self, ModelError> {
        let refused = |what: &str| {
            Err(ModelError::Argument(format!(
                "llama.cpp cannot compute what this model makes of pictures: {what}"
            )))
        };
        match &config.projector {
            ProjectorConfig::Mlp {
                depth: 2,
                act: Activation::Gelu | Activation::GeluPytorchTanh,
                bias: true,
            } => {}
            other => {
                return refused(&format!(
                    "its projector is {} (\"mm_projector_type\"), not mlp2x_gelu with biases",
                    other.name()
                ));
            }
        }
        if let Some(anyres) = config.anyres.as_ref().filter(|own| own.max_tiles.is_some()) {
            return refused(&format!(
                "it reduces the features of many tiles, and shows several pictures as one tile each (\"{}\")",
                anyres.aspect_name()
            ));
        }
        if vision.family == VisionFamily::Dinov2 {
            return refused("its tower is a DINOv2");
        }
        match (vision.class_token, config.select_feature) {
            (true, SelectFeature::Patch) | (false, SelectFeature::ClsPatch) => {}
            (true, _) => return refused("the class token is among the features (\"full\")"),
            (false, _) => {
                return refused("the first patch is not among the features (\"default\")");
            }
        }
        let layers = config.feature_layers().unwrap_or_default();
        let &[feature_layer @ 1..=usize::MAX] = layers.as_slice() else {
            return refused(&format!(
                "its features are those of the layers {layers:?}; one layer behind the embeddings is supported"
            ));
        };
        Ok(Self {
            config,
            vision,
            pictures,
            feature_layer,
            kind: if kind.is_quantized() {
                GgufType::F16
            } else {
                kind
            },
        })
    }

    /// Its type.
    pub fn kind(&self) -> GgufType {
        self.kind
    }

    /// What llama.cpp does otherwise, in a way that is close.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.vision.class_token {
            notes.push(
                "llama.cpp (as of llama-cpp-python 0.3.36) puts the class token behind the patches, so that its features of this tower are not the model's"
                    .to_owned(),
            );
        }
        if self.vision.hidden_act == Activation::Gelu {
            notes.push("the tower's gelu is computed by tanh in llama.cpp".to_owned());
        }
        if let Some(anyres) = &self.config.anyres {
            notes.push(
                "llama.cpp shows a picture that is no larger than a tile as that tile alone"
                    .to_owned(),
            );
            if anyres.merge != PatchMerge::Flat {
                notes.push(format!(
                    "llama.cpp joins tiles one behind the other, with their padding and without image_newline; this model was made for \"{}\", so its answers about larger pictures are others there",
                    anyres.merge.name()
                ));
            }
        } else if self.pictures.aspect != ImageAspect::Pad {
            notes.push(format!(
                "llama.cpp pads pictures that are not square with black; this model was made for \"{}\"",
                self.pictures.aspect.name()
            ));
        }
        notes
    }

    /// How pictures become square, or tiles.
    fn aspect(&self) -> String {
        match &self.config.anyres {
            Some(anyres) => anyres.aspect_name(),
            None => self.pictures.aspect.name().to_owned(),
        }
    }

    /// Metadata.
    pub fn fields(&self) -> Vec<(String, GgufField)> {
        let (v, p) = (self.vision, self.pictures);
        let three = |list: [f64; 3]| GgufField::F32s(list.iter().map(|&x| x as f32).collect());
        let mut out: Vec<(&str, GgufField)> = vec![
            ("general.architecture", "clip".into()),
            ("general.type", "mmproj".into()),
            ("general.file_type", GgufField::U32(self.kind.file_number())),
            ("clip.has_vision_encoder", GgufField::Bool(true)),
            ("clip.has_llava_projector", GgufField::Bool(true)),
            ("clip.projector_type", "mlp".into()),
            (
                "clip.use_gelu",
                GgufField::Bool(v.hidden_act != Activation::QuickGelu),
            ),
            (
                "clip.vision.attention.layer_norm_epsilon",
                GgufField::F32(v.layer_norm_eps as f32),
            ),
            ("clip.vision.image_mean", three(p.image_mean)),
            ("clip.vision.image_std", three(p.image_std)),
            (ASPECT, self.aspect().as_str().into()),
            (
                "clip.vision.feature_layer",
                GgufField::I32s(vec![self.feature_layer as i32]),
            ),
        ];
        for (key, size) in [
            ("clip.vision.image_size", v.image_size),
            ("clip.vision.patch_size", v.patch_size),
            ("clip.vision.embedding_length", v.hidden_size),
            ("clip.vision.feed_forward_length", v.intermediate_size),
            ("clip.vision.projection_dim", self.config.llama.hidden_size),
            ("clip.vision.attention.head_count", v.num_attention_heads),
            ("clip.vision.block_count", self.feature_layer),
        ] {
            out.push((key, size_field(size)));
        }
        if let Some(anyres) = &self.config.anyres {
            let pairs = anyres.pinpoints.iter().flat_map(|&(h, w)| [w, h]);
            // Sides of at most some thousand pixels.
            let pairs = pairs.map(|side| i32::try_from(side).unwrap_or(i32::MAX));
            out.push((PINPOINTS, GgufField::I32s(pairs.collect())));
            out.push((MERGE, anyres.merge.name().into()));
        }
        let owned = out.into_iter().map(|(key, field)| (key.to_owned(), field));
        owned.collect()
    }

    /// The tensors of tower and projector, by canonical names, as they are written. Layers behind
    /// the features are left out, and the norm behind them all, which llama.cpp would apply.
    ///
    /// # Errors
    /// If one has no name there.
    pub fn tensors(&self, entries: Vec<Entry>) -> Result<Vec<Tensor>, ModelError> {
        // llama.cpp takes the second linear for the first where it could be either.
        let swapped = self.vision.intermediate_size == self.vision.hidden_size;
        let mut out = Vec::new();
        for entry in entries {
            let canonical = entry.name.clone();
            if layer(&canonical).is_some_and(|layer| layer >= self.feature_layer)
                || canonical.starts_with("vision_tower.post_layernorm.")
            {
                continue;
            }
            let Some(name) = mmproj_name(&canonical, swapped) else {
                return Err(ModelError::Argument(format!(
                    "the weight \"{canonical}\" has no place in an mmproj file"
                )));
            };
            let position = name.starts_with("v.position_embd.");
            let tensor = Tensor::new(name, entry, Change::NONE, self.kind, false);
            out.push(match position {
                true => tensor.in_f32(),
                false => tensor,
            });
        }
        Ok(out)
    }
}
