//! The training loop inside Burn's Learner.
//!
//! Burn's own strategies step the scheduler for each batch, drop an accumulation that an epoch's
//! end leaves open and keep whole models as checkpoints. This one counts optimizer steps,
//! accumulates whole ones, stops at what is not a number, and validates and saves between two
//! steps.

mod last_batch;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::data::dataloader::Progress;
use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::AutodiffBackend;
use burn::train::{
    EventProcessorTraining, InferenceStep, Learner, LearnerEvent, LearningComponentsMarker,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents,
    TrainingItem, ValidLoader,
};

use crate::data::bad_images::BAD_IMAGES_FILE;
use crate::data::batch::MicroBatch;
use crate::data::loader::Plan;
use crate::error::TrainError;
use crate::failure::Failure;
use crate::report::loss_log::LossLog;
use crate::report::resident::held_bytes;
use crate::run::adaptive::AdaptiveAsking;
use crate::run::devices::{DevicePool, Seat};
use crate::run::nodes::{Nodes, Order, StepId};
use crate::run::reporting::Reporting;
use crate::run::state::{BestValidation, StageProgress};
use crate::run::stop::StopSignal;
use crate::step::groups::ParamGroups;
use crate::step::loss::LossSettings;
use crate::step::optimizer::GroupedAdamW;
use crate::step::report::StepReport;
use crate::step::schedule::CosineWarmup;
use crate::step::whole::TrainModel;

/// The types of our Learner.
pub type Components<B> = LearningComponentsMarker<B, CosineWarmup, TrainModel<B>, GroupedAdamW<B>>;

/// What is saved between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// A checkpoint to go on from.
    Checkpoint,
    /// The best model so far.
    Best,
}

/// Saves where a stage stands; returns the directory.
pub type Save<B> = dyn Fn(Saved, &StageProgress, &TrainModel<B>) -> Result<PathBuf, TrainError>;

/// What came out of a stage.
#[derive(Debug)]
pub struct Finished<B: AutodiffBackend> {
    /// The trained model.
    pub model: TrainModel<B>,
    /// Where the stage stands.
    pub progress: StageProgress,
    /// The checkpoint of a run that was asked to stop; `None` if it was not, or not in time.
    pub stopped: Option<PathBuf>,
}

/// When a model is validated and training ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidationPlan {
    /// Validate every this many steps, and after the last.
    pub every: usize,
    /// End the stage after this many validations without a better one; 0 for never.
    pub patience: usize,
}

/// One stage.
pub struct StepStrategy<B: AutodiffBackend> {
    /// Number of the stage.
    pub stage: u8,
    /// Its steps.
    pub plan: Plan,
    /// Where it begins or resumes.
    pub start: StageProgress,
    /// Schedule of the learning rates, for the log.
    pub schedule: CosineWarmup,
    /// Peak rate of each group.
    pub rates: [f64; 3],
    /// Weights of the loss.
    pub loss: LossSettings,
    /// A handle on the Learner's optimizer.
    pub optimizer: GroupedAdamW<B>,
    /// Where parts that cannot return errors leave them.
    pub failure: Failure,
    /// What moves δ; `None` where nothing does.
    pub(crate) adaptive: Option<AdaptiveAsking>,
    /// The loss log.
    pub log: Mutex<LossLog>,
    /// The log of validations, and when there are any.
    pub validation: Option<(ValidationPlan, Mutex<LossLog>)>,
    /// Save every this many steps; 0 for never.
    pub save_every: usize,
    /// How.
    pub save: Box<Save<B>>,
    /// Where the batches of a step run.
    pub seats: Vec<Seat<B>>,
    /// The trainable parameters.
    pub groups: Arc<ParamGroups>,
    /// The other processes that train.
    pub nodes: Option<Arc<Nodes>>,
    /// What it tells beside logs and metrics.
    pub(crate) reporting: Reporting,
    /// The wish to stop from outside.
    pub stop: StopSignal,
    /// Where the result is left.
    pub finished: Arc<Mutex<Option<Finished<B>>>>,
}

