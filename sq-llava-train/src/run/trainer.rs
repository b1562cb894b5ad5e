//! A whole run: load, prepare each stage, train it through Burn's Learner, save.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::lr_scheduler::LrScheduler;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use sq_llava_data::image::ImageProcessor;
use sq_llava_data::{LabelOptions, Manifest, TextTokenizer};
use sq_llava_model::SqLlava;
use sq_llava_model::kernels::blocks::is_native;
use sq_llava_model::weights::RunOrigin;

use crate::data::bad_images::BadImageLog;
use crate::data::dataset::{StageData, check_sources, sampler};
use crate::data::features::FeatureCache;
use crate::data::loader::{BatchLoader, Plan};
use crate::error::TrainError;
use crate::failure::Failure;
use crate::recipe::Recipe;
use crate::report::announce::announce;
use crate::report::curves::draw;
use crate::report::loss_log::{Curve, LossLog};
use crate::report::metrics::{Quantity, StepMetric};
use crate::report::renderer::{LineRenderer, NoRenderer, SilentLogger};
use crate::run::base::{Base, TrainPaths, processor_of};
use crate::run::devices::devices_of;
use crate::run::nodes::{self, NodeConfig, Nodes};
use crate::run::precision::check_dtype;
use crate::run::resume::{Resume, find};
use crate::run::run_dir::{RunDirectory, RunFiles};
use crate::run::stage::StageModel;
use crate::run::state::{RunState, Sources, StageOutcome, StageProgress};
use crate::run::stop::StopSignal;
use crate::run::strategy::{Components, Finished, Saved, StepStrategy};
use crate::run::validation::{StageSplit, open_splits};
use crate::step::loss::LossSettings;
use crate::step::memory::{self, StepMemory};
use crate::step::optimizer::GroupedAdamW;
use crate::step::schedule::CosineWarmup;
use crate::step::whole::{StepContext, TrainModel};

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

/// How a run is run; what it trains is the recipe's.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// How progress is shown.
    pub ui: Ui,
    /// Go on with the run in the directory instead of beginning one.
    pub resume: Option<Resume>,
    /// The wish to stop: the step is finished and a checkpoint saved.
    pub stop: StopSignal,
    /// This machine's place where several train together.
    pub nodes: Option<NodeConfig>,
}

impl From<Ui> for TrainOptions {
    fn from(ui: Ui) -> Self {
        Self {
            ui,
            ..Self::default()
        }
    }
}

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// The run directory.
    pub run: PathBuf,
    /// Its stages.
    pub stages: Vec<StageOutcome>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// Where a stopped run goes on.
    pub checkpoint: Option<PathBuf>,
}

/// Trains as a recipe says and writes a run directory that loads on the same base. With
/// [`TrainOptions::resume`] the run in the directory goes on: on the CPU its parameters become
/// those of a run that was never stopped, bit for bit.
///
/// # Errors
/// If the recipe, a file, the data or the run directory cannot be used, or the loss or a gradient
/// stops being a number; with `resume`, also if the recipe, the data or a model differs from the
/// run's, or its newest checkpoint is torn; with `nodes`, also if they do not come together, are
/// not to do the same, or one fails or is lost. What was saved before stays.
pub fn train<B: AutodiffBackend>(
    recipe: &Recipe,
    paths: &TrainPaths,
    device: &B::Device,
    options: impl Into<TrainOptions>,
) -> Result<TrainOutcome, TrainError> {
    let options = options.into();
    let recipe = with_paths(recipe, paths)?;
    recipe.validate()?;
    check_dtype::<B>(&recipe, device)?;
    let splits = open_splits(&recipe)?;
    let sources = Sources::of(&recipe, paths)?;
    let nodes = options.nodes.as_ref().map(Nodes::join).transpose()?;
    let nodes = nodes.flatten().map(Arc::new);
    let (asked, others) = ((&recipe, paths), nodes.clone());
    let outcome = train_on::<B>(asked, device, &options, splits, &sources, others);
    if let (Some(nodes), Err(error)) = (&nodes, &outcome) {
        nodes.tell(error);
    }
    outcome
}

