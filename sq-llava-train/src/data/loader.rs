//! Batches in order from worker threads.
//!
//! Worker `w` of `n` prepares the optimizer steps `w`, `w + n`, `w + 2n` … and hands their batches
//! over a channel of its own that holds two; the training thread takes from the channels in turn.
//! So the order never depends on how fast a thread is, and memory is bounded.

mod worker;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::backend::Backend;

use self::worker::Worker;
use crate::data::bad_images::{BadImageLog, BadImagePolicy};
use crate::data::bad_share::BadShare;
use crate::data::batch::MicroBatch;
use crate::data::dataset::StageData;
use crate::data::packs::packed;
use crate::data::stall::{Activity, wait};
use crate::error::TrainError;
use crate::failure::Failure;
use crate::recipe::StageRecipe;

/// Batches that a worker may be ahead.
const AHEAD: usize = 2;
/// How long a batch may take before it is said what holds it up, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// The optimizer steps of a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Samples that go through the model at once.
    pub batch_size: usize,
    /// Batches that are computed side by side.
    pub beside: usize,
    /// Samples of one optimizer step.
    pub samples_per_step: usize,
    /// Passes over the data; a fraction is rounded up to whole steps.
    pub epochs: f64,
    /// Samples of one pass.
    pub samples: usize,
    /// Tokens of a row that samples share, where they are packed.
    pub row_tokens: Option<usize>,
}

impl Plan {
    /// The steps of a stage over `samples` samples, each batch cut into `parts` that are computed side
    /// by side.
    pub fn new(stage: &StageRecipe, parts: usize, samples: usize) -> Self {
        Self {
            batch_size: stage.batch_size / parts.max(1),
            beside: parts,
            samples_per_step: stage.samples_per_step(),
            epochs: stage.epochs,
            samples,
            row_tokens: stage.packing.then_some(stage.max_length),
        }
    }

    /// Optimizer steps of one epoch; the last one may be smaller.
    pub fn steps_per_epoch(&self) -> usize {
        self.samples.div_ceil(self.samples_per_step)
    }

    /// Optimizer steps in all.
    pub fn steps(&self) -> usize {
        let steps = self.steps_per_epoch() as f64 * self.epochs;
        // 1.1 · 10 is a little more than 11 in binary.
        (steps * (1.0 - 1e-12)).ceil() as usize
    }

    /// Passes that are begun.
    pub fn passes(&self) -> usize {
        self.steps().div_ceil(self.steps_per_epoch().max(1))
    }

    /// Samples in all steps.
    pub fn all_samples(&self) -> usize {
        let (steps, each) = (self.steps(), self.steps_per_epoch().max(1));
        let begun = (steps % each * self.samples_per_step).min(self.samples);
        steps / each * self.samples + begun
    }

    /// Epoch of a step, from 0.
    pub fn epoch(&self, step: usize) -> usize {
        step / self.steps_per_epoch().max(1)
    }

    /// The batches of a step whose samples have these lengths: in each its rows, in each row the
    /// places of its samples. Packed, a step has no more batches than without, and a batch no more
    /// rows.
    pub(crate) fn batches(&self, lengths: &[usize]) -> Vec<Vec<Vec<usize>>> {
        let Some(most) = self.row_tokens else {
            let rows: Vec<_> = (0..lengths.len()).map(|place| vec![place]).collect();
            return rows.chunks(self.batch_size).map(<[_]>::to_vec).collect();
        };
        let batches = self.samples_per_step.div_ceil(self.batch_size);
        packed(lengths, most, batches, self.beside)
    }

