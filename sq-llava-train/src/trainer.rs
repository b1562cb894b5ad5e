//! A whole run: load, prepare each stage, train it through Burn's Learner, save.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::AutodiffBackend;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use sq_llava_data::image::ImageProcessor;
use sq_llava_data::{LabelOptions, Manifest, TextTokenizer};
use sq_llava_model::SqLlava;
use sq_llava_model::weights::RunOrigin;

use crate::bad_images::BadImageLog;
use crate::base::{Base, TrainPaths};
use crate::dataset::{StageData, check_sources, sampler};
use crate::error::TrainError;
use crate::failure::Failure;
use crate::features::FeatureCache;
use crate::groups::ParamGroup;
use crate::loader::{BatchLoader, Plan};
use crate::loss::LossSettings;
use crate::loss_log::LossLog;
use crate::memory::{self, StepMemory};
use crate::metrics::{Quantity, StepMetric};
use crate::optimizer::GroupedAdamW;
use crate::recipe::Recipe;
use crate::renderer::{LineRenderer, NoRenderer, SilentLogger};
use crate::run_dir::{RunDirectory, RunFiles};
use crate::schedule::CosineWarmup;
use crate::stage::StageModel;
use crate::step::{StepContext, TrainModel};
use crate::strategy::{Components, Finished, StepStrategy};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ui {
    /// Burn's dashboard on a terminal, lines otherwise.
    #[default]
    Auto,
    /// Lines.
    Lines,
    /// Nothing.
    Quiet,
}

/// What a stage did.
#[derive(Debug, Clone, PartialEq)]
pub struct StageOutcome {
    /// 1 or 2.
    pub stage: u8,
    /// Optimizer steps.
    pub steps: usize,
    /// Loss of the last step; `None` if there was none.
    pub loss: Option<f64>,
    /// Tokens seen, images in place.
    pub tokens: usize,
    /// Samples that were cut to the longest length allowed.
    pub truncated: usize,
    /// Seconds of training.
    pub seconds: f64,
    /// Trainable values of each group, in the order of [`ParamGroup::ALL`].
    pub trainable: [usize; 3],
}

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// The run directory.
    pub run: PathBuf,
    /// Its stages.
    pub stages: Vec<StageOutcome>,
    /// Whether it was stopped from the dashboard; what was learnt until then is saved.
    pub interrupted: bool,
}

/// Trains as a recipe says and writes a run directory that loads on the same base.
///
/// # Errors
/// If the recipe, a file, the data or the run directory cannot be used, or the loss or a gradient
/// stops being a number. What was saved before stays.
pub fn train<B: AutodiffBackend>(
    recipe: &Recipe,
    paths: &TrainPaths,
    device: &B::Device,
    ui: Ui,
) -> Result<TrainOutcome, TrainError> {
    let recipe = with_paths(recipe, paths)?;
    recipe.validate()?;
    let manifests = open_manifests(&recipe)?;
    let run = RunDirectory::create(&paths.out, &recipe)?;
    let base = Base::<B>::load(&recipe, paths, device)?;
    let mut trainer = Trainer {
        recipe: &recipe,
        paths,
        run: &run,
        ui,
        tokenizer: base.tokenizer,
        processor: Arc::new(base.processor),
    };
    let mut model = base.model;
    let mut outcome = TrainOutcome {
        run: run.path().to_path_buf(),
        stages: Vec::new(),
        interrupted: false,
    };
    let last = manifests.len();
    for (index, (stage, manifest)) in manifests.into_iter().enumerate() {
        let (finished, trainable) = trainer.stage(model, stage, manifest)?;
        model = finished.model.model;
        outcome.stages.push(StageOutcome {
            stage,
            steps: finished.steps,
            loss: finished.last.map(|report| report.loss),
            tokens: finished.tokens,
            truncated: finished.truncated,
            seconds: finished.seconds,
            trainable,
        });
        outcome.interrupted = finished.interrupted;
        let files = trainer.files();
        if index + 1 == last || finished.interrupted {
            run.finish(&model, &files)?;
            break;
        }
        run.save(&format!("stage{stage}"), &model, &files)?;
    }
    Ok(outcome)
}

