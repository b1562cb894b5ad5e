//! What a model is made from: its configuration and the places of its weights, before any is read.

use std::path::{Path, PathBuf};

use sq_llava_data::image::ImageProcessorConfig;

use super::adapter::Adapter;
use super::checkpoint::{Checkpoint, is_multimodal, name_projector, read_checkpoint};
use super::checkpoint_dir::CheckpointDir;
use super::fill::WeightMap;
use super::gguf::{Mmproj, read_mmproj};
use super::layout::Section;
use super::options::LoadOptions;
use super::source::read_file;
use super::tensor::StoredTensor;
use super::vision::{Described, find_tower};
use crate::config::SqLlavaConfig;
use crate::error::ModelError;

/// What a directory turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// A model with all its weights.
    Full,
    /// What a training run changed, on a base.
    Run,
}

/// Where the files that belong to a model but are not weights stand.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// Kind of the directory that was loaded.
    pub kind: CheckpointKind,
    /// Directory with `tokenizer.json` or `tokenizer.model`, or a GGUF file.
    pub tokenizer: Option<PathBuf>,
    /// Directory with the image processor's configuration.
    pub preprocessor: Option<PathBuf>,
    /// The image processor's configuration, where a file of tower and projector says it.
    pub pictures: Option<ImageProcessorConfig>,
    /// The base's directory, for a run.
    pub base: Option<PathBuf>,
    /// The vision tower's directory, unless it is inside the checkpoint.
    pub vision: Option<PathBuf>,
}

/// Everything about a model but the tensors' values.
pub(super) struct Plan {
    pub config: SqLlavaConfig,
    pub weights: WeightMap,
    pub adapters: Vec<Adapter>,
    /// Rows of new tokens in a file of their own, and the id of the first.
    pub new_tokens: Option<(usize, usize)>,
    pub files: ModelFiles,
}

/// The plan of a directory with a whole model, or of a GGUF file.
///
/// # Errors
/// If a file is missing or damaged, or the configuration unknown.
pub(super) fn plan_whole(dir: CheckpointDir, options: &LoadOptions) -> Result<Plan, ModelError> {
    if let Some(base) = &options.base {
        tracing::warn!(
            "{} is a whole model; the base {} is not used",
            dir.path.display(),
            base.display()
        );
    }
    let Checkpoint {
        mut config,
        json,
        mut weights,
        dir,
        tokenizer,
    } = read_checkpoint(dir, options.allow_unused)?;
    if let Some(path) = &options.projector {
        weights.replace_parts(read_projector(path)?)?;
    }
    let mut pictures = None;
    if let Some(path) = &options.mmproj {
        pictures = Some(add_mmproj(path, &mut config, &mut weights, options)?);
    }
    let mut tower = None;
    if is_multimodal(&config, &json, &weights) || options.vision.is_some() {
        let places = [Described {
            dir: &dir,
            json: &json,
        }];
        let known = config.vision.clone();
        tower = find_tower(&mut weights, &mut config, known, &places, options, true)?;
        name_projector(&mut config, &json, &weights);
        if pictures.is_none() {
            config.read_original_tiling(&dir.path.join("config.json"), &json)?;
        }
    }
    let tower_tokenizer = || tokenizer_dir(tower.as_ref());
    let places = std::iter::once(&dir).chain(&tower);
    Ok(Plan {
        files: ModelFiles {
            kind: CheckpointKind::Full,
            tokenizer: tokenizer.or_else(tower_tokenizer),
            preprocessor: match pictures {
                Some(_) => None,
                None => preprocessor_dir(places, options),
            },
            pictures,
            base: None,
            vision: tower.map(|tower| tower.path),
        },
        config,
        weights,
        adapters: Vec::new(),
        new_tokens: None,
    })
}

/// Adds what an `mmproj` file holds to a language model; returns how pictures are prepared.
///
/// # Errors
/// If the file cannot be read, or the model has a vision tower or projector already.
fn add_mmproj(
    path: &Path,
    config: &mut SqLlavaConfig,
    weights: &mut WeightMap,
    options: &LoadOptions,
) -> Result<ImageProcessorConfig, ModelError> {
    if config.vision.is_some() || weights.has(Section::Vision) || weights.has(Section::Projector) {
        return Err(ModelError::weights(
            path,
            "the model has a vision tower or projector of its own; --mmproj goes with a language model alone",
        ));
    }
    take_mmproj(read_mmproj(path, options.allow_unused)?, config, weights)
}

/// Puts what an `mmproj` file holds into the map and its configuration into the model's; returns how
/// pictures are prepared.
///
/// # Errors
/// If a tensor stands there twice, with different values.
pub(super) fn take_mmproj(
    found: Mmproj,
    config: &mut SqLlavaConfig,
    weights: &mut WeightMap,
) -> Result<ImageProcessorConfig, ModelError> {
    config.select_layers.clone_from(&found.feature_layers);
    config.select_feature = found.select_feature;
    config.image_aspect_ratio = Some(found.pictures.aspect_name());
    config.anyres.clone_from(&found.pictures.tiling);
    let pictures = found.pictures.clone();
    config.vision = Some(weights.add_mmproj(found)?);
    Ok(pictures)
}

/// The tensors of a projector file, or of the one in a directory.
fn read_projector(path: &Path) -> Result<Vec<StoredTensor>, ModelError> {
    if !path.is_dir() {
        return read_file(path);
    }
    match CheckpointDir::list(path.to_path_buf())?.projectors().last() {
        Some(file) => read_file(file),
        None => Err(ModelError::weights(
            path,
            "no mm_projector.safetensors or mm_projector.bin here",
        )),
    }
}

/// The first of some directories that holds a tokenizer.
pub(super) fn tokenizer_dir<'a>(
    dirs: impl IntoIterator<Item = &'a CheckpointDir>,
) -> Option<PathBuf> {
    let mut dirs = dirs.into_iter();
    let found = dirs.find(|dir| dir.has_tokenizer())?;
    Some(found.path.clone())
}

/// The first of some directories that holds the configuration of an image processor; else that of
/// the tower given, though the checkpoint may have the tower's weights inside.
pub(super) fn preprocessor_dir<'a>(
    dirs: impl IntoIterator<Item = &'a CheckpointDir>,
    options: &LoadOptions,
) -> Option<PathBuf> {
    let mut dirs = dirs.into_iter();
    let found = dirs.find(|dir| dir.has_preprocessor());
    let given = options.vision.as_ref();
    found
        .map(|dir| &dir.path)
        .or(given.filter(|dir| ImageProcessorConfig::is_in(dir)))
        .cloned()
}