/// One run of the loop.
struct Loop<'a, B: AutodiffBackend> {
    learner: &'a mut Learner<Components<B>>,
    components: &'a mut TrainingComponents<Components<B>>,
    valid: &'a ValidLoader<Components<B>>,
    /// Where batches run on several seats.
    pool: Option<DevicePool<B>>,
    /// How gradients are exchanged, where there are other nodes.
    order: Option<Arc<Order>>,
    /// Gradients of the step at hand, added up.
    grads: GradientsAccumulator<TrainModel<B>>,
    /// What is known of the step at hand.
    report: StepReport,
    progress: StageProgress,
    sitting: Sitting,
    /// Tokens learnt in this sitting.
    learnt: usize,
    /// The checkpoint of a loop that was asked to stop.
    stopped: Option<PathBuf>,
}

/// An optimizer step whose last batch is at hand.
#[derive(Clone, Copy)]
struct WholeStep {
    /// From 0.
    epoch: usize,
    id: StepId,
}

impl<B: AutodiffBackend> StepStrategy<B> {
    fn run(
        &self,
        learner: &mut Learner<Components<B>>,
        train: &TrainLoader<Components<B>>,
        valid: &ValidLoader<Components<B>>,
        components: &mut TrainingComponents<Components<B>>,
    ) -> Result<Finished<B>, TrainError> {
        let several = self.seats.len() > 1;
        let pool = || DevicePool::new(&self.seats, &learner.model(), &self.groups);
        let pool = several.then(pool).transpose()?;
        let mut state = Loop {
            order: self.order(&learner.model()),
            learner,
            components,
            valid,
            pool,
            grads: GradientsAccumulator::new(),
            report: StepReport::default(),
            progress: self.start.clone(),
            sitting: Sitting::new(self.start.seconds),
            learnt: 0,
            stopped: None,
        };
        for batch in train.iter() {
            let is_last = batch.is_last();
            let step = WholeStep {
                epoch: batch.epoch,
                id: StepId {
                    step: batch.step,
                    step_tokens: batch.step_tokens,
                    step_masked: batch.step_masked,
                },
            };
            if !is_last {
                self.learn(&mut state, batch)?;
            } else if self.end_step(&mut state, step, batch)?.is_break() {
                break;
            }
        }
        self.check()?;
        self.finish(state)
    }

    /// Adds a batch to the step at hand.
    fn learn(&self, state: &mut Loop<'_, B>, batch: MicroBatch) -> Result<(), TrainError> {
        let outputs = match &mut state.pool {
            _ if batch.is_idle() => Vec::new(),
            None => vec![state.learner.train_step(batch)],
            Some(pool) => pool.step(batch, &state.learner.model())?,
        };
        self.check()?;
        for output in outputs {
            let model = state.learner.model();
            state.grads.accumulate::<B>(&model, output.grads);
            state.report.merge(&output.item);
        }
        Ok(())
    }

