//! Batches in order from worker threads.
//!
//! Worker `w` of `n` prepares the optimizer steps `w`, `w + n`, `w + 2n` … and hands their batches
//! over a channel of its own that holds two; the training thread takes from the channels in turn.
//! So the order never depends on how fast a thread is, and memory is bounded.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::backend::Backend;
use sq_llava_data::Draw;
use sq_llava_data::foreign::guarded;
use sq_llava_data::image::ImageTiles;

use crate::data::bad_images::{BadImage, BadImageLog, BadImagePolicy};
use crate::data::bad_share::BadShare;
use crate::data::batch::{MicroBatch, TrainSample};
use crate::data::dataset::{Moment, StageData};
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
    /// The steps of a stage over `samples` samples.
    pub fn new(stage: &StageRecipe, samples: usize) -> Self {
        Self {
            batch_size: stage.batch_size,
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
        packed(lengths, most, batches)
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
        }
    }
}

/// What a thread prepares.
struct Worker {
    data: Arc<StageData>,
    plan: Plan,
    positions: Range<usize>,
    shard: Shard,
    sender: SyncSender<Result<MicroBatch, TrainError>>,
    activity: Activity,
}

/// What a thread sends.
struct Lane {
    /// Of the thread.
    number: usize,
    receiver: Receiver<Result<MicroBatch, TrainError>>,
    activity: Activity,
}

/// A sample of a step, with its pictures where they are opened already.
struct Prepared {
    index: usize,
    sample: TrainSample,
    cut_tokens: usize,
    pictures: Option<Vec<Option<ImageTiles>>>,
}

impl Worker {
    /// Prepares its steps; a panic becomes an error for the receiver of the batches.
    fn run_guarded(&self, steps: impl Iterator<Item = usize>) {
        if let Err(panic) = guarded(|| self.run(steps)) {
            let error = TrainError::Internal(format!("a thread that loads the data: {panic}"));
            let _ = self.sender.send(Err(error));
        }
    }

    fn run(&self, steps: impl Iterator<Item = usize>) {
        // The order of the epoch at hand.
        let mut order: (Option<usize>, Vec<Draw>) = (None, Vec::new());
        for step in steps {
            let epoch = self.plan.epoch(step);
            if order.0 != Some(epoch) {
                let whole = self.data.sampler.order(epoch);
                order = (Some(epoch), whole[self.positions.clone()].to_vec());
            }
            let chosen = &order.1[self.plan.positions(step)];
            if let Err(error) = self.send_step(step, chosen) {
                // Without a receiver nobody needs the error.
                let _ = self.sender.send(Err(error));
                return;
            }
        }
    }

