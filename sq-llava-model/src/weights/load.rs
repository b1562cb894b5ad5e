//! From a directory to a model.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, FloatDType, backend::Backend};
use serde_json::Value;
use sq_llava_data::gguf::is_gguf;
use sq_llava_data::image::ImageProcessorConfig;

use super::adapter::{Adapter, attach};
use super::fill::{FillOptions, WeightMap, fill};
use super::gguf;
use super::layout::Section;
use super::quantized::fill_quantized;
use super::report::LoadReport;
use super::run::{is_run, plan_run};
use super::shapes::check_model;
use super::source::{either, mention_index, model_files, read_file, read_files};
use super::vision::{Described, find_tower, projector_by_keys};
use super::write::file_dtype;
use crate::config::{ProjectorConfig, PrototypeConfig, SqLlavaConfig, read_json};
use crate::error::ModelError;
use crate::language::llama::NewTokens;
use crate::language::quantize::Quantize;
use crate::sq_llava::SqLlava;

/// Called with the bytes read so far and the bytes to read.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Finds the model that a checkpoint names and that is no directory here; `None` if nobody could
/// mean one by that name, and the reason if it is not to be had.
pub type LookUp = Arc<dyn Fn(&str) -> Result<Option<PathBuf>, String> + Send + Sync>;

/// How a model is loaded.
#[derive(Clone)]
pub struct LoadOptions {
    /// Dtype of the weights in memory: f32, f16 or bf16.
    pub dtype: FloatDType,
    /// The LLM (or LLaVA) that a run directory was trained on.
    pub base: Option<PathBuf>,
    /// A vision tower's directory, for checkpoints without one inside. A run directory takes it
    /// before its base's.
    pub vision: Option<PathBuf>,
    /// Looks up the base and the tower that a checkpoint names, where none is given and no
    /// directory of that name is here.
    pub look_up: Option<LookUp>,
    /// A projector's file, or a directory that holds one, for a plain LLM with a vision tower.
    pub projector: Option<PathBuf>,
    /// Keep adapters, projector, prototype extractor and new tokens in f32, as training needs.
    pub trainable_f32: bool,
    /// Let everything but those take no gradient.
    pub freeze_base: bool,
    /// Start training from new parts instead of the files'.
    pub fresh: Option<FreshParts>,
    /// Bring the language model's matrices into blocks of int8 or int4 while loading; on backends
    /// other than the CPU's the linears, and not for training.
    pub quantize: Option<Quantize>,
    /// Go on although the files hold weights or architecture keys that the model has no place for
    /// and that are not known to be harmless. What the model then computes may not be what it
    /// was trained to.
    pub allow_unused: bool,
    /// Told about the bytes read.
    pub progress: Option<Progress>,
}

/// Parts between vision tower and LLM that start from a random draw.
#[derive(Debug, Clone)]
pub struct FreshParts {
    /// The projector W.
    pub projector: ProjectorConfig,
    /// Draws the paper's φ; its width is set to the tower's.
    pub prototype: Option<PrototypeConfig>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: FloatDType::F32,
            base: None,
            vision: None,
            look_up: None,
            projector: None,
            trainable_f32: false,
            freeze_base: false,
            fresh: None,
            quantize: None,
            allow_unused: false,
            progress: None,
        }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("dtype", &self.dtype)
            .field("base", &self.base)
            .field("vision", &self.vision)
            .field("look_up", &self.look_up.is_some())
            .field("projector", &self.projector)
            .field("trainable_f32", &self.trainable_f32)
            .field("freeze_base", &self.freeze_base)
            .field("fresh", &self.fresh)
            .field("quantize", &self.quantize)
            .field("allow_unused", &self.allow_unused)
            .field("progress", &self.progress.is_some())
            .finish()
    }
}

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
    /// The base's directory, for a run.
    pub base: Option<PathBuf>,
    /// The vision tower's directory, unless it is inside the checkpoint.
    pub vision: Option<PathBuf>,
}