    /// Ends a step with its last batch: takes it, tells about it, validates and saves. Breaks where
    /// the loop ends.
    fn end_step(
        &self,
        state: &mut Loop<'_, B>,
        WholeStep { epoch, id }: WholeStep,
        batch: MicroBatch,
    ) -> Result<ControlFlow<()>, TrainError> {
        let (grads, agreed) = self.learn_last(state, batch, id)?;
        self.step(state, id.step, grads)?;
        if let Some(pool) = &state.pool {
            pool.update(&state.learner.model())?;
        }
        let mut report = std::mem::take(&mut state.report);
        report.seconds = state.sitting.step();
        state.progress.seconds = state.sitting.total();
        self.log_step(epoch, id.step + 1, &report)?;
        self.reporting.time_left(id.step + 1);
        self.show(state, &report, epoch);

        self.validate(state, epoch)?;
        let model = || state.learner.model().valid().model;
        self.reporting.samples(&state.progress, model)?;
        let wish = agreed.unwrap_or_else(|| self.wishes_to_stop(state));
        let stop = wish && !state.progress.complete;
        let due = self.save_every > 0 && (id.step + 1).is_multiple_of(self.save_every);
        if (due && !state.progress.complete) || stop {
            let saved = self.checkpoint(state)?;
            state.stopped = stop.then_some(saved);
        }
        let ends = stop || state.progress.complete;
        self.reporting.page(&state.progress, &report, ends)?;
        state.sitting.pause_ends();
        Ok(match ends {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    }

    /// What came out of the loop.
    fn finish(&self, state: Loop<'_, B>) -> Result<Finished<B>, TrainError> {
        let (done, planned) = (state.progress.step, self.plan.steps());
        if !state.progress.complete && state.stopped.is_none() {
            return Err(TrainError::Internal(format!(
                "the data ended at step {done} of {planned}"
            )));
        }
        if self.start.step == 0 && state.progress.complete && state.learnt == 0 {
            return Err(TrainError::NothingLearnt {
                stage: self.stage,
                list: BAD_IMAGES_FILE,
            });
        }
        Ok(Finished {
            model: state.learner.model(),
            progress: state.progress,
            stopped: state.stopped,
        })
    }

    /// Whether this process was asked to stop.
    fn wishes_to_stop(&self, state: &Loop<'_, B>) -> bool {
        self.stop.is_set() || state.components.interrupter.should_stop()
    }

    /// Takes the optimizer step and counts it.
    fn step(
        &self,
        state: &mut Loop<'_, B>,
        step: usize,
        grads: GradientsParams,
    ) -> Result<(), TrainError> {
        let report = &mut state.report;
        report.loss = report.sums.mean(&self.loss);
        if !report.loss.is_finite() {
            return Err(not_finite(step, "the loss"));
        }
        state.learner.lr_step();
        report.rates = self.rates.map(|rate| rate * self.schedule.factor(step));
        state.learner.optimizer_step(grads);
        report.norms = self.optimizer.norms();
        if !report.norms.is_finite() {
            return Err(not_finite(step, "the gradient norm"));
        }
        let one = self.seats.first().filter(|_| self.seats.len() == 1);
        report.memory = held_bytes::<B>(one.map(|seat| &seat.device));
        state.learnt += report.sums.tokens();
        let progress = &mut state.progress;
        progress.step = step + 1;
        progress.complete = progress.step == self.plan.steps();
        progress.samples += report.samples;
        progress.tokens += report.tokens;
        progress.truncated += report.truncated;
        progress.skipped += report.skipped;
        progress.loss = Some(report.loss);
        if let Some(adaptive) = &self.adaptive {
            adaptive.after_step(progress, report);
        }
        Ok(())
    }

    fn log_step(&self, epoch: usize, step: usize, report: &StepReport) -> Result<(), TrainError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.write(self.stage, step, epoch + 1, report)
    }

    /// Validates where it is due, keeps the best model and decides on an early end.
    fn validate(&self, state: &mut Loop<'_, B>, epoch: usize) -> Result<(), TrainError> {
        let Some((plan, log)) = &self.validation else {
            return Ok(());
        };
        let step = state.progress.step;
        if !(step.is_multiple_of(plan.every) || state.progress.complete) {
            return Ok(());
        }
        let report = self.evaluate(state)?;
        {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.write(self.stage, step, epoch + 1, &report)?;
        }
        let loss = report.loss;
        self.show_validation(state, report, epoch);
        match &mut state.progress.best {
            Some(best) if loss >= best.loss => {
                best.since += 1;
                if plan.patience > 0 && best.since >= plan.patience && !state.progress.complete {
                    tracing::info!(
                        "stage {}: no better validation since step {}, so it ends at step {step}",
                        self.stage,
                        best.step
                    );
                    state.progress.complete = true;
                }
            }
            slot => {
                *slot = Some(BestValidation {
                    loss,
                    step,
                    since: 0,
                });
                (self.save)(Saved::Best, &state.progress, &state.learner.model())?;
            }
        }
        Ok(())
    }

    /// The loss over the validation split, without a graph.
    fn evaluate(&self, state: &Loop<'_, B>) -> Result<StepReport, TrainError> {
        let start = Instant::now();
        let model = state.learner.model().valid();
        let mut report = StepReport::default();
        for batch in state.valid.iter() {
            report.merge(&InferenceStep::step(&model, batch));
            self.check()?;
        }
        self.check()?;
        if report.sums.tokens() == 0 {
            return Err(TrainError::Internal(format!(
                "stage {}: the validation had no token to measure: all its samples were left out \
                 because of their pictures, and {BAD_IMAGES_FILE} names them; or words were to be learnt, \
                 and no batch had two samples with pictures",
                self.stage
            )));
        }
        report.loss = report.sums.mean(&self.loss);
        if let Some(nodes) = &self.nodes {
            let at = format!("at the validation after step {}", state.progress.step);
            report.loss = nodes.of_first(&at, report.loss)?;
        }
        report.seconds = start.elapsed().as_secs_f64();
        if !report.loss.is_finite() {
            return Err(not_finite(state.progress.step - 1, "the validation loss"));
        }
        Ok(report)
    }

    /// Saves a checkpoint whose steps are all in the logs.
    fn checkpoint(&self, state: &Loop<'_, B>) -> Result<PathBuf, TrainError> {
        let logs = std::iter::once(&self.log).chain(self.validation.iter().map(|(_, log)| log));
        for log in logs {
            log.lock().unwrap_or_else(PoisonError::into_inner).sync()?;
        }
        (self.save)(Saved::Checkpoint, &state.progress, &state.learner.model())
    }

    fn check(&self) -> Result<(), TrainError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Tells dashboard and metrics about a step.
    fn show(&self, state: &mut Loop<'_, B>, report: &StepReport, epoch: usize) {
        let step = state.progress.step;
        let within = step - epoch * self.plan.steps_per_epoch();
        let items = (within * self.plan.samples_per_step).min(self.plan.samples);
        let item = TrainingItem::new(
            report.clone(),
            Progress::new(items, self.plan.samples),
            Progress::new(epoch + 1, self.plan.passes()),
            Some(step),
            Some(self.schedule.factor(step - 1)),
        );
        let processor = &mut state.components.event_processor;
        processor.process_train(LearnerEvent::ProcessedItem(item));
        if step.is_multiple_of(self.plan.steps_per_epoch().max(1)) {
            processor.process_train(LearnerEvent::EndEpoch(epoch + 1));
        }
    }

    /// Tells them about a validation.
    fn show_validation(&self, state: &mut Loop<'_, B>, report: StepReport, epoch: usize) {
        let samples = report.samples;
        let item = TrainingItem::new(
            report,
            Progress::new(samples, samples),
            Progress::new(epoch + 1, self.plan.passes()),
            Some(state.progress.step),
            None,
        );
        let processor = &mut state.components.event_processor;
        processor.process_valid(LearnerEvent::ProcessedItem(item));
        processor.process_valid(LearnerEvent::EndEpoch(epoch + 1));
    }
}

/// The time of this process's part of a stage; saving and validating do not count as steps.
struct Sitting {
    before: f64,
    start: Instant,
    step: Instant,
}

impl Sitting {
    fn new(before: f64) -> Self {
        let now = Instant::now();
        Self {
            before,
            start: now,
            step: now,
        }
    }

    /// Seconds of the step that ends now.
    fn step(&self) -> f64 {
        self.step.elapsed().as_secs_f64()
    }

    /// Seconds of the stage.
    fn total(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    /// The next step begins now.
    fn pause_ends(&mut self) {
        self.step = Instant::now();
    }
}

impl<B: AutodiffBackend> SupervisedLearningStrategy<Components<B>> for StepStrategy<B> {
    fn fit(
        &self,
        mut components: TrainingComponents<Components<B>>,
        mut learner: Learner<Components<B>>,
        train: TrainLoader<Components<B>>,
        valid: ValidLoader<Components<B>>,
        _starting_epoch: usize,
    ) -> (
        TrainModel<B>,
        SupervisedTrainingEventProcessor<Components<B>>,
    ) {
        match self.run(&mut learner, &train, &valid, &mut components) {
            Ok(finished) => {
                let mut slot = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
                *slot = Some(finished);
            }
            Err(error) => self.failure.set(error),
        }
        (learner.model(), components.event_processor)
    }
}

fn not_finite(step: usize, what: &'static str) -> TrainError {
    TrainError::NotFinite {
        step: step + 1,
        what,
    }
}