/// The recipe with the paths of the command line in their places.
fn with_paths(recipe: &Recipe, paths: &TrainPaths) -> Result<Recipe, TrainError> {
    let mut recipe = recipe.clone();
    if let Some(data) = &paths.data {
        match recipe.stages[..] {
            [1] => recipe.stage1.data = Some(data.clone()),
            [2] => recipe.stage2.data = Some(data.clone()),
            _ => {
                return Err(TrainError::Recipe(
                    "--data fits one stage, but two run: set stage1.data and stage2.data, or stages=[1] or [2]"
                        .into(),
                ));
            }
        }
    }
    for stage in [&mut recipe.stage1, &mut recipe.stage2] {
        if stage.images.is_none() {
            stage.images.clone_from(&paths.images);
        }
    }
    if paths.projector.is_some() {
        recipe.init_from.clone_from(&paths.projector);
    }
    Ok(recipe)
}

/// Opens the data of every stage before anything long begins.
fn open_manifests(recipe: &Recipe) -> Result<Vec<(u8, Manifest)>, TrainError> {
    let open = |&stage: &u8| {
        let settings = recipe.stage(stage);
        let Some(path) = &settings.data else {
            return Err(TrainError::Recipe(format!(
                "stage {stage} has no data: give --data or set stage{stage}.data"
            )));
        };
        let manifest = Manifest::open(path)?;
        if manifest.is_empty() {
            return Err(TrainError::Recipe(format!(
                "{} has no samples",
                path.display()
            )));
        }
        if let Some(images) = &settings.images
            && !images.is_dir()
        {
            return Err(TrainError::io(images, std::io::ErrorKind::NotFound.into()));
        }
        Ok((stage, manifest))
    };
    recipe.stages.iter().map(open).collect()
}

struct Trainer<'a> {
    recipe: &'a Recipe,
    paths: &'a TrainPaths,
    run: &'a RunDirectory,
    ui: Ui,
    tokenizer: TextTokenizer,
    processor: Arc<ImageProcessor>,
}

