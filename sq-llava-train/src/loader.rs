//! Batches in order from worker threads.
//!
//! Worker `w` of `n` prepares the optimizer steps `w`, `w + n`, `w + 2n` … and hands their batches
//! over a channel of its own that holds two; the training thread takes from the channels in turn.
//! So the order never depends on how fast a thread is, and memory is bounded.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::backend::Backend;

use crate::batch::{MicroBatch, TrainSample};
use crate::dataset::StageData;
use crate::error::TrainError;
use crate::failure::Failure;
use crate::recipe::StageRecipe;

/// Batches that a worker may be ahead.
const AHEAD: usize = 2;

/// The optimizer steps of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Samples that go through the model at once.
    pub batch_size: usize,
    /// Samples of one optimizer step.
    pub samples_per_step: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Samples of one pass.
    pub samples: usize,
}

impl Plan {
    /// The steps of a stage over `samples` samples.
    pub fn new(stage: &StageRecipe, samples: usize) -> Self {
        Self {
            batch_size: stage.batch_size,
            samples_per_step: stage.samples_per_step(),
            epochs: stage.epochs,
            samples,
        }
    }

    /// Optimizer steps of one epoch; the last one may be smaller.
    pub fn steps_per_epoch(&self) -> usize {
        self.samples.div_ceil(self.samples_per_step)
    }

    /// Optimizer steps in all.
    pub fn steps(&self) -> usize {
        self.steps_per_epoch() * self.epochs
    }

    /// Epoch of a step, from 0.
    pub fn epoch(&self, step: usize) -> usize {
        step / self.steps_per_epoch().max(1)
    }

    /// Places of a step's samples in the order of its epoch.
    fn places(&self, step: usize) -> Range<usize> {
        let start = step % self.steps_per_epoch().max(1) * self.samples_per_step;
        start..(start + self.samples_per_step).min(self.samples)
    }
}

/// The batches of a stage, all epochs one after the other.
#[derive(Debug, Clone)]
pub struct BatchLoader {
    data: Option<Arc<StageData>>,
    plan: Plan,
    /// The step to start with.
    first_step: usize,
    /// The part of each epoch's order that this loader covers.
    shard: Range<usize>,
    workers: usize,
    failure: Failure,
}

impl BatchLoader {
    /// Batches from step `first_step` on. An error ends the iteration and is left in `failure`.
    pub fn new(
        data: Arc<StageData>,
        plan: Plan,
        first_step: usize,
        workers: usize,
        failure: Failure,
    ) -> Self {
        Self {
            shard: 0..data.len(),
            data: Some(data),
            plan,
            first_step,
            workers: workers.max(1),
            failure,
        }
    }

    /// No batches at all: for training without a validation split.
    pub fn empty() -> Self {
        Self {
            data: None,
            plan: Plan {
                batch_size: 1,
                samples_per_step: 1,
                epochs: 0,
                samples: 0,
            },
            first_step: 0,
            shard: 0..0,
            workers: 1,
            failure: Failure::default(),
        }
    }

    fn start(&self) -> Batches {
        let steps = self.plan.steps();
        let channels = match &self.data {
            None => VecDeque::new(),
            Some(data) => (0..self.workers)
                .map(|worker| {
                    let (sender, receiver) = sync_channel(AHEAD);
                    let (data, plan, shard) = (data.clone(), self.plan, self.shard.clone());
                    let own = (self.first_step + worker..steps).step_by(self.workers);
                    // Ends when its steps are done or nobody listens any more.
                    std::thread::spawn(move || work(&data, &plan, &shard, own, &sender));
                    receiver
                })
                .collect(),
        };
        Batches {
            channels,
            failure: self.failure.clone(),
            done: self.first_step * self.plan.samples_per_step,
            total: self.plan.samples * self.plan.epochs,
        }
    }
}

fn work(
    data: &StageData,
    plan: &Plan,
    shard: &Range<usize>,
    steps: impl Iterator<Item = usize>,
    sender: &SyncSender<Result<MicroBatch, TrainError>>,
) {
    // The order of the epoch at hand.
    let mut order: (Option<usize>, Vec<usize>) = (None, Vec::new());
    for step in steps {
        let epoch = plan.epoch(step);
        if order.0 != Some(epoch) {
            order = (Some(epoch), data.order(epoch)[shard.clone()].to_vec());
        }
        let chosen = &order.1[plan.places(step)];
        if let Err(error) = send_step(data, plan, step, chosen, sender) {
            // If nobody listens, nobody needs the error.
            let _ = sender.send(Err(error));
            return;
        }
    }
}

/// Prepares the batches of one step. All its samples are encoded before the first is handed over:
/// each batch carries the number of learnable tokens of the whole step.
fn send_step(
    data: &StageData,
    plan: &Plan,
    step: usize,
    chosen: &[usize],
    sender: &SyncSender<Result<MicroBatch, TrainError>>,
) -> Result<(), TrainError> {
    let epoch = plan.epoch(step);
    let encoded = chosen.iter().map(|&index| data.encode(epoch, index));
    let encoded: Vec<(TrainSample, bool)> = encoded.collect::<Result<_, _>>()?;
    let step_tokens = encoded.iter().map(|(sample, _)| sample.learnable()).sum();
    let micros = encoded.len().div_ceil(plan.batch_size);
    let mut encoded = encoded.into_iter();
    for micro in 0..micros {
        let part: Vec<_> = encoded.by_ref().take(plan.batch_size).collect();
        let truncated = part.iter().filter(|(_, cut)| *cut).count();
        let mut samples: Vec<TrainSample> = part.into_iter().map(|(sample, _)| sample).collect();
        for sample in &mut samples {
            data.read_pictures(sample)?;
        }
        let batch = MicroBatch {
            samples,
            step,
            epoch,
            micro,
            micros,
            step_tokens,
            truncated,
        };
        if sender.send(Ok(batch)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

struct Batches {
    /// The channel whose turn it is stands in front.
    channels: VecDeque<Receiver<Result<MicroBatch, TrainError>>>,
    failure: Failure,
    done: usize,
    total: usize,
}

impl Iterator for Batches {
    type Item = MicroBatch;

    fn next(&mut self) -> Option<MicroBatch> {
        match self.channels.front()?.recv() {
            Ok(Ok(batch)) => {
                self.done += batch.samples.len();
                if batch.is_last() {
                    self.channels.rotate_left(1);
                }
                Some(batch)
            }
            Ok(Err(error)) => {
                self.failure.set(error);
                self.channels.clear();
                None
            }
            // The worker whose turn it is has no step left, so no worker has; or it panicked.
            Err(_) => {
                self.channels.clear();
                None
            }
        }
    }
}

impl DataLoaderIterator<MicroBatch> for Batches {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.total)
    }
}

/// Batches are on the host, so the loader is the same on every device.
impl<B: Backend> DataLoader<B, MicroBatch> for BatchLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<MicroBatch> + 'a> {
        Box::new(self.start())
    }

    /// Samples of one epoch.
    fn num_items(&self) -> usize {
        self.shard.len()
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, MicroBatch>> {
        Arc::new(self.clone())
    }

    /// The samples at these places of each epoch's order.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, MicroBatch>> {
        let mut part = self.clone();
        part.shard = self.shard.start + start..self.shard.start + end;
        part.plan.samples = part.shard.len();
        Arc::new(part)
    }
}
