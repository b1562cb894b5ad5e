//! Everything up to the first step, and how long the run would take.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::data::dataloader::DataLoader;
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use sq_llava_data::Source;
use sq_llava_data::check::{CheckOptions, CheckReport, FindingKind, Severity, check};
use sq_llava_data::machine_threads;
use sq_llava_model::SqLlava;

use super::stage::Stage;
use super::{RunRequest, TrainOptions, Trainer, with_paths};
use crate::data::batch::MicroBatch;
use crate::data::features::FeatureCache;
use crate::error::TrainError;
use crate::recipe::{BadImagePolicy, Recipe};
use crate::report::time_left::duration;
use crate::run::base::{Base, TrainPaths, processor_of};
use crate::run::devices::{DevicePool, in_groups, seats};
use crate::run::precision::check_dtype;
use crate::run::run_dir::RunDirectory;
use crate::run::sampling::check_named;
use crate::run::seen::as_seen;
use crate::run::stage::StageModel;
use crate::run::state::Sources;
use crate::run::validation::{StageSplit, open_splits};

/// Samples that the number of tokens is estimated from.
const ESTIMATE_SAMPLES: usize = 512;
/// A validation's forward pass against a step's forward and backward pass.
const FORWARD_PART: f64 = 1.0 / 3.0;

/// What a stage would take.
#[derive(Debug, Clone, PartialEq)]
pub struct DryStage {
    /// 1 or 2.
    pub stage: u8,
    /// Optimizer steps.
    pub steps: usize,
    /// Samples of the batch that was timed.
    pub batch_samples: usize,
    /// Its tokens, images in place.
    pub batch_tokens: usize,
    /// Its forward and backward pass.
    pub batch: Duration,
    /// Tokens of all steps, by estimate.
    pub tokens: f64,
    /// The stage's forward and backward passes and validations.
    pub time: Duration,
}

/// Does everything that [`train`](crate::train) does before its first step, times one forward and
/// backward pass of each stage and returns how long they would take. The weights of stage 2 are
/// timed as stage 1 finds them. What is said on the way is said here too; no file of the run is
/// written.
///
/// # Errors
/// As [`train`](crate::train); also if a sample of the data is malformed.
pub fn dry_run<B: AutodiffBackend>(
    recipe: &Recipe,
    paths: &TrainPaths,
    device: &B::Device,
) -> Result<Vec<DryStage>, TrainError> {
    let recipe = with_paths(recipe, paths)?;
    recipe.validate()?;
    let recipe = as_seen(recipe, paths)?;
    let recipe = in_groups::<B>(recipe, None, false)?;
    check_dtype::<B>(&recipe, device)?;
    RunDirectory::check_unused(&paths.out)?;
    check_named(&recipe)?;
    let splits = open_splits(&recipe)?;
    check_data(&recipe)?;
    let sources = Sources::of(paths)?;
    let options = TrainOptions::default();
    let scratch = tempfile::tempdir().map_err(|e| TrainError::io(std::env::temp_dir(), e))?;
    let run = RunDirectory::create(&scratch.path().join("run"), &recipe, paths)?;
    let base = Base::<B>::load(&recipe, paths, device)?;
    let mut trainer = Trainer {
        request: RunRequest {
            recipe: &recipe,
            paths,
            options: &options,
            sources: &sources,
            nodes: None,
        },
        run: &run,
        tokenizer: base.tokenizer,
        processor: Arc::new(base.processor),
        sizes: Vec::new(),
        done: Vec::new(),
    };
    let mut model = base.model;
    let mut stages = Vec::with_capacity(splits.len());
    for split in splits {
        let (timed, trained) = trainer.time_stage(model, split)?;
        stages.push(timed);
        model = trained;
    }
    Ok(stages)
}

/// Looks every sample over.
fn check_data(recipe: &Recipe) -> Result<(), TrainError> {
    for &stage in &recipe.stages {
        let settings = recipe.stage(stage);
        let held = settings.validation.iter();
        let held = held.map(|path| Source::new(path, PathBuf::new())).collect();
        for (name, sources) in [("data", settings.sources()), ("validation", held)] {
            if sources.is_empty() {
                continue;
            }
            let report = check_samples(sources)?;
            let damaged = report.findings.iter();
            let damaged = damaged.filter(|group| group.kind == FindingKind::DamagedShard);
            // A run goes on without them.
            let passed_over = match recipe.bad_images {
                BadImagePolicy::Error => 0,
                BadImagePolicy::Skip | BadImagePolicy::Blank => {
                    damaged.map(|group| group.count).sum()
                }
            };
            if report.errors > passed_over {
                return Err(TrainError::Recipe(format!(
                    "the samples of stage{stage}.{name} have {} errors: {}; sq-llava check names them",
                    report.errors,
                    report.kinds(Severity::Error)
                )));
            }
            if passed_over > 0 {
                tracing::warn!("stage {stage}: {passed_over} places of {name} are damaged");
            } else {
                tracing::info!(
                    "stage {stage}: {} samples of {name} are well formed; sq-llava check looks at their pictures too",
                    report.samples,
                );
            }
        }
    }
    Ok(())
}

