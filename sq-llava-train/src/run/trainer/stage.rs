//! One stage: its data, its place in the schedule, its loaders, and Burn's Learner around them.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::lr_scheduler::LrScheduler;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use sq_llava_data::masks::MaskFolder;
use sq_llava_data::{DataSet, LabelOptions};
use sq_llava_model::SqLlava;
use sq_llava_model::kernels::Kernels;

use super::{Trainer, Ui};
use crate::data::bad_images::BadImageLog;
use crate::data::dataset::{Shown, StageData, check_sources, followed, sampler};
use crate::data::features::FeatureCache;
use crate::data::loader::{BatchLoader, Plan};
use crate::data::masks::StageMasks;
use crate::error::TrainError;
use crate::failure::Failure;
use crate::recipe::StageRecipe;
use crate::report::announce::StageAnnouncement;
use crate::report::curves::plot;
use crate::report::loss_log::{Curve, LossLog};
use crate::report::metrics::{Quantity, StepMetric};
use crate::report::notes::{NoteMetric, Notes, Topic};
use crate::report::renderer::{LineRenderer, NoRenderer, SilentLogger};
use crate::report::samples::SampleLog;
use crate::report::tensorboard::EventWriter;
use crate::report::time_left::{TimeLeft, duration};
use crate::run::adaptive::AdaptiveAsking;
use crate::run::base::processor_of;
use crate::run::devices::seats;
use crate::run::later::later_steps;
use crate::run::manifest::bytes_in;
use crate::run::nodes::{StageStart, Trainable, agree_on_stage};
use crate::run::reporting::Reporting;
use crate::run::resume::Checkpoint;
use crate::run::run_dir::{best_name, name_of};
use crate::run::sampling::Samples;
use crate::run::stage::StageModel;
use crate::run::state::{RunState, StageOutcome, StageProgress};
use crate::run::strategy::{Components, Finished, Save, Saved, StepStrategy, ValidationPlan};
use crate::run::validation::StageSplit;
use crate::step::loss::LossSettings;
use crate::step::memory::{self, StepMemory};
use crate::step::optimizer::GroupedAdamW;
use crate::step::schedule::CosineWarmup;
use crate::step::whole::{StepContext, TrainModel};

impl Trainer<'_> {
    /// Trains a stage from its beginning, or from the checkpoint `from`, and adds what it did to
    /// the stages that are done.
    pub(super) fn stage<B: AutodiffBackend>(
        &mut self,
        model: SqLlava<B>,
        split: StageSplit,
        from: Option<Checkpoint>,
    ) -> Result<Finished<B>, TrainError> {
        let number = split.stage;
        let recipe = self.request.recipe;
        let processor = processor_of(self.processor.config(), &model.config, recipe, number)?;
        self.processor = Arc::new(processor);
        let prepared = StageModel::prepare(model, &mut self.tokenizer, recipe, number)?;
        let trainable = prepared.counts();
        let stage = Stage::open(self, &prepared, split, from)?;
        stage.announce(&prepared)?;
        stage.agree(&prepared)?;
        let finished = stage.train(prepared)?;
        self.done
            .push(StageOutcome::new(number, &finished.progress, trainable));
        Ok(finished)
    }
}

/// A stage about to be trained.
pub(super) struct Stage<'a, B: AutodiffBackend> {
    pub(super) trainer: &'a Trainer<'a>,
    /// 1 or 2.
    pub(super) number: u8,
    settings: &'a StageRecipe,
    pub(super) data: Arc<StageData>,
    pub(super) validation: Option<(Arc<StageData>, ValidationPlan)>,
    /// What a frozen vision tower made of the pictures so far.
    features: Arc<FeatureCache>,
    pub(super) plan: Plan,
    schedule: CosineWarmup,
    optimizer: GroupedAdamW<B>,
    /// Where it begins or resumes.
    start: StageProgress,
    /// What moves δ from there.
    adaptive: Option<AdaptiveAsking>,
    /// Pictures that cannot be used.
    bad_images: BadImageLog,
    /// Where loader and strategy leave their errors.
    pub(super) failure: Failure,
}