impl Trainer<'_> {
    fn files(&self) -> RunFiles {
        RunFiles {
            tokenizer: self.tokenizer.clone(),
            processor: self.processor.config().clone(),
            origin: RunOrigin {
                base: Some(self.paths.llm.display().to_string()),
                vision: self
                    .paths
                    .vision
                    .as_ref()
                    .map(|path| path.display().to_string()),
            },
        }
    }

    fn stage<B: AutodiffBackend>(
        &mut self,
        model: SqLlava<B>,
        stage: u8,
        manifest: Manifest,
    ) -> Result<(Finished<B>, [usize; 3]), TrainError> {
        let recipe = self.recipe;
        let settings = recipe.stage(stage);
        let prepared = StageModel::prepare(model, &mut self.tokenizer, recipe, stage)?;
        let trainable = prepared.counts();
        let features = Arc::new(FeatureCache::new(recipe.feature_cache_mib << 20));
        let data = Arc::new(self.data(&prepared, stage, manifest, &features)?);
        let plan = Plan::new(settings, data.len());
        let schedule = CosineWarmup::new(plan.steps(), settings.warmup_ratio);
        let memory = StepMemory::of_stage(
            &prepared.model.config,
            recipe,
            stage,
            prepared.trains,
            trainable.iter().sum(),
        );
        memory::announce(&memory, stage, recipe.gradient_checkpointing);
        announce(recipe, stage, &data, &plan, &schedule, trainable)?;

        let failure = Failure::default();
        let loss = LossSettings {
            question_weight: recipe.loss.question_weight,
            answer_weight: recipe.loss.answer_weight,
            chunk_tokens: recipe.loss.chunk_tokens,
        };
        let optimizer = GroupedAdamW::<B>::new(settings, prepared.groups.clone());
        let train_model = TrainModel {
            model: prepared.model,
            context: StepContext {
                loss,
                trains: prepared.trains,
                features,
                checkpointing: recipe.gradient_checkpointing,
                seed: recipe.seed,
                failure: failure.clone(),
            },
        };
        let finished = Arc::new(Mutex::new(None));
        let (run, files) = (self.run.clone(), self.files());
        let strategy = StepStrategy {
            stage,
            plan,
            schedule,
            rates: [settings.lr_llm, settings.lr_projector, settings.lr_vision],
            loss,
            optimizer: optimizer.clone(),
            failure: failure.clone(),
            log: Mutex::new(LossLog::open(self.run.path())?),
            save_every: recipe.save_every,
            save: Box::new(move |step, model: &TrainModel<B>| {
                run.checkpoint(stage, step, &model.model, &files)
            }),
            finished: finished.clone(),
        };
        let bad_images = BadImageLog::open(self.run.path(), stage, recipe.bad_images)?;
        let loader = BatchLoader::new(data, plan, 0, recipe.workers, failure.clone())
            .with_bad_images(bad_images.clone());
        let mut training = SupervisedTraining::<Components<B>>::new(
            self.run.path(),
            Arc::new(loader),
            Arc::new(BatchLoader::empty()),
        )
        .num_epochs(settings.epochs)
        .with_application_logger(None)
        .with_metric_logger(SilentLogger)
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)));
        for quantity in Quantity::ALL {
            training = training.metric_train_numeric(StepMetric::new(quantity));
        }
        let lines = || {
            let (every, steps) = (recipe.log_every, plan.steps());
            LineRenderer::new(
                std::io::stdout(),
                stage,
                every,
                steps,
                plan.steps_per_epoch(),
            )
        };
        training = match self.ui {
            Ui::Auto if std::io::stdout().is_terminal() => training,
            Ui::Auto | Ui::Lines => training.renderer(lines()),
            Ui::Quiet => training.renderer(NoRenderer),
        };
        let result = training.launch(Learner::new(train_model, optimizer, schedule));
        // Closes the dashboard.
        drop(result);
        if let Some(summary) = bad_images.summary() {
            tracing::warn!("{summary}");
        }

        if let Some(error) = failure.take() {
            return Err(error);
        }
        let mut slot = finished.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = slot
            .take()
            .ok_or_else(|| TrainError::Internal("the training ended without a result".into()))?;
        Ok((finished, trainable))
    }

    fn data<B: AutodiffBackend>(
        &self,
        prepared: &StageModel<B>,
        stage: u8,
        manifest: Manifest,
        features: &Arc<FeatureCache>,
    ) -> Result<StageData, TrainError> {
        let recipe = self.recipe;
        let settings = recipe.stage(stage);
        let per_image = prepared.model.config.tokens_per_image();
        let asking = recipe.asking.policy(recipe.seed);
        let asking = asking.filter(|_| settings.template.asks());
        if let Some(policy) = &asking {
            check_sources(&manifest, policy)?;
        }
        Ok(StageData {
            sampler: sampler(&manifest, settings, per_image, recipe.seed)?,
            bad_images: recipe.bad_images,
            manifest,
            images: settings.images.clone().unwrap_or_default(),
            tokenizer: Arc::new(self.tokenizer.clone()),
            processor: self.processor.clone(),
            labels: LabelOptions {
                template: settings.template,
                system: None,
                tokens_per_image: per_image,
                max_length: Some(settings.max_length),
            },
            asking,
            features: (!prepared.trains.vision).then(|| features.clone()),
        })
    }
}

/// Samples that the token count is estimated from.
const ESTIMATE_SAMPLES: usize = 512;

/// Says, before the first step, what will train and how long.
fn announce(
    recipe: &Recipe,
    stage: u8,
    data: &StageData,
    plan: &Plan,
    schedule: &CosineWarmup,
    trainable: [usize; 3],
) -> Result<(), TrainError> {
    let settings = recipe.stage(stage);
    let estimate = data.estimate(ESTIMATE_SAMPLES)?;
    let rates = [settings.lr_llm, settings.lr_projector, settings.lr_vision];
    for group in ParamGroup::ALL {
        let (count, rate) = (trainable[group.index()], rates[group.index()]);
        tracing::info!(
            "stage {stage}: {} trains {count} parameters at rate {rate:e}",
            group.name()
        );
    }
    tracing::info!(
        "stage {stage}: {} samples, {} epochs, {} steps of {} samples, {} of them warm-up; {}{:.0} tokens an epoch, {:.0} of them learnt",
        plan.samples,
        plan.epochs,
        plan.steps(),
        plan.samples_per_step,
        schedule.warmup_steps,
        if estimate.exact { "" } else { "about " },
        estimate.tokens,
        estimate.learnable,
    );
    if estimate.learnable == 0.0 {
        return Err(TrainError::Recipe(format!(
            "stage {stage}: no token of the data would be learnt with template {}",
            settings.template
        )));
    }
    Ok(())
}
