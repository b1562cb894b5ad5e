//! Finding the vision tower of a checkpoint and its configuration.

use std::path::PathBuf;

use serde_json::Value;

use super::checkpoint_dir::CheckpointDir;
use super::fill::WeightMap;
use super::layout::Section;
use super::options::LoadOptions;
use super::source::read_files;
use crate::config::{
    ProjectorConfig, SelectFeature, SqLlavaConfig, VisionConfig, VisionFamily, read_json,
    read_vision_config,
};
use crate::error::ModelError;

/// A directory with its `config.json`.
pub(super) struct Described<'a> {
    pub dir: &'a CheckpointDir,
    pub json: &'a Value,
}

/// Finds the tower: inside the checkpoint, in the directory given, or where `mm_vision_tower`
/// points, by path or by name. Puts its weights into the map and its configuration into the
/// model's; returns its directory unless it is inside. `known` describes the tower inside.
///
/// # Errors
/// If there is none, or it is damaged.
pub(super) fn find_tower(
    weights: &mut WeightMap,
    model: &mut SqLlavaConfig,
    known: Option<VisionConfig>,
    places: &[Described<'_>],
    options: &LoadOptions,
    inside_wins: bool,
) -> Result<Option<CheckpointDir>, ModelError> {
    let given = options.vision.as_deref();
    let inside = weights.has(Section::Vision);
    let described = model.vision.is_some();
    let (mut config, dir) = match given {
        Some(dir) if !(inside && inside_wins) => {
            let dir = CheckpointDir::list(dir.to_path_buf())?;
            (read_tower(weights, &dir, options.allow_unused)?, Some(dir))
        }
        _ if inside => {
            if let Some(dir) = given {
                tracing::warn!(
                    "the checkpoint has its own vision tower; the weights of {} are not used",
                    dir.display()
                );
            }
            (config_inside(weights, known, places, options)?, None)
        }
        _ => {
            let dir = CheckpointDir::list(named_tower(places, options)?)?;
            (read_tower(weights, &dir, options.allow_unused)?, Some(dir))
        }
    };
    if config.family == VisionFamily::Siglip {
        weights.drop_pooling_head();
    }
    tell_by_keys(&mut config, weights);
    if config.family == VisionFamily::Siglip && !described {
        // LLaVA's own code takes the last hidden state of a SigLIP tower whose last layer it has
        // deleted, whatever the configuration says; what is saved inside has lost that layer.
        model.select_feature = SelectFeature::ClsPatch;
        model.select_layers = vec![if dir.is_some() { -2 } else { -1 }];
    }
    weights.describe_vision(&config);
    model.vision = Some(config);
    Ok(dir)
}

/// What is optional in a tower is told by the keys that are there.
pub(super) fn tell_by_keys(config: &mut VisionConfig, weights: &WeightMap) {
    let has = |name: &str| {
        ["weight", "bias"]
            .iter()
            .any(|end| weights.get(&format!("vision_tower.{name}.{end}")).is_some())
    };
    config.pre_layernorm = has("pre_layrnorm");
    config.post_layernorm = has("post_layernorm");
    // No other family has one: such weights find no place.
    config.pooling_head =
        config.family == VisionFamily::Siglip && weights.get("vision_tower.head.probe").is_some();
    config.patch_bias = weights
        .get("vision_tower.embeddings.patch_embedding.bias")
        .is_some();
}

/// Puts the weights of a directory's tower into the map; returns its configuration.
///
/// # Errors
/// If there is none, or it is damaged.
pub(super) fn read_tower(
    weights: &mut WeightMap,
    dir: &CheckpointDir,
    allow_unused: bool,
) -> Result<VisionConfig, ModelError> {
    let files = dir.own_weights("no weights of a vision tower here")?;
    weights.drop_section(Section::Vision);
    weights.add(read_files(&files)?, &[Section::Vision])?;
    if !weights.has(Section::Vision) {
        return Err(ModelError::weights(
            &files[0],
            "no vision tower inside (keys vision_model.*, embeddings.*)",
        ));
    }
    config_of(dir, allow_unused)
}

/// The configuration of the tower in a directory.
fn config_of(dir: &CheckpointDir, allow_unused: bool) -> Result<VisionConfig, ModelError> {
    // A whole LLaVA may lend its tower; it describes it beside or inside its configuration.
    if let Some(beside) = dir.file("vision_config.json") {
        return read_vision_config(&beside, allow_unused);
    }
    let path = dir.path.join("config.json");
    let kind = read_json(&path)?;
    match kind.get("model_type").and_then(Value::as_str) {
        Some(
            "llava" | "llava_llama" | "llava_mistral" | "llava_qwen" | "llava_next"
            | "llava_onevision" | "sq_llava" | "share4v",
        ) => SqLlavaConfig::from_hf(&path, allow_unused)?
            .vision
            .ok_or_else(|| {
                ModelError::config(
                    &path,
                    "no \"vision_config\" inside; name a vision tower's directory",
                )
            }),
        _ => read_vision_config(&path, allow_unused),
    }
}

/// The configuration of a tower inside the checkpoint. One that was found elsewhere may have the
/// layer that LLaVA's own code deletes from a SigLIP tower.
fn config_inside(
    weights: &WeightMap,
    known: Option<VisionConfig>,
    places: &[Described<'_>],
    options: &LoadOptions,
) -> Result<VisionConfig, ModelError> {
    if let Some(config) = known {
        return Ok(config);
    }
    let mut config = config_elsewhere(places, options)?;
    if config.family == VisionFamily::Siglip {
        let layer = |index| format!("{}encoder.layers.{index}.", Section::Vision.canonical());
        let has = |index: usize| weights.all().any(|name| name.starts_with(&layer(index)));
        if let Some(last) = config.num_hidden_layers.checked_sub(1)
            && last > 0
            && !has(last)
            && has(last - 1)
        {
            config.num_hidden_layers = last;
        }
    }
    Ok(config)
}

/// The configuration of the tower that a checkpoint names, or of one that is given beside it.
fn config_elsewhere(
    places: &[Described<'_>],
    options: &LoadOptions,
) -> Result<VisionConfig, ModelError> {
    let allow_unused = options.allow_unused;
    for place in places {
        if let Some(beside) = place.dir.file("vision_config.json") {
            return read_vision_config(&beside, allow_unused);
        }
    }
    if let Some(dir) = tower_candidates(places).into_iter().find(|d| d.is_dir()) {
        return read_vision_config(&dir.join("config.json"), allow_unused);
    }
    if let Some(dir) = &options.vision {
        return config_of(&CheckpointDir::list(dir.clone())?, allow_unused);
    }
    // LLaVA 1.5 stores its tower inside and names OpenAI's for the sizes, OneVision Google's;
    // ShareGPT4V, on which the released SQ-LLaVA stands, names the one that it trained on from
    // there.
    for place in places {
        let name = place.json.get("mm_vision_tower").and_then(Value::as_str);
        return Ok(match name.and_then(|name| name.rsplit('/').next()) {
            Some("clip-vit-large-patch14-336") => VisionConfig::large(336),
            Some("clip-vit-large-patch14") => VisionConfig::large(224),
            Some("siglip-so400m-patch14-384") => VisionConfig::so400m(384),
            Some("siglip-so400m-patch14-224") => VisionConfig::so400m(224),
            Some(name) if name.starts_with("ShareGPT4V-") && name.contains("336") => {
                VisionConfig::large(336)
            }
            Some(name) if name.ends_with("-CLIP-L-336") => VisionConfig::large(336),
            _ => continue,
        });
    }
    let path = places
        .first()
        .map_or(PathBuf::new(), |p| p.dir.path.join("config.json"));
    Err(ModelError::config(
        path,
        "the sizes of the vision tower are unknown; put its config.json beside as vision_config.json, or name a directory that has it with --vision",
    ))
}

pub(super) fn tower_candidates(places: &[Described<'_>]) -> Vec<PathBuf> {
    places
        .iter()
        .filter_map(|place| {
            let name = place.json.get("mm_vision_tower")?.as_str()?;
            (!name.is_empty()).then(|| place.dir.path.join(name)) // an absolute path stays itself
        })
        .collect()
}

/// The model that a checkpoint names, where it is no directory here; otherwise why there is none.
pub(super) fn look_up(name: Option<&str>, options: &LoadOptions) -> Result<PathBuf, String> {
    let no_directory = || "which is no directory here".to_owned();
    match (name, &options.look_up) {
        (Some(name), Some(look_up)) => look_up(name)?.ok_or_else(no_directory),
        _ => Err(no_directory()),
    }
}

fn named_tower(places: &[Described<'_>], options: &LoadOptions) -> Result<PathBuf, ModelError> {
    let candidates = tower_candidates(places);
    if let Some(dir) = candidates.iter().find(|dir| dir.is_dir()) {
        return Ok(dir.clone());
    }
    let dir = places
        .first()
        .map_or(PathBuf::new(), |p| p.dir.path.clone());
    let name = places
        .iter()
        .find_map(|place| place.json.get("mm_vision_tower")?.as_str());
    look_up(name, options).map_err(|reason| {
        let named = name.map_or(String::new(), |name| {
            format!("; \"mm_vision_tower\" is \"{name}\", {reason}")
        });
        ModelError::weights(
            dir,
            format!(
                "no vision tower inside the checkpoint{named}; give its directory with --vision"
            ),
        )
    })
}

/// The kind of projector that the keys show, for checkpoints whose configuration names none.
pub(super) fn projector_by_keys(weights: &WeightMap) -> Option<ProjectorConfig> {
    let names: Vec<&str> = weights.names(Section::Projector).collect();
    let name = if names.iter().any(|name| name.starts_with("sim_alpha")) {
        "cluster".to_string()
    } else if names.contains(&"weight") {
        "linear".to_string()
    } else {
        // 0, 2, 4 …: linears with a non-linearity between.
        let last = names
            .iter()
            .filter_map(|name| name.split('.').next()?.parse::<usize>().ok())
            .max()?;
        format!("mlp{}x_gelu", last / 2 + 1)
    };
    ProjectorConfig::from_name(&name, None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fault_02_towers_inside_have_the_sizes_of_the_name() {
        let sizes = |name: &str| {
            let json = json!({"mm_vision_tower": name});
            let dir = CheckpointDir::default();
            let place = Described {
                dir: &dir,
                json: &json,
            };
            config_elsewhere(&[place], &LoadOptions::default())
                .map(|c| (c.hidden_size, c.image_size, c.num_patches()))
        };
        for name in [
            "openai/clip-vit-large-patch14-336",
            "./checkpoints/clip-vit-large-patch14-336",
            "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12",
            "Lin-Chen/ShareGPT4V-13B_Pretrained_vit-large336-l12",
            "Lin-Chen/ShareGPT4V-CLIP-L-336",
        ] {
            assert_eq!(sizes(name).unwrap(), (1024, 336, 576), "{name}");
        }
        let small = sizes("openai/clip-vit-large-patch14").unwrap();
        assert_eq!(small, (1024, 224, 256));
        let siglip = sizes("google/siglip-so400m-patch14-384").unwrap();
        assert_eq!(siglip, (1152, 384, 729));
        assert!(sizes("someone/tower").is_err());
    }
}