    /// Prepares the batches of one step. All its samples are encoded before the first is handed
    /// over: each batch carries the number of learnable tokens of the whole step.
    fn send_step(&self, step: usize, chosen: &[Draw]) -> Result<(), TrainError> {
        let at = Moment {
            epoch: self.plan.epoch(step),
            progress: step as f64 / self.plan.steps().max(1) as f64,
        };
        let (mut samples, mut bad) = self.encode_all(at, chosen)?;
        let placeholder = samples.first().map(|first| first.sample.placeholder());
        let placeholder = placeholder.unwrap_or_else(TrainSample::none);
        if self.data.bad_images == BadImagePolicy::Skip {
            samples.retain_mut(|prepared| {
                let found = bad.len();
                let pictures = self.open_pictures(prepared.index, &mut prepared.sample, &mut bad);
                prepared.pictures = Some(pictures);
                bad.len() == found
            });
        }
        let skipped = chosen.len() - samples.len();
        let lengths: Vec<usize> = samples.iter().map(|p| p.sample.len()).collect();
        let batches = self.plan.batches(&lengths);
        let (micros, packed) = (batches.len(), self.plan.row_tokens.is_some());
        let step_tokens = samples.iter().map(|p| p.sample.learnable()).sum();
        let mut samples: Vec<Option<Prepared>> = samples.into_iter().map(Some).collect();
        let Shard { index, count } = self.shard;
        // A device without a batch of its own still takes part in the step.
        for micro in 0..micros.max(index + 1) {
            if micro % count != index {
                continue;
            }
            let rows = batches.get(micro).map_or(&[][..], Vec::as_slice);
            let places = rows.iter().flatten();
            let part: Vec<Prepared> = places.filter_map(|&place| samples[place].take()).collect();
            let mut batch = MicroBatch {
                samples: Vec::with_capacity(part.len()),
                rows: packed.then(|| rows.iter().map(Vec::len).collect()),
                step,
                epoch: at.epoch,
                micro,
                micros,
                stride: count,
                step_tokens,
                step_samples: chosen.len(),
                step_skipped: skipped,
                truncated: part.iter().filter(|p| p.cut_tokens > 0).count(),
                cut_tokens: part.iter().map(|p| p.cut_tokens).sum(),
                skipped: 0,
                bad_images: Vec::new(),
            };
            // What the whole step has lost is told once.
            if micro == 0 {
                batch.skipped = skipped;
                batch.bad_images = std::mem::take(&mut bad);
            }
            for prepared in part {
                batch
                    .samples
                    .push(self.show(prepared, &mut batch.bad_images)?);
            }
            if batch.samples.is_empty() {
                batch.samples.push(placeholder.clone());
                batch.rows = None;
            }
            if self.sender.send(Ok(batch)).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A sample's pictures, which may take long to come.
    fn open_pictures(
        &self,
        index: usize,
        sample: &mut TrainSample,
        bad: &mut Vec<BadImage>,
    ) -> Vec<Option<ImageTiles>> {
        if sample.pictures.is_empty() {
            return Vec::new();
        }
        let names: Vec<&str> = sample.pictures.iter().map(|p| &*p.name).collect();
        self.activity.begin(format!(
            "sample {}, with the pictures {} of {}",
            sample.id,
            names.join(", "),
            self.data.data.file_name(index)
        ));
        let opened = self.data.open_pictures(index, sample, bad);
        self.activity.end();
        opened
    }

    /// The samples of a step, and those whose text is damaged in its shard: unless that is an error,
    /// there is nothing to show in their place.
    fn encode_all(
        &self,
        at: Moment,
        chosen: &[Draw],
    ) -> Result<(Vec<Prepared>, Vec<BadImage>), TrainError> {
        let (mut samples, mut bad) = (Vec::with_capacity(chosen.len()), Vec::new());
        for &draw in chosen {
            match self.encode(at, draw) {
                Ok(prepared) => samples.push(prepared),
                Err(TrainError::Data(error))
                    if error.is_damage() && self.data.bad_images != BadImagePolicy::Error =>
                {
                    bad.push(BadImage {
                        sample: format!("#{}", draw.index).into(),
                        image: "".into(),
                        reason: error.to_string(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok((samples, bad))
    }

    /// A sample's ids. A panic of the tokenizer is an error that names the sample.
    fn encode(&self, at: Moment, draw: Draw) -> Result<Prepared, TrainError> {
        let index = draw.index;
        let file = self.data.data.file_name(index);
        self.activity.begin(format!("sample #{index} of {file}"));
        let encoded = guarded(|| self.data.encode(at, draw)).unwrap_or_else(|panic| {
            let id = self.data.data.get(index).map(|sample| sample.id);
            Err(TrainError::Sample {
                sample: id.unwrap_or_else(|_| format!("#{index}")),
                reason: panic,
            })
        });
        self.activity.end();
        let (sample, cut_tokens) = encoded?;
        Ok(Prepared {
            index,
            sample,
            cut_tokens,
            pictures: None,
        })
    }

    /// The sample with its pictures.
    fn show(&self, prepared: Prepared, bad: &mut Vec<BadImage>) -> Result<TrainSample, TrainError> {
        let Prepared {
            index,
            mut sample,
            pictures,
            ..
        } = prepared;
        let pictures = match pictures {
            Some(pictures) => pictures,
            None => {
                let found = bad.len();
                let pictures = self.open_pictures(index, &mut sample, bad);
                if let (BadImagePolicy::Error, Some(bad)) = (self.data.bad_images, bad.get(found)) {
                    return Err(TrainError::Sample {
                        sample: bad.sample.to_string(),
                        reason: format!(
                            "{}; bad_images = \"skip\" would leave the sample out",
                            bad.reason
                        ),
                    });
                }
                pictures
            }
        };
        self.data.fill_pictures(&mut sample, &pictures);
        Ok(sample)
    }
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
