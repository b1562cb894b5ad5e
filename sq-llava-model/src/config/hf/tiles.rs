//! Images of any shape: the keys of the original LLaVA and those of transformers.

use std::path::Path;

use serde_json::{Map, Value, json};
use sq_llava_data::image::{AnyResolution, PatchMerge};

use super::object::Reader;
use crate::config::SqLlavaConfig;
use crate::error::ModelError;

/// Model types of transformers that lay images over tiles.
pub(super) const TILING: [&str; 2] = ["llava_next", "llava_onevision"];

const PINPOINTS: &str = "image_grid_pinpoints";
const MERGE: &str = "mm_patch_merge_type";
const ASPECT: &str = "image_aspect_ratio";

/// The tiling of a model of transformers, by its type.
pub(super) fn of_transformers(r: &Reader) -> Result<Option<AnyResolution>, ModelError> {
    let keys = [
        "model_type",
        PINPOINTS,
        "vision_aspect_ratio",
        ASPECT,
        MERGE,
    ];
    let given = keys.into_iter();
    let given: Map<String, Value> = given
        .filter_map(|key| Some((key.to_owned(), r.get(key)?.clone())))
        .collect();
    AnyResolution::of_transformers(&given).map_err(|error| r.error(&error.to_string()))
}

/// Notes the keys that [`SqLlavaConfig::read_original_tiling`] reads, which mean nothing for other
/// aspect ratios.
pub(super) fn note_original(r: &Reader, aspect: &str) {
    if AnyResolution::max_tiles_of(aspect).is_some() {
        r.get(PINPOINTS);
        r.get(MERGE);
    }
}

impl SqLlavaConfig {
    /// Reads the tiling of an original LLaVA's `config.json`, whose tiles have the size of the
    /// vision tower; without a tower nothing is read.
    ///
    /// # Errors
    /// If a value is not supported; the message names the key.
    pub(crate) fn read_original_tiling(
        &mut self,
        path: &Path,
        json: &Value,
    ) -> Result<(), ModelError> {
        let (Some(vision), Some(object)) = (&self.vision, json.as_object()) else {
            return Ok(());
        };
        if object.contains_key("text_config") {
            return Ok(());
        }
        let side = u32::try_from(vision.image_size).unwrap_or(u32::MAX);
        let tiling = AnyResolution::of_original(object, side);
        self.anyres = tiling.map_err(|error| ModelError::config(path, error.to_string()))?;
        Ok(())
    }

    /// Writes the tiling in the original's keys.
    pub(super) fn write_original_tiling(&self, out: &mut Value) {
        let Some(anyres) = &self.anyres else {
            return;
        };
        let turned = anyres.pinpoints.iter().map(|&(h, w)| json!([w, h]));
        out[PINPOINTS] = turned.collect();
        out[ASPECT] = json!(anyres.aspect_name());
        out[MERGE] = json!(anyres.merge.name());
    }

