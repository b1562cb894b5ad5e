//! What a run starts from: the frozen towers, a projector, a tokenizer and an image processor.

use std::path::{Path, PathBuf};

use burn::tensor::backend::AutodiffBackend;
use serde::{Deserialize, Serialize};
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};
use sq_llava_model::config::{ProjectorConfig, read_json};
use sq_llava_model::weights::{FreshParts, LoadOptions, load_model};
use sq_llava_model::{ModelError, SqLlava, SqLlavaConfig, check_vocabulary};

use crate::error::TrainError;
use crate::recipe::{FeatureLayers, Recipe};

/// Where a run reads and writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPaths {
    /// The LLM, or a whole LLaVA.
    pub llm: PathBuf,
    /// The vision tower; `None` if it is inside the LLaVA.
    pub vision: Option<PathBuf>,
    /// Data of the only stage that runs, in place of the recipe's.
    pub data: Option<PathBuf>,
    /// Folder of the images, where the recipe's stages name none.
    pub images: Option<PathBuf>,
    /// A run to start from, in place of the recipe's `init_from`.
    pub projector: Option<PathBuf>,
    /// The run directory to be made.
    pub out: PathBuf,
    /// Go on although the checkpoints hold weights or settings that the model has no place for.
    #[serde(default)]
    pub allow_unused: bool,
}

/// Everything loaded.
#[derive(Debug)]
pub struct Base<B: AutodiffBackend> {
    /// The model.
    pub model: SqLlava<B>,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// Its image processor.
    pub processor: ImageProcessor,
}

/// Where projector and prototypes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A random draw.
    Fresh,
    /// The LLM's own directory.
    Base,
    /// A run directory.
    Run(PathBuf),
    /// A projector alone: a file, or a directory that holds one.
    Projector(PathBuf),
}

impl<B: AutodiffBackend> Base<B> {
    /// Loads towers, tokenizer and image processor, with the projector that the recipe asks for.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the parts do not fit together.
    pub fn load(
        recipe: &Recipe,
        paths: &TrainPaths,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let origin = origin(recipe, paths)?;
        if origin == Origin::Fresh && !recipe.stages.contains(&1) {
            tracing::warn!(
                "stage 2 runs alone and no trained projector is given (--projector): it starts from a random one"
            );
        }
        Self::from_origin(recipe, paths, origin, device)
    }

    /// Loads a checkpoint of a run on the towers that it belongs to.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn resume(
        recipe: &Recipe,
        paths: &TrainPaths,
        checkpoint: &Path,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let origin = Origin::Run(checkpoint.to_path_buf());
        Self::from_origin(recipe, paths, origin, device)
    }

    fn from_origin(
        recipe: &Recipe,
        paths: &TrainPaths,
        origin: Origin,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let Some(projector) = recipe.model.projector() else {
            return Err(TrainError::Recipe(format!(
                "model.mm_projector_type is \"{}\", which is unknown",
                recipe.model.mm_projector_type
            )));
        };
        let (directory, options) = load_options(recipe, paths, &origin, &projector);
        B::seed(device, recipe.seed);
        let loaded = load_model::<B>(directory, &options, device)?;
        let mut model = loaded.model;
        check_parts(&model, recipe, &projector, &origin)?;
        let stage = recipe.stages.first().copied().unwrap_or(2);
        if let Origin::Fresh | Origin::Projector(_) = origin {
            // Nor how its pictures were seen.
            let first = recipe.image_aspect_ratio(stage);
            model.config.image_aspect_ratio = Some(first.to_owned());
        }
        if model.config.vision.is_none() {
            return Err(TrainError::Model(ModelError::config(
                &paths.llm,
                "no vision tower inside; give one with --vision",
            )));
        }

        let tokenizer = loaded.files.tokenizer.as_deref().unwrap_or(&paths.llm);
        let tokenizer = TextTokenizer::from_dir(tokenizer)?;
        check_vocabulary(&tokenizer, model.language_model.vocabulary())?;
        let Some(folder) = &loaded.files.preprocessor else {
            return Err(TrainError::Model(ModelError::config(
                paths
                    .vision
                    .as_deref()
                    .unwrap_or(&paths.llm)
                    .join("preprocessor_config.json"),
                "not found, and the vision tower needs it; copy the one of the tower here",
            )));
        };
        if model.config.image_aspect_ratio.is_none() {
            // A llava-hf model leaves it to its processor.
            let own = ImageProcessorConfig::read_dir(folder)?;
            model.config.image_aspect_ratio = Some(own.aspect_name());
        }
        let processor = ImageProcessorConfig::read_dir(folder)?;
        model.take_images_of(processor.input_size()?);
        let vision = model.config.vision.as_ref();
        let side = vision.map_or(0, |vision| vision.image_size as u32);
        let processor = processor_of(&processor, &model.config, recipe, stage)?;
        check_picture_size(&processor, folder, &model.config, side, recipe)?;
        Ok(Self {
            model,
            tokenizer,
            processor,
        })
    }
}

/// The directory of the weights, and how they are loaded.
fn load_options<'a>(
    recipe: &Recipe,
    paths: &'a TrainPaths,
    origin: &'a Origin,
    projector: &ProjectorConfig,
) -> (&'a Path, LoadOptions) {
    let mut options = LoadOptions {
        dtype: recipe.dtype.float(),
        vision: paths.vision.clone(),
        quantize: recipe.quantize,
        trainable_f32: true,
        freeze_base: true,
        allow_unused: paths.allow_unused,
        ..LoadOptions::default()
    };
    if let Origin::Fresh | Origin::Projector(_) = origin {
        // Neither says what it sees.
        options.select_layers = Some(recipe.model.select_layer.list());
    }
    let mut directory = &paths.llm;
    match origin {
        Origin::Fresh => {
            // The loader sets the extractor's width to the tower's.
            let prototype = recipe.model.prototype(1, recipe.seed);
            options.fresh = Some(FreshParts {
                projector: projector.clone(),
                prototype,
            });
        }
        Origin::Base => {}
        Origin::Run(run) => {
            options.base = Some(paths.llm.clone());
            directory = run;
        }
        Origin::Projector(path) => options.projector = Some(path.clone()),
    }
    (directory, options)
}

