//! Finding the vision tower of a checkpoint and its configuration.

use std::path::PathBuf;

use serde_json::Value;

use super::checkpoint_dir::CheckpointDir;
use super::fill::WeightMap;
use super::layout::Section;
use super::options::LoadOptions;
use super::source::read_files;
use crate::config::{
    ClipVisionConfig, ProjectorConfig, SqLlavaConfig, read_json, read_vision_config,
};
use crate::error::ModelError;

/// A directory with its `config.json`.
pub(super) struct Described<'a> {
    pub dir: &'a CheckpointDir,
    pub json: &'a Value,
}

/// Finds the tower: inside the checkpoint, in the directory given, or where `mm_vision_tower`
/// points, by path or by name. Puts its weights into the map and returns its configuration and,
/// unless it is inside, its directory.
///
/// # Errors
/// If there is none, or it is damaged.
pub(super) fn find_tower(
    weights: &mut WeightMap,
    known: Option<ClipVisionConfig>,
    places: &[Described<'_>],
    options: &LoadOptions,
    inside_wins: bool,
) -> Result<(ClipVisionConfig, Option<CheckpointDir>), ModelError> {
    let (given, allow_unused) = (options.vision.as_deref(), options.allow_unused);
    let inside = weights.has(Section::Vision);
    let (mut config, dir) = match given {
        Some(dir) if !(inside && inside_wins) => {
            let dir = CheckpointDir::list(dir.to_path_buf())?;
            (read_tower(weights, &dir, allow_unused)?, Some(dir))
        }
        _ if inside => {
            if let Some(dir) = given {
                tracing::warn!(
                    "the checkpoint has its own vision tower; {} is not used",
                    dir.display()
                );
            }
            (config_inside(known, places, allow_unused)?, None)
        }
        _ => {
            let dir = CheckpointDir::list(named_tower(places, options)?)?;
            (read_tower(weights, &dir, allow_unused)?, Some(dir))
        }
    };
    // What is optional in a tower is told by the keys that are there.
    let has = |name: &str| {
        ["weight", "bias"]
            .iter()
            .any(|end| weights.get(&format!("vision_tower.{name}.{end}")).is_some())
    };
    config.pre_layernorm = has("pre_layrnorm");
    config.post_layernorm = has("post_layernorm");
    config.patch_bias = weights
        .get("vision_tower.embeddings.patch_embedding.bias")
        .is_some();
    Ok((config, dir))
}

fn read_tower(
    weights: &mut WeightMap,
    dir: &CheckpointDir,
    allow_unused: bool,
) -> Result<ClipVisionConfig, ModelError> {
    let files = dir.own_weights("no weights of a vision tower here")?;
    weights.drop_section(Section::Vision);
    weights.add(read_files(&files)?, &[Section::Vision])?;
    if !weights.has(Section::Vision) {
        return Err(ModelError::weights(
            &files[0],
            "no vision tower inside (keys vision_model.*)",
        ));
    }
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
                ModelError::config(&path, "no \"vision_config\" inside; name a CLIP directory")
            }),
        _ => read_vision_config(&path, allow_unused),
    }
}

/// The configuration of a tower inside the checkpoint.
fn config_inside(
    known: Option<ClipVisionConfig>,
    places: &[Described<'_>],
    allow_unused: bool,
) -> Result<ClipVisionConfig, ModelError> {
    if let Some(config) = known {
        return Ok(config);
    }
    for place in places {
        if let Some(beside) = place.dir.file("vision_config.json") {
            return read_vision_config(&beside, allow_unused);
        }
    }
    if let Some(dir) = tower_candidates(places).into_iter().find(|d| d.is_dir()) {
        return read_vision_config(&dir.join("config.json"), allow_unused);
    }
    // LLaVA 1.5 stores its tower inside and names OpenAI's for the sizes; ShareGPT4V, on which the
    // released SQ-LLaVA stands, names the one that it trained on from there.
    for place in places {
        let name = place.json.get("mm_vision_tower").and_then(Value::as_str);
        let side = match name.and_then(|name| name.rsplit('/').next()) {
            Some("clip-vit-large-patch14-336") => 336,
            Some("clip-vit-large-patch14") => 224,
            Some(name) if name.starts_with("ShareGPT4V-") && name.contains("336") => 336,
            Some(name) if name.ends_with("-CLIP-L-336") => 336,
            _ => continue,
        };
        return Ok(ClipVisionConfig::large(side));
    }
    let path = places
        .first()
        .map_or(PathBuf::new(), |p| p.dir.path.join("config.json"));
    Err(ModelError::config(
        path,
        "the sizes of the vision tower are unknown; put its config.json beside as vision_config.json",
    ))
}

fn tower_candidates(places: &[Described<'_>]) -> Vec<PathBuf> {
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
            config_inside(None, &[place], false)
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
        assert!(sizes("someone/tower").is_err());
    }
}