    /// Writes the tiling in transformers' keys, with the type and class of model that has it.
    ///
    /// # Errors
    /// If transformers does not join tiles so.
    pub(super) fn write_transformers_tiling(&self, out: &mut Value) -> Result<(), ModelError> {
        let Some(anyres) = &self.anyres else {
            return Ok(());
        };
        if anyres.merge != PatchMerge::SpatialUnpad {
            return Err(ModelError::Argument(format!(
                "transformers joins tiles by spatial_unpad only, not by {}; export to the original \
                 layout instead",
                anyres.merge.name()
            )));
        }
        out[PINPOINTS] = json!(anyres.pinpoints);
        let (kind, class) = match anyres.max_tiles {
            None => ("llava_next", "LlavaNextForConditionalGeneration"),
            Some(_) => {
                out["vision_aspect_ratio"] = json!(anyres.aspect_name());
                ("llava_onevision", "LlavaOnevisionForConditionalGeneration")
            }
        };
        out["model_type"] = json!(kind);
        out["architectures"] = json!([class]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &Value) -> Result<SqLlavaConfig, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, value.to_string()).unwrap();
        SqLlavaConfig::from_hf(&path, false)
    }

    fn original(more: &[(&str, Value)]) -> Value {
        let mut value = json!({"model_type": "llava", "mm_projector_type": "mlp2x_gelu",
            "vision_config": {"image_size": 336, "patch_size": 14},
            "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 672], [1008, 336]],
            "mm_patch_merge_type": "spatial_unpad"});
        for (key, given) in more {
            value[key] = given.clone();
        }
        value
    }

    #[test]
    fn both_layouts_are_written_as_they_are_read() {
        let mut config = read(&original(&[])).unwrap();
        let anyres = config.anyres.clone().unwrap();
        assert_eq!(anyres.pinpoints, [(672, 336), (336, 1008)]);
        assert_eq!(config.image_aspect_ratio.as_deref(), Some("anyres"));
        assert_eq!((config.most_tiles(), config.has_image_newline()), (4, true));
        assert_eq!(read(&config.to_hf()).unwrap(), config);
        config.image_token_index = Some(7);
        for most in [None, Some(4)] {
            let anyres = config.anyres.as_mut().unwrap();
            anyres.max_tiles = most;
            config.image_aspect_ratio = Some(anyres.aspect_name());
            let written = config.to_llava_hf().unwrap();
            assert_eq!(written[PINPOINTS], json!([[672, 336], [336, 1008]]));
            assert_eq!(read(&written).unwrap(), config);
        }
        let flat = read(&original(&[(MERGE, json!("flat"))])).unwrap();
        assert!(!flat.has_image_newline());
        assert_eq!(read(&flat.to_hf()).unwrap(), flat);
        let mut flat = flat;
        flat.image_token_index = Some(7);
        let error = flat.to_llava_hf().unwrap_err().to_string();
        assert!(error.contains("spatial_unpad"), "{error}");
    }

    #[test]
    fn what_cannot_be_tiled_is_named() {
        for (value, word) in [
            (original(&[(ASPECT, json!("anyres_top_4"))]), "anyres_top_4"),
            (original(&[(PINPOINTS, Value::Null)]), PINPOINTS),
            (original(&[(PINPOINTS, json!(7))]), PINPOINTS),
            (original(&[(MERGE, json!("maxpool2x2"))]), "maxpool2x2"),
            // Where nothing is tiled the newline's place is not known.
            (original(&[(ASPECT, json!("pad"))]), MERGE),
            (json!({"model_type": "llava_next"}), "text_config"),
        ] {
            let error = read(&value).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
            assert!(error.contains("config.json"), "{error}");
        }
        let odd = read(&original(&[(PINPOINTS, json!([[300, 672]]))])).unwrap();
        let made = odd.init::<burn_flex::Flex>(&Default::default());
        assert!(made.unwrap_err().to_string().contains(PINPOINTS));
        let mut class = read(&original(&[])).unwrap();
        class.select_feature = crate::config::SelectFeature::ClsPatch;
        let made = class.init::<burn_flex::Flex>(&Default::default());
        assert!(made.unwrap_err().to_string().contains("class token"));
    }

    #[test]
    fn only_the_outer_object_ties_a_llava_next() {
        let with = |kind: &str, inner: bool, outer: Value| {
            let value = json!({"model_type": kind, "tie_word_embeddings": outer,
                "vision_config": {"model_type": "clip_vision_model"},
                "vision_feature_select_strategy": "default",
                "text_config": {"model_type": "llama", "tie_word_embeddings": inner}});
            read(&value).unwrap().llama.tie_word_embeddings
        };
        for outer in [json!(false), Value::Null] {
            assert!(!with("llava_next", true, outer.clone()));
            assert!(with("llava_onevision", true, outer.clone()));
            assert!(with("llava", true, outer));
        }
        assert!(with("llava_next", false, json!(true)));
    }
}