/// Trains as one of these nodes.
fn train_on<B: AutodiffBackend>(
    (recipe, paths): (&Recipe, &TrainPaths),
    device: &B::Device,
    options: &TrainOptions,
    splits: Vec<StageSplit>,
    sources: &Sources,
    nodes: Option<Arc<Nodes>>,
) -> Result<TrainOutcome, TrainError> {
    let resume = match &nodes {
        None => options.resume.clone(),
        Some(nodes) => nodes::agree(nodes, recipe, sources, paths, options.resume.as_ref())?,
    };
    let (run, from) = match &resume {
        None => (RunDirectory::create(&paths.out, recipe, paths)?, None),
        Some(resume) => {
            let point = find(resume, recipe, &paths.out, sources)?;
            if let (true, Some((_, state))) = (point.finished, &point.from) {
                tracing::info!("the run in {} is finished", paths.out.display());
                return Ok(TrainOutcome {
                    run: paths.out.clone(),
                    stages: state.done.clone(),
                    interrupted: false,
                    checkpoint: None,
                });
            }
            let run = RunDirectory::open(&paths.out, recipe)?;
            for torn in &point.torn {
                tracing::warn!("{} is torn and goes", torn.display());
                run.remove(torn)?;
            }
            (run, point.from)
        }
    };
    let base = match &from {
        Some((directory, _)) => Base::<B>::resume(recipe, paths, directory, device)?,
        None => Base::<B>::load(recipe, paths, device)?,
    };
    if resume.is_some() {
        let place = from.as_ref().map(|(_, s)| (s.stage, s.progress.step));
        LossLog::rewind(run.path(), place)?;
        match &from {
            Some((directory, _)) => tracing::info!("the run goes on from {}", directory.display()),
            None => tracing::info!("the run left no checkpoint: it begins anew"),
        }
    }
    let trainer = Trainer {
        recipe,
        paths,
        run: &run,
        options,
        sources,
        nodes,
        tokenizer: base.tokenizer,
        processor: Arc::new(base.processor),
        done: Vec::new(),
    };
    trainer.run(base.model, splits, from)
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

struct Trainer<'a> {
    recipe: &'a Recipe,
    paths: &'a TrainPaths,
    run: &'a RunDirectory,
    options: &'a TrainOptions,
    sources: &'a Sources,
    nodes: Option<Arc<Nodes>>,
    tokenizer: TextTokenizer,
    processor: Arc<ImageProcessor>,
    /// Stages that are over.
    done: Vec<StageOutcome>,
}