/// Every stage must give the tower pictures of its size.
fn check_picture_size(
    processor: &ImageProcessor,
    folder: &Path,
    model: &SqLlavaConfig,
    side: u32,
    recipe: &Recipe,
) -> Result<(), TrainError> {
    for &stage in &recipe.stages {
        let size = processor_of(processor.config(), model, recipe, stage)?.input_size();
        if size != (side, side) {
            return Err(TrainError::Model(ModelError::config(
                folder,
                format!(
                    "its image processor makes pictures of {size:?}, but the vision tower takes {side}×{side}"
                ),
            )));
        }
    }
    Ok(())
}

/// The image processor of a stage: the same but for how pictures become square, or are laid over
/// tiles by a model of the configuration `model`.
///
/// # Errors
/// If pictures would differ in size, or tiles do not fill the resolutions.
pub(crate) fn processor_of(
    processor: &ImageProcessorConfig,
    model: &SqLlavaConfig,
    recipe: &Recipe,
    stage: u8,
) -> Result<ImageProcessor, TrainError> {
    let mut config = processor.clone();
    config.tiling = None;
    let aspect = recipe.image_aspect_ratio(stage);
    let config = match recipe.model.tiling(aspect, model) {
        Some(tiling) => config.with_tiling(tiling)?,
        None => config.with_aspect(aspect.parse()?),
    };
    Ok(ImageProcessor::new(config)?)
}

/// Stage 1 starts from a random projector unless told otherwise; stage 2 alone from the run or
/// projector that is named, else from the one that the LLaVA brings.
pub(super) fn origin(recipe: &Recipe, paths: &TrainPaths) -> Result<Origin, TrainError> {
    if let Some(from) = paths.projector.as_ref().or(recipe.init_from.as_ref()) {
        if from.join("config.json").is_file() {
            return Ok(Origin::Run(from.clone()));
        }
        if !from.exists() {
            return Err(TrainError::io(from, std::io::ErrorKind::NotFound.into()));
        }
        return Ok(Origin::Projector(from.clone()));
    }
    if recipe.stages.contains(&1) {
        return Ok(Origin::Fresh);
    }
    Ok(match has_projector(&paths.llm)? {
        true => Origin::Base,
        false => Origin::Fresh,
    })
}

fn has_projector(llm: &Path) -> Result<bool, TrainError> {
    let config = llm.join("config.json");
    if !config.is_file() {
        // A GGUF file holds a language model alone.
        return Ok(false);
    }
    let json = read_json(&config)?;
    let named = |key: &str| json.get(key).is_some_and(|value| !value.is_null());
    Ok(named("mm_projector_type") || named("text_config"))
}

/// A projector that is loaded must be of the kind, and see the features, that the recipe asks for.
fn check_parts<B: AutodiffBackend>(
    model: &SqLlava<B>,
    recipe: &Recipe,
    projector: &ProjectorConfig,
    origin: &Origin,
) -> Result<(), TrainError> {
    let from = match origin {
        Origin::Fresh => return Ok(()),
        Origin::Base => "the LLM's directory".to_owned(),
        Origin::Run(path) | Origin::Projector(path) => path.display().to_string(),
    };
    let loaded = &model.config;
    if loaded.projector.name() != projector.name() {
        return Err(TrainError::Recipe(format!(
            "model.mm_projector_type is \"{}\", but the projector of {from} is \"{}\"",
            projector.name(),
            loaded.projector.name()
        )));
    }
    if loaded.prototype.is_some() != recipe.model.prototype {
        return Err(TrainError::Recipe(format!(
            "model.prototype is {}, but {from} has {}prototype extractor",
            recipe.model.prototype,
            if recipe.model.prototype { "no " } else { "a " }
        )));
    }
    let asked = &recipe.model;
    let mut pairs = Vec::new();
    if matches!(origin, Origin::Base | Origin::Run(_)) {
        let own = FeatureLayers::from(&asked.select_layer.list()[..]).to_string();
        let its = FeatureLayers::from(&loaded.select_layers[..]).to_string();
        pairs.push(("select_layer", own, its));
    }
    let centers = match (&loaded.prototype, &loaded.projector) {
        (Some(prototype), _) => Some((prototype.num_centers, prototype.num_iterations)),
        (None, ProjectorConfig::Cluster(c)) => Some((c.num_latents, c.num_iterations)),
        (None, _) => None,
    };
    if let Some((centers, iterations)) = centers {
        let (own, steps) = (asked.num_centers, asked.num_iterations);
        pairs.push(("num_centers", own.to_string(), centers.to_string()));
        pairs.push(("num_iterations", steps.to_string(), iterations.to_string()));
    }
    if let Some(prototype) = &loaded.prototype {
        let (own, its) = (asked.redraw_centers, prototype.redraw_centers);
        pairs.push(("redraw_centers", own.to_string(), its.to_string()));
    }
    match pairs.into_iter().find(|(_, own, its)| own != its) {
        None => Ok(()),
        Some((key, own, its)) => Err(TrainError::Recipe(format!(
            "model.{key} is {own}, but {from} has {its}: set model.{key}={its}, or start from \
             another projector"
        ))),
    }
}