impl<'a, B: AutodiffBackend> Stage<'a, B> {
    /// Opens the data and restores the checkpoint that it resumes from.
    pub(super) fn open(
        trainer: &'a Trainer<'_>,
        prepared: &StageModel<B>,
        split: StageSplit,
        from: Option<Checkpoint>,
    ) -> Result<Self, TrainError> {
        let (number, recipe) = (split.stage, trainer.request.recipe);
        let settings = recipe.stage(number);
        let features = Arc::new(FeatureCache::new(recipe.feature_cache_mib << 20));
        let open = |data| trainer.stage_data(prepared, number, data, &features);
        let validation = match split.validation {
            Some((data, plan)) => Some((Arc::new(open(data)?), plan)),
            None => None,
        };
        let mut data = open(split.training)?;
        // A few samples held out need not be of every source.
        check_sources(&data)?;
        data.followed = followed(&recipe.asking, &data)?;
        let plan = Plan::new(settings, recipe.groups(), data.len());
        let mut schedule = CosineWarmup::new(plan.steps(), settings.warmup_ratio);
        let optimizer = GroupedAdamW::<B>::new(settings, prepared.groups.clone());
        let mut start = StageProgress::default();
        if let Some(checkpoint) = from {
            optimizer.restore(&checkpoint.path, &prepared.model)?;
            start = checkpoint.state.progress;
            schedule = LrScheduler::load_record::<B>(schedule, start.step);
        }
        let adaptive = AdaptiveAsking::open(&recipe.asking, &data, &mut start)?;
        Ok(Self {
            bad_images: BadImageLog::open(trainer.run.path(), number, recipe.bad_images)?,
            trainer,
            number,
            settings,
            data: Arc::new(data),
            validation,
            features,
            plan,
            schedule,
            optimizer,
            start,
            adaptive,
            failure: Failure::default(),
        })
    }

    /// Says what will train, how long, and in what memory.
    pub(super) fn announce(&self, prepared: &StageModel<B>) -> Result<(), TrainError> {
        let recipe = self.trainer.request.recipe;
        let trainable = prepared.counts();
        let config = &prepared.model.config;
        let (trains, count) = (prepared.trains, trainable.iter().sum());
        let memory = StepMemory {
            kernels: Kernels::of::<B>(),
            ..StepMemory::of_stage(config, recipe, self.number, trains, count)
        };
        memory::announce(&memory, self.number, recipe.gradient_checkpointing);
        if memory.kernels == Kernels::Cpu && recipe.groups() > 1 {
            let (stage, groups) = (self.number, recipe.groups());
            tracing::info!("stage {stage}: {groups} groups of threads share each batch");
        }
        let announcement = StageAnnouncement {
            config,
            recipe,
            stage: self.number,
            data: &self.data,
            validation: self.validation.as_ref().map(|(data, _)| &**data),
            plan: self.plan,
            steps_done: self.start.step,
            warmup_steps: self.schedule.warmup_steps,
            trainable,
        };
        announcement.say()
    }

    /// Looks whether all nodes are about to do the same.
    fn agree(&self, prepared: &StageModel<B>) -> Result<(), TrainError> {
        let Some(nodes) = self.trainer.request.nodes else {
            return Ok(());
        };
        let start = StageStart {
            stage: self.number,
            plan: self.plan,
            steps_done: self.start.step,
            asking: self.start.asking.as_ref(),
            data: &self.data,
        };
        let trainable = Trainable {
            model: &prepared.model,
            groups: &prepared.groups,
        };
        agree_on_stage::<B, _>(nodes, &start, &trainable)
    }

    /// Runs the training loop inside Burn's Learner.
    fn train(self, prepared: StageModel<B>) -> Result<Finished<B>, TrainError> {
        let finished = Arc::new(Mutex::new(None));
        let notes = Notes::default();
        let strategy = self.strategy(&prepared, &notes, finished.clone())?;
        let training = self.supervised(strategy, &notes);
        let model = self.train_model(prepared);
        let learner = Learner::new(model, self.optimizer, self.schedule);
        // Closes the dashboard.
        drop(training.launch(learner));
        if let Some(summary) = self.bad_images.summary() {
            tracing::warn!("{summary}");
        }
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        plot(self.trainer.run.path())?;
        let mut slot = finished.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
            .ok_or_else(|| TrainError::Internal("the training ended without a result".into()))
    }

    fn loss(&self) -> LossSettings {
        let loss = &self.trainer.request.recipe.loss;
        LossSettings {
            question_weight: loss.question_weight,
            answer_weight: loss.answer_weight,
            chunk_tokens: loss.chunk_tokens,
        }
    }

    pub(super) fn train_model(&self, prepared: StageModel<B>) -> TrainModel<B> {
        let recipe = self.trainer.request.recipe;
        TrainModel {
            model: prepared.model,
            context: StepContext {
                objective: self.settings.objective,
                loss: self.loss(),
                mask_weight: recipe
                    .model
                    .masks
                    .as_ref()
                    .map_or(0.0, |masks| masks.weight),
                trains: prepared.trains,
                features: self.features.clone(),
                checkpointing: recipe.gradient_checkpointing,
                seed: recipe.seed,
                failure: self.failure.clone(),
            },
        }
    }