    /// Positions of a step's samples in the order of its epoch.
    pub(crate) fn positions(&self, step: usize) -> Range<usize> {
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
    positions: Range<usize>,
    shard: Shard,
    workers: usize,
    bad_images: BadImageLog,
    share: BadShare,
    patience: Duration,
    failure: Failure,
}

/// The batches of a step that one of several devices takes: `index`, `index + count`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shard {
    index: usize,
    count: usize,
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
            positions: 0..data.len(),
            share: BadShare::new(data.bad_images),
            data: Some(data),
            plan,
            first_step,
            shard: Shard { index: 0, count: 1 },
            workers: workers.max(1),
            bad_images: BadImageLog::default(),
            patience: PATIENCE,
            failure,
        }
    }

    /// No batches at all: for training without a validation split.
    pub fn empty() -> Self {
        Self {
            data: None,
            plan: Plan {
                batch_size: 1,
                beside: 1,
                samples_per_step: 1,
                epochs: 0.0,
                samples: 0,
                row_tokens: None,
            },
            first_step: 0,
            positions: 0..0,
            shard: Shard { index: 0, count: 1 },
            workers: 1,
            bad_images: BadImageLog::default(),
            share: BadShare::new(BadImagePolicy::Error),
            patience: PATIENCE,
            failure: Failure::default(),
        }
    }

    /// Ends with an error as soon as more than this part of the samples is lost to bad pictures, at
    /// a step that has nothing else. `what` names the steps.
    #[must_use]
    pub fn with_most_bad(mut self, most: f64, what: &'static str) -> Self {
        self.share = self.share.with_most(most, what);
        self
    }

    /// Says what holds a batch up that takes longer.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Lists pictures that cannot be used there, as the batches that met them are taken.
    #[must_use]
    pub fn with_bad_images(mut self, log: BadImageLog) -> Self {
        self.bad_images = log;
        self
    }

    /// The part of each step that device `index` of `count` takes: every `count`-th batch, so that
    /// devices have batches of similar length at a time. Each step has a batch for every device,
    /// one of nothing to learn where there are too few; all know the learnable tokens of the whole
    /// step. An index that is too large is taken modulo `count`.
    #[must_use]
    pub fn shard(mut self, index: usize, count: usize) -> Self {
        let count = count.max(1);
        self.shard = Shard {
            index: index % count,
            count,
        };
        self
    }

    fn start(&self) -> Batches {
        let steps = self.plan.steps();
        let listener = Arc::new(());
        let channels = match &self.data {
            None => VecDeque::new(),
            Some(data) => (0..self.workers)
                .map(|number| {
                    let (sender, receiver) = sync_channel(AHEAD);
                    let activity = Activity::default();
                    let worker = Worker {
                        data: data.clone(),
                        plan: self.plan,
                        positions: self.positions.clone(),
                        shard: self.shard,
                        sender,
                        activity: activity.clone(),
                        listener: Arc::downgrade(&listener),
                    };
                    let own = (self.first_step + number..steps).step_by(self.workers);
                    // Ends when its steps are done or the receiver is gone.
                    let started = std::thread::Builder::new()
                        .name(format!("loader {number}"))
                        .spawn(move || worker.run_guarded(own));
                    if let Err(error) = started {
                        self.failure.set(TrainError::Internal(format!(
                            "no thread for worker {number} of {}: {error}; lower workers",
                            self.workers
                        )));
                    }
                    Lane {
                        number,
                        receiver,
                        activity,
                    }
                })
                .collect(),
        };
        Batches {
            channels,
            bad_images: self.bad_images.clone(),
            share: self.share.clone(),
            patience: self.patience,
            failure: self.failure.clone(),
            done: self.first_step * self.plan.samples_per_step,
            total: self.plan.all_samples(),
            _listener: listener,
        }
    }
}

/// What a thread sends.
struct Lane {
    /// Of the thread.
    number: usize,
    receiver: Receiver<Result<MicroBatch, TrainError>>,
    activity: Activity,
}

struct Batches {
    /// The channel whose turn it is stands in front.
    channels: VecDeque<Lane>,
    bad_images: BadImageLog,
    share: BadShare,
    patience: Duration,
    failure: Failure,
    done: usize,
    total: usize,
    /// Threads that wait end when it is gone.
    _listener: Arc<()>,
}

impl Iterator for Batches {
    type Item = MicroBatch;

    fn next(&mut self) -> Option<MicroBatch> {
        let lane = self.channels.front()?;
        match wait(&lane.receiver, lane.number, &lane.activity, self.patience) {
            Ok(Ok(batch)) => {
                self.done += batch.samples.len() + batch.skipped;
                if batch.is_last() {
                    self.channels.rotate_left(1);
                }
                let listed = self
                    .bad_images
                    .add(batch.epoch, batch.step, &batch.bad_images);
                if let Err(error) = listed.and_then(|()| self.share.add(&batch)) {
                    self.failure.set(error);
                    self.channels.clear();
                    return None;
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
        self.positions.len()
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, MicroBatch>> {
        Arc::new(self.clone())
    }

    /// The samples at these positions of each epoch's order.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, MicroBatch>> {
        let mut part = self.clone();
        part.positions = self.positions.start + start..self.positions.start + end;
        part.plan.samples = part.positions.len();
        Arc::new(part)
    }
}

#[cfg(test)]
mod tests;
