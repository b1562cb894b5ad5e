//! When pictures that cannot be used are too many: a training on nothing must not look like one.

use crate::data::bad_images::{BAD_IMAGES_FILE, BadImagePolicy};
use crate::data::batch::MicroBatch;
use crate::data::dataset::is_blank;
use crate::error::TrainError;

/// Fewer lost samples are accepted, whatever part they are.
const FEW: usize = 10;

/// Counts the samples that are lost to bad pictures as the batches of a device are taken.
#[derive(Debug, Clone)]
pub(crate) struct BadShare {
    policy: BadImagePolicy,
    /// The part that may be lost.
    most: f64,
    /// What is counted, for messages.
    what: &'static str,
    seen: usize,
    lost: usize,
    /// The step at hand.
    step: Step,
    /// A sample that was lost.
    last: String,
    warned: bool,
}

/// Samples of a step on this device.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    samples: usize,
    /// Those that show a picture.
    shown: usize,
    /// Those that show a blank one.
    blank: usize,
}

impl BadShare {
    /// Nothing yet, and no limit.
    pub fn new(policy: BadImagePolicy) -> Self {
        Self {
            policy,
            most: 1.0,
            what: "step",
            seen: 0,
            lost: 0,
            step: Step::default(),
            last: format!("in {BAD_IMAGES_FILE}"),
            warned: false,
        }
    }

    /// With a limit, and the name of what is counted.
    pub(crate) fn with_most(mut self, most: f64, what: &'static str) -> Self {
        (self.most, self.what) = (most, what);
        self
    }

    /// Counts a batch.
    ///
    /// # Errors
    /// If a step ends with it that has nothing to learn (`skip`) or only blank pictures (`blank`),
    /// and too many samples were lost so far.
    pub fn add(&mut self, batch: &MicroBatch) -> Result<(), TrainError> {
        if let Some(bad) = batch.bad_images.last() {
            self.last = format!("{} with {}: {}", bad.sample, bad.image, bad.reason);
        }
        for sample in &batch.samples {
            let blank = sample.pictures.iter().any(|p| is_blank(&p.key));
            self.step.samples += 1;
            self.step.shown += usize::from(!sample.pictures.is_empty());
            self.step.blank += usize::from(blank);
        }
        if !batch.is_last() {
            return Ok(());
        }
        let step = std::mem::take(&mut self.step);
        let (seen, lost, nothing) = match self.policy {
            BadImagePolicy::Error => return Ok(()),
            // Known of the whole step, on every device.
            BadImagePolicy::Skip => {
                let lost = batch.step_skipped;
                let nothing = lost > 0 && batch.step_tokens == 0;
                (batch.step_samples, lost, nothing)
            }
            BadImagePolicy::Blank => {
                // Those whose text is damaged are left out here too.
                let lost = step.blank + batch.step_skipped;
                let nothing = lost > 0 && step.blank == step.shown;
                (step.samples + batch.step_skipped, lost, nothing)
            }
        };
        self.seen += seen;
        self.lost += lost;
        if self.lost < FEW || self.lost as f64 <= self.most * self.seen as f64 {
            return Ok(());
        }
        if nothing {
            return Err(TrainError::BadImages {
                what: self.what,
                step: batch.step + 1,
                lost: self.lost,
                seen: self.seen,
                last: self.last.clone(),
                most: self.most,
            });
        }
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                "{} {}: bad pictures cost {} of the {} samples so far, the last one {}",
                self.what,
                batch.step + 1,
                self.lost,
                self.seen,
                self.last
            );
        }
        Ok(())
    }
}