/// All but their pictures.
fn check_samples(sources: Vec<Source>) -> Result<CheckReport, TrainError> {
    let options = CheckOptions {
        images: None,
        files: false,
        masks: None,
        labels: None,
        threads: machine_threads().max(1),
        listed: 1,
    };
    Ok(check(sources, &options, &|_, _, _| {})?)
}

impl Trainer<'_> {
    /// Prepares a stage, says what [`Self::stage`] would, and times a batch of it.
    fn time_stage<B: AutodiffBackend>(
        &mut self,
        model: SqLlava<B>,
        split: StageSplit,
    ) -> Result<(DryStage, SqLlava<B>), TrainError> {
        let (number, recipe) = (split.stage, self.request.recipe);
        let processor = processor_of(self.processor.config(), &model.config, recipe, number)?;
        self.processor = Arc::new(processor);
        let prepared = StageModel::prepare(model, &mut self.tokenizer, recipe, number)?;
        let stage = Stage::open(self, &prepared, split, None)?;
        stage.announce(&prepared)?;
        stage.time(prepared)
    }
}

impl<B: AutodiffBackend> Stage<'_, B> {
    /// Times the forward and backward pass of the first batch of each seat, once everything is warm.
    fn time(self, prepared: StageModel<B>) -> Result<(DryStage, SqLlava<B>), TrainError> {
        let device = prepared.model.device();
        let seats = seats::<B>(&device, self.trainer.request.recipe);
        let groups = prepared.groups.clone();
        let mut model = self.train_model(prepared);
        // The second pass sees the pictures again, as the first pass of a run does.
        model.context.features = Arc::new(FeatureCache::new(0));
        let round = self.first_round(seats.len())?;
        let pool = (seats.len() > 1).then(|| DevicePool::new(&seats, &model, &groups));
        let mut pool = pool.transpose()?;
        let mut taken = Duration::ZERO;
        let mut tokens = 0;
        for _ in 0..2 {
            let start = Instant::now();
            let mut outputs = Vec::new();
            for batch in round.clone() {
                match &mut pool {
                    Some(pool) => outputs.extend(pool.step(batch, &model)?),
                    None => outputs.push(TrainStep::step(&model, batch)),
                }
            }
            self.failure.take().map_or(Ok(()), Err)?;
            let synced = B::sync(&device);
            synced.map_err(|e| TrainError::Internal(format!("the device: {e}")))?;
            taken = start.elapsed();
            tokens = outputs.iter().map(|output| output.item.tokens).sum();
        }
        let all = self.data.estimate(ESTIMATE_SAMPLES)?.tokens;
        let all = all * self.plan.all_samples() as f64 / self.plan.samples.max(1) as f64;
        let mut passes = all;
        if let Some((data, plan)) = &self.validation {
            let times = self.plan.steps().div_ceil(plan.every.max(1));
            let each = data.estimate(ESTIMATE_SAMPLES)?.tokens;
            // One device alone validates, but all threads of a CPU.
            let alone = seats.iter().filter(|seat| seat.threads.is_none()).count();
            passes += FORWARD_PART * each * times as f64 * alone.max(1) as f64;
        }
        let each = taken.as_secs_f64() / tokens.max(1) as f64;
        let timed = DryStage {
            stage: self.number,
            steps: self.plan.steps(),
            batch_samples: round.iter().map(|batch| batch.samples.len()).sum(),
            batch_tokens: tokens,
            batch: taken,
            tokens: all,
            time: duration(each * passes),
        };
        Ok((timed, model.model))
    }

    /// The first step's batches, as many as there are seats for.
    fn first_round(&self, seats: usize) -> Result<Vec<MicroBatch>, TrainError> {
        let loader: &dyn DataLoader<B, _> = &self.training_loader();
        let mut round: Vec<MicroBatch> = Vec::new();
        for batch in loader.iter().take(seats) {
            let last = batch.is_last();
            round.push(batch);
            if last {
                break;
            }
        }
        self.failure.take().map_or(Ok(()), Err)?;
        match round.is_empty() {
            true => Err(TrainError::Internal(format!(
                "stage {}: the data have no batch",
                self.number
            ))),
            false => Ok(round),
        }
    }
}