    /// The training loop; its result is left in `finished`.
    fn strategy(
        &self,
        prepared: &StageModel<B>,
        notes: &Notes,
        finished: Arc<Mutex<Option<Finished<B>>>>,
    ) -> Result<StepStrategy<B>, TrainError> {
        let (request, settings) = (&self.trainer.request, self.settings);
        let (run, recipe) = (self.trainer.run.path(), request.recipe);
        let log = |curve| {
            // Both stages are in one log.
            let has_deltas = curve == Curve::Training && recipe.asking.is_adaptive();
            let log = LossLog::open(run, curve, has_deltas)?;
            let log = match recipe.report.tensorboard {
                true => log.with_events(run, self.number, self.start.step)?,
                false => log,
            };
            Ok::<_, TrainError>(Mutex::new(log))
        };
        let validation = match &self.validation {
            Some((_, plan)) => Some((*plan, log(Curve::Validation)?)),
            None => None,
        };
        Ok(StepStrategy {
            stage: self.number,
            plan: self.plan,
            start: self.start.clone(),
            schedule: self.schedule,
            rates: [settings.lr_llm, settings.lr_projector, settings.lr_vision],
            loss: self.loss(),
            optimizer: self.optimizer.clone(),
            failure: self.failure.clone(),
            adaptive: self.adaptive.clone(),
            log: log(Curve::Training)?,
            validation,
            save_every: recipe.save_every,
            save: self.saver(notes),
            seats: seats::<B>(&prepared.model.device(), recipe),
            groups: prepared.groups.clone(),
            nodes: request.nodes.cloned(),
            reporting: self.reporting(prepared, notes)?,
            stop: request.options.stop.clone(),
            finished,
        })
    }

    /// What the stage tells beside logs and metrics.
    fn reporting(&self, prepared: &StageModel<B>, notes: &Notes) -> Result<Reporting, TrainError> {
        let trainer = self.trainer;
        let (request, run) = (&trainer.request, trainer.run.path());
        let (recipe, steps, done) = (request.recipe, self.plan.steps(), self.start.step);
        let config = &prepared.model.config;
        let later = later_steps(&trainer.sizes, config, recipe);
        // One of several machines speaks for all: they have the same weights.
        let first = request.nodes.is_none_or(|nodes| nodes.rank() == 0);
        let data = self
            .validation
            .as_ref()
            .map_or(&self.data, |(data, _)| data);
        let choose = || Samples::choose(recipe, self.number, data, &prepared.layout);
        let samples = match first.then(choose).transpose()?.flatten() {
            None => None,
            Some(samples) => {
                let events = recipe.report.tensorboard;
                let events = events.then(|| EventWriter::open(run, self.number, "-samples", done));
                let log = SampleLog::open(run, samples.pictures(), events.transpose()?)?;
                Some((samples, Mutex::new(log)))
            }
        };
        Ok(Reporting {
            stage: self.number,
            steps,
            run: run.to_path_buf(),
            notes: notes.clone(),
            time: Mutex::new(TimeLeft::new(steps, done, later)),
            samples,
            page: Mutex::default(),
        })
    }

    /// Saves what the stage has so far.
    fn saver(&self, notes: &Notes) -> Box<Save<B>> {
        let (trainer, stage, optimizer) = (self.trainer, self.number, self.optimizer.clone());
        let (run, files) = (trainer.run.clone(), trainer.files());
        let (done, sources) = (trainer.done.clone(), trainer.request.sources.clone());
        let notes = notes.clone();
        Box::new(move |what, progress, train: &TrainModel<B>| {
            let model = &train.model;
            let state = RunState::new(stage, progress.clone(), &done, &sources);
            let start = Instant::now();
            let more = |directory: &Path| {
                state.write(directory)?;
                optimizer.save(directory, model)
            };
            let saved = match what {
                Saved::Best => run.save(&best_name(stage), model, &files, more)?,
                Saved::Checkpoint => {
                    plot(run.path())?;
                    run.checkpoint(stage, progress.step, model, &files, more)?
                }
            };
            let (name, bytes) = (name_of(&saved), bytes_in(&saved)?);
            let text = format!(
                "{name}: {:.1} MiB, saved in {:.1} s",
                bytes as f64 / f64::from(1 << 20),
                start.elapsed().as_secs_f64()
            );
            notes.add_line(format!("stage {stage} step {}: {text}", progress.step));
            notes.set(Topic::Checkpoint, text);
            Ok(saved)
        })
    }

    /// Loads `data` along a plan, from an optimizer step on.
    fn loader(&self, data: &Arc<StageData>, plan: Plan, first_step: usize) -> BatchLoader {
        let recipe = self.trainer.request.recipe;
        let workers = recipe.workers;
        BatchLoader::new(
            data.clone(),
            plan,
            first_step,
            workers,
            self.failure.clone(),
        )
        .with_bad_images(self.bad_images.clone())
        .with_patience(duration(recipe.report.stall_seconds))
    }

