//! A thread that prepares optimizer steps: reads and encodes their samples, decodes the pictures
//! and lays the batches out.

use std::ops::{ControlFlow, Range};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};

use sq_llava_data::Draw;
use sq_llava_data::foreign::guarded;
use sq_llava_data::image::ImageTiles;

use super::{Plan, Shard};
use crate::data::bad_images::{BadImage, BadImagePolicy};
use crate::data::batch::{MicroBatch, TrainSample};
use crate::data::dataset::{Moment, StageData};
use crate::data::deltas::Followed;
use crate::data::stall::Activity;
use crate::error::TrainError;

/// What a thread prepares.
pub(super) struct Worker {
    pub data: Arc<StageData>,
    pub plan: Plan,
    pub positions: Range<usize>,
    pub shard: Shard,
    pub sender: SyncSender<Result<MicroBatch, TrainError>>,
    pub activity: Activity,
    /// Whoever takes the batches.
    pub listener: Weak<()>,
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
    pub fn run_guarded(&self, steps: impl Iterator<Item = usize>) {
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
            match self.send_step(step, chosen) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(error) => {
                    // Without a receiver nobody needs the error.
                    let _ = self.sender.send(Err(error));
                    return;
                }
            }
        }
    }

    /// Prepares the batches of one step. All its samples are encoded before the first is handed
    /// over: each batch carries the number of learnable tokens of the whole step. Breaks where nobody
    /// takes them.
    fn send_step(&self, step: usize, chosen: &[Draw]) -> Result<ControlFlow<()>, TrainError> {
        let deltas = match &self.data.followed {
            None => None,
            Some(Followed { every, deltas, .. }) => {
                match deltas.wait(step / every, &self.listener)? {
                    None => return Ok(ControlFlow::Break(())),
                    known => known,
                }
            }
        };
        let at = Moment {
            epoch: self.plan.epoch(step),
            progress: step as f64 / self.plan.steps().max(1) as f64,
            deltas: deltas.as_deref(),
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
        let mut step_masked = 0;
        for prepared in &samples {
            step_masked += self.data.masked_pictures(&prepared.sample)?;
        }
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
                step_masked,
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
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
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
        at: Moment<'_>,
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
    fn encode(&self, at: Moment<'_>, draw: Draw) -> Result<Prepared, TrainError> {
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
        let labelled = self.data.label_pictures(index, &mut sample, &pictures);
        labelled.map_err(|error| TrainError::Sample {
            sample: sample.id.to_string(),
            reason: error.to_string(),
        })?;
        self.data.fill_pictures(&mut sample, &pictures);
        Ok(sample)
    }
}
