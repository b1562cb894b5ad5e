//! From a directory to a model.

use std::path::Path;

use burn::tensor::{DType, backend::Backend};

use super::adapter::attach;
use super::checkpoint_dir::CheckpointDir;
use super::fill::{FillOptions, fill};
use super::layout::Section;
use super::narrow::Narrowed;
use super::options::{LoadOptions, Narrow};
use super::plan::{ModelFiles, Plan, plan_whole};
use super::quantized::fill_quantized;
use super::report::LoadReport;
use super::run::plan_run;
use super::shapes::check_model;
use super::write::file_dtype;
use crate::config::PrototypeConfig;
use crate::error::ModelError;
use crate::language::llama::NewTokens;
use crate::sq_llava::SqLlava;

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
    let fresh = options.fresh.is_some();
    let mut plan = plan(dir, options)?;
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
        narrowed: Narrowed::new::<B>(options.narrow, device),
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
    if options.narrow != Narrow::Never {
        let embedding = &model.language_model.model.embed_tokens.weight;
        tracing::info!("language model in {}", embedding.dtype().name());
    }
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

/// What is read from where, settled before any weight is.
fn plan(dir: &Path, options: &LoadOptions) -> Result<Plan, ModelError> {
    let listed = CheckpointDir::open(dir, "not a model directory, nor a .gguf file")?;
    let run = listed.is_run()?;
    if let (true, Some(mmproj)) = (run, &options.mmproj) {
        return Err(ModelError::weights(
            mmproj,
            "a run has the tower and projector of its base; --mmproj goes with a language model alone",
        ));
    }
    let mut plan = match run {
        true => plan_run(&listed, options)?,
        false => plan_whole(listed, options)?,
    };
    if let Some(layers) = &options.select_layers {
        plan.config.select_layers.clone_from(layers);
    }
    apply_fresh(&mut plan, options)?;
    tie_head(&mut plan)?;
    Ok(plan)
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

/// Replaces the files' projector and φ by new ones, if asked.
fn apply_fresh(plan: &mut Plan, options: &LoadOptions) -> Result<(), ModelError> {
    let Some(fresh) = &options.fresh else {
        return Ok(());
    };
    let Some(width) = plan.config.feature_width() else {
        return Err(ModelError::Argument(
            "a new projector needs a vision tower; give its directory with --vision".into(),
        ));
    };
    plan.config.projector = fresh.projector.clone();
    plan.config.prototype = fresh.prototype.clone().map(|prototype| PrototypeConfig {
        hidden_size: width,
        ..prototype
    });
    plan.weights.drop_section(Section::Projector);
    plan.weights.drop_section(Section::ImageNewline);
    plan.weights.drop_section(Section::Prototype);
    Ok(())
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