/// A loaded model.
#[derive(Debug)]
pub struct Loaded<B: Backend> {
    /// The model, with its adapters beside their linears.
    pub model: SqLlava<B>,
    /// What happened to each key.
    pub report: LoadReport,
    /// The files beside the weights.
    pub files: ModelFiles,
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

/// Loads a model: original LLaVA, llava-hf, a LLaMA-type LLM alone or with a vision tower (also
/// from a GGUF file, or a directory that holds one), or a run directory (of the released SQ-LLaVA
/// or of this project's training) on its base.
///
/// Weights are read tensor by tensor from the mapped files straight into the target dtype.
///
/// # Errors
/// If a file is missing or damaged, the configuration unknown, an adapter not wholly used, or
/// weights that the model needs are missing or have another shape; the message names the keys.
pub fn load_model<B: Backend>(
    dir: &Path,
    options: &LoadOptions,
    device: &B::Device,
) -> Result<Loaded<B>, ModelError> {
    let dtype = file_dtype(options.dtype)?;
    if !dir.is_dir() && !is_gguf(dir) {
        return Err(ModelError::config(
            dir,
            "not a model directory, nor a .gguf file",
        ));
    }
    let mut plan = if is_run(dir)? {
        plan_run(dir, options)?
    } else {
        plan_full(dir, options)?
    };
    let fresh = apply_fresh(&mut plan, options)?;
    tie_head(&mut plan)?;

    check_model::<B>(
        dir,
        &plan.config,
        &plan.weights,
        fresh,
        options.allow_unused,
        device,
    )?;
    let mut model = plan.config.init::<B>(device)?;
    let notes = attach(
        &mut model,
        plan.adapters,
        &mut plan.weights,
        options.allow_unused,
    )?;
    if let Some((rows, start)) = plan.new_tokens {
        let llama = &plan.config.llama;
        let tied = llama.tie_word_embeddings;
        let new = NewTokens::zeros(rows, llama.hidden_size, tied, start, device);
        model.language_model.new_tokens = Some(new);
    }
    fill_quantized(
        &mut model.language_model,
        &mut plan.weights,
        options.quantize,
        dtype,
    )?;
    let fill_options = FillOptions {
        dtype,
        trainable_dtype: if options.trainable_f32 {
            DType::F32
        } else {
            dtype
        },
        freeze_base: options.freeze_base,
        fresh,
        progress: options.progress.as_deref().map(|f| f as &dyn Fn(u64, u64)),
    };
    let (model, mut report) = fill(model, plan.weights, &fill_options)?;
    for note in &notes {
        tracing::warn!("{note}");
    }
    report.notes = notes;
    report.notes.extend(looked_up(&plan.files, options));
    report.check(dir, options.allow_unused)?;
    Ok(Loaded {
        model,
        report,
        files: plan.files,
    })
}

/// Says what stands in for the names of a checkpoint.
fn looked_up(files: &ModelFiles, options: &LoadOptions) -> Vec<String> {
    let parts = [
        ("base", &files.base, &options.base),
        ("vision tower", &files.vision, &options.vision),
    ];
    let named = parts.into_iter().filter(|(_, _, given)| given.is_none());
    named
        .filter(|_| options.look_up.is_some())
        .filter_map(|(part, path, _)| Some(format!("the {part} is {}", path.as_ref()?.display())))
        .collect()
}

/// A checkpoint's configuration and weights, before its vision tower is looked for.
pub(super) struct Checkpoint {
    pub config: SqLlavaConfig,
    pub json: Value,
    pub weights: WeightMap,
    /// The directory that the weights lie in.
    pub dir: PathBuf,
    /// Where the tokenizer is: files in that directory, else inside a GGUF file.
    pub tokenizer: Option<PathBuf>,
}

/// Reads a directory with all weights of a model or of an LLM, or a GGUF file.
pub(super) fn read_checkpoint(dir: &Path, allow_unused: bool) -> Result<Checkpoint, ModelError> {
    if let Some(file) = gguf::locate(dir)? {
        let (config, weights) = WeightMap::from_gguf(gguf::read_gguf(&file, allow_unused)?);
        let dir = file.parent().map_or(PathBuf::new(), Path::to_path_buf);
        return Ok(Checkpoint {
            config,
            json: Value::Null,
            weights,
            tokenizer: tokenizer_dir(&[Some(&dir)]).or(Some(file)),
            dir,
        });
    }
    let path = dir.join("config.json");
    let json = read_json(&path)?;
    let config = SqLlavaConfig::from_hf(&path, allow_unused)?;
    let files = model_files(dir)?;
    if files.is_empty() {
        return Err(ModelError::weights(
            dir,
            "no weights here (model.safetensors, pytorch_model.bin, or their shards with an index)",
        ));
    }
    mention_index(&files);
    let mut weights = WeightMap::default();
    weights.add(read_files(&files)?, None)?;
    if !weights.has(Section::Projector)
        && let Some(file) = either(dir, "mm_projector")
    {
        weights.add(read_file(&file)?, Some(Section::Projector))?;
    }
    Ok(Checkpoint {
        config,
        json,
        weights,
        dir: dir.to_path_buf(),
        tokenizer: tokenizer_dir(&[Some(dir)]),
    })
}

fn plan_full(dir: &Path, options: &LoadOptions) -> Result<Plan, ModelError> {
    if let Some(base) = &options.base {
        tracing::warn!(
            "{} is a whole model; the base {} is not used",
            dir.display(),
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
    let mut tower = None;
    if is_multimodal(&config, &json, &weights) || options.vision.is_some() {
        let places = [Described {
            dir: &dir,
            json: &json,
        }];
        let known = config.vision.take();
        let (vision, found) = find_tower(&mut weights, known, &places, options, true)?;
        config.vision = Some(vision);
        tower = found;
        name_projector(&mut config, &json, &weights);
    }
    let places = [Some(dir.as_path()), tower.as_deref()];
    Ok(Plan {
        files: ModelFiles {
            kind: CheckpointKind::Full,
            tokenizer: tokenizer.or_else(|| tokenizer_dir(&places)),
            preprocessor: preprocessor_dir(&places),
            base: None,
            vision: tower,
        },
        config,
        weights,
        adapters: Vec::new(),
        new_tokens: None,
    })
}

/// The tensors of a projector file, or of the one in a directory.
fn read_projector(path: &Path) -> Result<Vec<super::tensor::StoredTensor>, ModelError> {
    let file = if path.is_dir() {
        ["non_lora_trainables", "mm_projector"]
            .iter()
            .find_map(|stem| either(path, stem))
            .ok_or_else(|| {
                ModelError::weights(path, "no mm_projector.safetensors or mm_projector.bin here")
            })?
    } else {
        path.to_path_buf()
    };
    read_file(&file)
}

/// Whether a checkpoint takes images.
pub(super) fn is_multimodal(config: &SqLlavaConfig, json: &Value, weights: &WeightMap) -> bool {
    config.vision.is_some()
        || ["mm_vision_tower", "mm_hidden_size", "mm_projector_type"]
            .iter()
            .any(|key| json.get(key).is_some_and(|v| !v.is_null()))
        || weights.has(Section::Vision)
        || weights.has(Section::Projector)
}

/// Takes the kind of projector from the keys where the configuration names none.
pub(super) fn name_projector(config: &mut SqLlavaConfig, json: &Value, weights: &WeightMap) {
    let named = ["mm_projector_type", "mm_hidden_size", "text_config"]
        .iter()
        .any(|key| json.get(key).is_some_and(|v| !v.is_null()));
    if !named && let Some(projector) = projector_by_keys(weights) {
        config.projector = projector;
    }
}

/// Replaces the files' projector and φ by new ones, if asked; returns what may be missing then.
fn apply_fresh(
    plan: &mut Plan,
    options: &LoadOptions,
) -> Result<&'static [&'static str], ModelError> {
    let Some(fresh) = &options.fresh else {
        return Ok(&[]);
    };
    let Some(vision) = &plan.config.vision else {
        return Err(ModelError::Argument(
            "a new projector needs a vision tower; give its directory with --vision".into(),
        ));
    };
    let width = vision.hidden_size;
    plan.config.projector = fresh.projector.clone();
    plan.config.prototype = fresh.prototype.clone().map(|prototype| PrototypeConfig {
        hidden_size: width,
        ..prototype
    });
    plan.weights.drop_section(Section::Projector);
    plan.weights.drop_section(Section::Prototype);
    Ok(&["mm_projector.", "prototype."])
}

/// A tied head needs no weight of its own; one that is stored must be the embedding.
fn tie_head(plan: &mut Plan) -> Result<(), ModelError> {
    const HEAD: &str = "language_model.lm_head.weight";
    if !plan.config.llama.tie_word_embeddings {
        return Ok(());
    }
    let embedding = plan.weights.get("language_model.model.embed_tokens.weight");
    let (Some(head), Some(embedding)) = (plan.weights.get(HEAD), embedding) else {
        return Ok(());
    };
    if !head.same_values(embedding) {
        return Err(ModelError::weights(
            &head.file.path,
            format!(
                "\"{}\" differs from the embedding, but config.json says \"tie_word_embeddings\": true; correct config.json",
                head.name
            ),
        ));
    }
    plan.weights.ignore(HEAD);
    Ok(())
}

pub(super) fn tokenizer_dir(places: &[Option<&Path>]) -> Option<PathBuf> {
    first_with(places, &["tokenizer.json", "tokenizer.model"])
}

pub(super) fn preprocessor_dir(places: &[Option<&Path>]) -> Option<PathBuf> {
    let mut places = places.iter().flatten();
    places
        .find(|dir| ImageProcessorConfig::is_in(dir))
        .map(|dir| dir.to_path_buf())
}

fn first_with(places: &[Option<&Path>], names: &[&str]) -> Option<PathBuf> {
    places
        .iter()
        .flatten()
        .find(|dir| names.iter().any(|name| dir.join(name).is_file()))
        .map(|dir| dir.to_path_buf())
}