    /// The batches that this node trains on.
    pub(super) fn training_loader(&self) -> BatchLoader {
        let most_bad = self.trainer.request.recipe.max_bad_images;
        let loader = self
            .loader(&self.data, self.plan, self.start.step)
            .with_most_bad(most_bad, "step");
        match self.trainer.request.nodes {
            Some(nodes) => loader.shard(nodes.rank(), nodes.count()),
            None => loader,
        }
    }

    /// The batches of one validation; none without a split.
    fn validation_loader(&self) -> BatchLoader {
        let Some((data, _)) = &self.validation else {
            return BatchLoader::empty();
        };
        let plan = Plan {
            samples_per_step: self.settings.batch_size,
            epochs: 1.0,
            ..Plan::new(self.settings, 1, data.len())
        };
        let most_bad = self.trainer.request.recipe.max_bad_images;
        self.loader(data, plan, 0)
            .with_most_bad(most_bad, "batch of the validation")
    }

    /// Burn's training: loaders, the loop, metrics and what shows them.
    fn supervised(
        &self,
        strategy: StepStrategy<B>,
        notes: &Notes,
    ) -> SupervisedTraining<Components<B>> {
        let mut training = SupervisedTraining::<Components<B>>::new(
            self.trainer.run.path(),
            Arc::new(self.training_loader()),
            Arc::new(self.validation_loader()),
        )
        .num_epochs(self.plan.passes())
        .with_application_logger(None)
        .with_metric_logger(SilentLogger)
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)));
        // A run without masks has no curve of them.
        let masks = self.data.masks.is_some();
        let shown = |quantity: &Quantity| masks || *quantity != Quantity::LossMasks;
        for quantity in Quantity::DASHBOARD.into_iter().filter(shown) {
            training = training.metric_train_numeric(StepMetric::new(quantity));
        }
        for topic in Topic::ALL {
            training = training.metric_train(NoteMetric::new(topic, notes));
        }
        if self.validation.is_some() {
            for quantity in Quantity::DASHBOARD_VALIDATION.into_iter().filter(shown) {
                training = training.metric_valid_numeric(StepMetric::new(quantity));
            }
        }
        let lines = || {
            let every = self.trainer.request.recipe.log_every;
            let (plan, done) = (&self.plan, self.start.step);
            let notes = notes.clone();
            LineRenderer::new(std::io::stdout(), self.number, every, plan, done, notes)
        };
        match self.trainer.request.options.ui {
            Ui::Auto if std::io::stdout().is_terminal() => training,
            Ui::Auto | Ui::Lines => training.renderer(lines()),
            Ui::Quiet => training.renderer(NoRenderer),
        }
    }
}

impl Trainer<'_> {
    /// Samples as a stage sees them.
    fn stage_data<B: AutodiffBackend>(
        &self,
        prepared: &StageModel<B>,
        stage: u8,
        data: DataSet,
        features: &Arc<FeatureCache>,
    ) -> Result<StageData, TrainError> {
        let recipe = self.request.recipe;
        let settings = recipe.stage(stage);
        let per_image = prepared.model.config.tokens_per_image();
        let asking = recipe.asking.policy(recipe.seed);
        if recipe.asking.is_overruled() {
            tracing::info!(
                "stage {stage}: asking.delta is 0, so nothing is asked, whatever asking.schedule, \
                 asking.sources and asking.delta_end say"
            );
        }
        let asking = asking.filter(|_| prepared.layout.asks());
        let masks = match (&recipe.model.masks, prepared.model.config.patch_grid()) {
            (Some(masks), Some(grid)) => Some(StageMasks {
                folder: MaskFolder::open(&masks.folder)
                    .map_err(|error| TrainError::Recipe(format!("model.masks.folder: {error}")))?,
                grid,
            }),
            _ => None,
        };
        let shown = Shown {
            data: &data,
            processor: &self.processor,
            tile_tokens: per_image,
        };
        Ok(StageData {
            shuffle_turns: settings.shuffle_turns.then_some(recipe.seed),
            sampler: sampler(settings, shown, recipe.seed)?,
            bad_images: recipe.bad_images,
            data,
            tokenizer: Arc::new(self.tokenizer.clone()),
            processor: self.processor.clone(),
            labels: LabelOptions {
                template: prepared.layout.clone(),
                system: None,
                tokens_per_image: per_image,
                max_length: Some(settings.max_length),
                spoken_end_tokens: recipe.spoken_end_tokens,
            },
            asking,
            followed: None,
            features: (!prepared.trains.vision).then(|| features.clone()),
            masks,
        })
    }
}
