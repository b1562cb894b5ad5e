//! The training loop inside Burn's Learner.
//!
//! Burn's own strategies step the scheduler for each batch, drop an accumulation that an epoch's
//! end leaves open and keep whole models as checkpoints. This one counts optimizer steps,
//! accumulates whole ones, stops at what is not a number, and saves between two steps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::data::dataloader::Progress;
use burn::optim::GradientsAccumulator;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{
    EventProcessorTraining, Learner, LearnerEvent, LearningComponentsMarker,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents,
    TrainingItem, ValidLoader,
};

use crate::error::TrainError;
use crate::failure::Failure;
use crate::loader::Plan;
use crate::loss::LossSettings;
use crate::loss_log::LossLog;
use crate::metrics::StepReport;
use crate::optimizer::GroupedAdamW;
use crate::schedule::CosineWarmup;
use crate::step::TrainModel;

/// The types of our Learner.
pub type Components<B> = LearningComponentsMarker<B, CosineWarmup, TrainModel<B>, GroupedAdamW<B>>;

/// Called after an optimizer step that is to be saved, with its number from 1.
pub type SaveStep<'a, B> = dyn Fn(usize, &TrainModel<B>) -> Result<(), TrainError> + 'a;

/// What came out of a stage.
#[derive(Debug)]
pub struct Finished<B: AutodiffBackend> {
    /// The trained model.
    pub model: TrainModel<B>,
    /// The last step's report; `None` if there was no step.
    pub last: Option<StepReport>,
    /// Optimizer steps taken.
    pub steps: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Samples cut to the longest length allowed.
    pub truncated: usize,
    /// Whether it was stopped from the dashboard.
    pub interrupted: bool,
    /// Seconds.
    pub seconds: f64,
}

/// One stage.
pub struct StepStrategy<B: AutodiffBackend> {
    /// Number of the stage.
    pub stage: u8,
    /// Its steps.
    pub plan: Plan,
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
    /// The loss log.
    pub log: Mutex<LossLog>,
    /// Save every so many steps; 0 for never.
    pub save_every: usize,
    /// How.
    pub save: Box<SaveStep<'static, B>>,
    /// Where the result is left.
    pub finished: Arc<Mutex<Option<Finished<B>>>>,
}

impl<B: AutodiffBackend> StepStrategy<B> {
    fn run(
        &self,
        learner: &mut Learner<Components<B>>,
        loader: &TrainLoader<Components<B>>,
        components: &mut TrainingComponents<Components<B>>,
    ) -> Result<Finished<B>, TrainError> {
        let start = Instant::now();
        let mut step_start = start;
        let (mut tokens, mut truncated, mut interrupted, mut steps) = (0, 0, false, 0);
        let mut accumulated = GradientsAccumulator::new();
        let mut report = StepReport::default();
        let mut last = None;
        let mut batches = loader.iter();
        while let Some(batch) = batches.next() {
            let (is_last, step, epoch) = (batch.is_last(), batch.step, batch.epoch);
            let output = learner.train_step(batch);
            self.check()?;
            accumulated.accumulate::<B>(&learner.model(), output.grads);
            report.merge(&output.item);
            if !is_last {
                continue;
            }
            report.loss = report.sums.mean(&self.loss);
            if !report.loss.is_finite() {
                return Err(not_finite(step, "the loss"));
            }
            learner.lr_step();
            report.rates = self.rates.map(|rate| rate * self.schedule.factor(step));
            learner.optimizer_step(accumulated.grads());
            let norms = self.optimizer.norms();
            if !norms.is_finite() {
                return Err(not_finite(step, "the gradient norm"));
            }
            report.grad_norm = norms.total;
            let seconds = step_start.elapsed().as_secs_f64();
            report.tokens_per_second = report.tokens as f64 / seconds.max(1e-9);
            step_start = Instant::now();
            tokens += report.tokens;
            truncated += report.truncated;
            steps = step + 1;
            {
                let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                log.write(self.stage, steps, epoch + 1, &report)?;
            }
            self.show(components, &report, steps, epoch, batches.progress());
            last = Some(std::mem::take(&mut report));
            if self.save_every > 0 && steps.is_multiple_of(self.save_every) {
                (self.save)(steps, &learner.model())?;
                step_start = Instant::now();
            }
            if components.interrupter.should_stop() {
                interrupted = true;
                break;
            }
        }
        self.check()?;
        if steps < self.plan.steps() && !interrupted {
            return Err(TrainError::Internal(format!(
                "the data ended at step {steps} of {}",
                self.plan.steps()
            )));
        }
        Ok(Finished {
            model: learner.model(),
            last,
            steps,
            tokens,
            truncated,
            interrupted,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn check(&self) -> Result<(), TrainError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Tells dashboard and metrics about a step.
    fn show(
        &self,
        components: &mut TrainingComponents<Components<B>>,
        report: &StepReport,
        step: usize,
        epoch: usize,
        progress: Progress,
    ) {
        let within = step - epoch * self.plan.steps_per_epoch();
        let items = (within * self.plan.samples_per_step).min(self.plan.samples);
        let item = TrainingItem::new(
            report.clone(),
            Progress::new(items, progress.items_total / self.plan.epochs.max(1)),
            Progress::new(epoch + 1, self.plan.epochs),
            Some(step),
            Some(self.schedule.factor(step - 1)),
        );
        let processor = &mut components.event_processor;
        processor.process_train(LearnerEvent::ProcessedItem(item));
        if step.is_multiple_of(self.plan.steps_per_epoch().max(1)) {
            processor.process_train(LearnerEvent::EndEpoch(epoch + 1));
        }
    }
}

impl<B: AutodiffBackend> SupervisedLearningStrategy<Components<B>> for StepStrategy<B> {
    fn fit(
        &self,
        mut components: TrainingComponents<Components<B>>,
        mut learner: Learner<Components<B>>,
        train: TrainLoader<Components<B>>,
        _valid: ValidLoader<Components<B>>,
        _starting_epoch: usize,
    ) -> (
        TrainModel<B>,
        SupervisedTrainingEventProcessor<Components<B>>,
    ) {
        match self.run(&mut learner, &train, &mut components) {
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