impl Trainer<'_> {
    fn run<B: AutodiffBackend>(
        mut self,
        mut model: SqLlava<B>,
        splits: Vec<StageSplit>,
        mut from: Option<(PathBuf, RunState)>,
    ) -> Result<TrainOutcome, TrainError> {
        if let Some((_, state)) = &from {
            self.done.clone_from(&state.done);
        }
        let last = splits.len().saturating_sub(1);
        let mut checkpoint = None;
        for (index, split) in splits.into_iter().enumerate() {
            let stage = split.stage;
            if self.done.iter().any(|outcome| outcome.stage == stage) {
                continue;
            }
            let start = from.take_if(|(_, state)| state.stage == stage);
            let stop = self.options.stop.is_set();
            let stop = match &self.nodes {
                None => stop,
                Some(nodes) => nodes.any("between two stages", stop)?,
            };
            if stop {
                return Ok(self.outcome(true, checkpoint));
            }
            let (finished, trainable) = self.stage(model, split, start)?;
            model = finished.model.model;
            self.done
                .push(StageOutcome::new(stage, &finished.progress, trainable));
            if finished.stopped.is_some() {
                return Ok(self.outcome(true, finished.stopped));
            }
            let state = RunState::new(stage, finished.progress, &self.done, self.sources);
            let more = |directory: &Path| state.write(directory);
            if index == last {
                self.run.finish(&model, &self.files(), more)?;
            } else {
                let name = format!("stage{stage}");
                checkpoint = Some(self.run.save(&name, &model, &self.files(), more)?);
            }
        }
        Ok(self.outcome(false, None))
    }

    fn outcome(self, interrupted: bool, checkpoint: Option<PathBuf>) -> TrainOutcome {
        TrainOutcome {
            run: self.run.path().to_path_buf(),
            stages: self.done,
            interrupted,
            checkpoint,
        }
    }

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
        split: StageSplit,
        from: Option<(PathBuf, RunState)>,
    ) -> Result<(Finished<B>, [usize; 3]), TrainError> {
        let recipe = self.recipe;
        let stage = split.stage;
        let settings = recipe.stage(stage);
        self.processor = Arc::new(processor_of(&self.processor, recipe, stage)?);
        let prepared = StageModel::prepare(model, &mut self.tokenizer, recipe, stage)?;
        let trainable = prepared.counts();
        let features = Arc::new(FeatureCache::new(recipe.feature_cache_mib << 20));
        let valid = match split.validation {
            Some((manifest, plan)) => {
                let data = Arc::new(self.data(&prepared, stage, manifest, &features)?);
                Some((data, plan))
            }
            None => None,
        };
        let data = Arc::new(self.data(&prepared, stage, split.training, &features)?);
        let plan = Plan::new(settings, data.len());
        let mut schedule = CosineWarmup::new(plan.steps(), settings.warmup_ratio);
        let optimizer = GroupedAdamW::<B>::new(settings, prepared.groups.clone());
        let mut start = StageProgress::default();
        if let Some((directory, state)) = from {
            optimizer.restore(&directory, &prepared.model)?;
            start = state.progress;
            schedule = LrScheduler::load_record::<B>(schedule, start.step);
        }
        let valid_data = valid.as_ref().map(|(data, _)| &**data);
        let config = prepared.model.config.clone();
        let (trains, count) = (prepared.trains, trainable.iter().sum());
        let memory = StepMemory {
            kernels: is_native::<B>(),
            ..StepMemory::of_stage(&config, recipe, stage, trains, count)
        };
        memory::announce(&memory, stage, recipe.gradient_checkpointing);
        announce(
            &config,
            recipe,
            stage,
            (&data, valid_data),
            (&plan, start.step),
            &schedule,
            trainable,
        )?;

        let mut share = (0, 1);
        if let Some(nodes) = &self.nodes {
            let trained = (&prepared.model, &*prepared.groups);
            nodes::agree_on_stage::<B, _>(nodes, stage, trained, &data, (&plan, start.step))?;
            share = (nodes.rank(), nodes.count());
        }

        let failure = Failure::default();
        let loss = LossSettings {
            question_weight: recipe.loss.question_weight,
            answer_weight: recipe.loss.answer_weight,
            chunk_tokens: recipe.loss.chunk_tokens,
        };
        let bad_images = BadImageLog::open(self.run.path(), stage, recipe.bad_images)?;
        let loader = |data: &Arc<StageData>, plan, first| {
            BatchLoader::new(data.clone(), plan, first, recipe.workers, failure.clone())
                .with_bad_images(bad_images.clone())
        };
        let train_loader = loader(&data, plan, start.step)
            .with_most_bad(recipe.max_bad_images, "step")
            .shard(share.0, share.1);
        let (valid_loader, validation) = match &valid {
            None => (BatchLoader::empty(), None),
            Some((data, when)) => {
                let log = LossLog::open(self.run.path(), Curve::Validation)?;
                let plan = Plan {
                    samples_per_step: settings.batch_size,
                    epochs: 1.0,
                    ..Plan::new(settings, data.len())
                };
                let loader = loader(data, plan, 0)
                    .with_most_bad(recipe.max_bad_images, "batch of the validation");
                (loader, Some((*when, Mutex::new(log))))
            }
        };
        let device = prepared.model.device();
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
        let strategy = StepStrategy {
            stage,
            plan,
            start: start.clone(),
            schedule,
            rates: [settings.lr_llm, settings.lr_projector, settings.lr_vision],
            loss,
            optimizer: optimizer.clone(),
            failure: failure.clone(),
            log: Mutex::new(LossLog::open(self.run.path(), Curve::Training)?),
            validation,
            save_every: recipe.save_every,
            save: self.saver(stage, &optimizer),
            devices: devices_of::<B>(&device, &recipe.devices),
            groups: prepared.groups,
            nodes: self.nodes.clone(),
            stop: self.options.stop.clone(),
            finished: finished.clone(),
        };
        let mut training = SupervisedTraining::<Components<B>>::new(
            self.run.path(),
            Arc::new(train_loader),
            Arc::new(valid_loader),
        )
        .num_epochs(plan.passes())
        .with_application_logger(None)
        .with_metric_logger(SilentLogger)
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)));
        for quantity in Quantity::DASHBOARD {
            training = training.metric_train_numeric(StepMetric::new(quantity));
        }
        if valid.is_some() {
            for quantity in Quantity::DASHBOARD_VALIDATION {
                training = training.metric_valid_numeric(StepMetric::new(quantity));
            }
        }
        let lines = || {
            let every = recipe.log_every;
            LineRenderer::new(std::io::stdout(), stage, every, &plan, start.step)
        };
        training = match self.options.ui {
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
        draw(self.run.path())?;
        let mut slot = finished.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = slot
            .take()
            .ok_or_else(|| TrainError::Internal("the training ended without a result".into()))?;
        Ok((finished, trainable))
    }

    /// Saves what a stage has so far.
    fn saver<B: AutodiffBackend>(
        &self,
        stage: u8,
        optimizer: &GroupedAdamW<B>,
    ) -> Box<crate::run::strategy::Save<B>> {
        let (run, files, optimizer) = (self.run.clone(), self.files(), optimizer.clone());
        let (done, sources) = (self.done.clone(), self.sources.clone());
        Box::new(move |what, progress, train: &TrainModel<B>| {
            let model = &train.model;
            let state = RunState::new(stage, progress.clone(), &done, &sources);
            match what {
                Saved::Best => run.save(&format!("best-{stage}"), model, &files, |directory| {
                    state.write(directory)
                }),
                Saved::Checkpoint => {
                    draw(run.path())?;
                    run.checkpoint(stage, progress.step, model, &files, |directory| {
                        state.write(directory)?;
                        optimizer.save(directory, model)
                    })
                }
            }
        })
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
        if recipe.asking.is_overruled() {
            tracing::info!(
                "stage {stage}: asking.delta is 0, so nothing is asked, whatever asking.sources and \
                 asking.delta_end say"
            );
        }
        let asking = asking.filter(|_| settings.template.asks());
        if let Some(policy) = &asking {
            check_sources(&manifest, policy)?;
        }
        Ok(StageData {
            shuffle_turns: settings.shuffle_turns.then_some(recipe.seed),
            sampler: sampler(&manifest, settings, per_image, recipe.seed)?,
            bad_images: recipe.bad_images,
            manifest,
            images: settings.images.clone().unwrap_or_default(),
            tokenizer: Arc::new(self.tokenizer.clone()),
            processor: self.processor.clone(),
            labels: LabelOptions {
                template: settings.template.into(),
                system: None,
                tokens_per_image: per_image,
                max_length: Some(settings.max_length),
                spoken_end_tokens: recipe.spoken_end_tokens,
            },
            asking,
            features: (!prepared.trains.vision).then(|| features.clone()),
        })
    }
}
