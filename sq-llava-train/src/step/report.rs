//! What is measured at an optimizer step.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::step::loss::{AnswerCounts, LossSums};
use crate::step::masks::MaskSums;
use crate::step::optimizer::StepNorms;
use crate::step::source_sums::SourceSums;

/// A step of a stage, in the order in which they are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoggedStep {
    /// 1 or 2.
    pub stage: u8,
    /// From 1.
    pub step: usize,
}

/// One optimizer step, or a batch of it before the batches are added up.
#[derive(Debug, Clone, Default)]
pub struct StepReport {
    /// Sums of the loss.
    pub sums: LossSums,
    /// The same of each source that is followed.
    pub by_source: SourceSums,
    /// δ of each source that is followed, by its name.
    pub deltas: Arc<BTreeMap<String, f64>>,
    /// How answers were predicted; counted in validation only.
    pub answers: AnswerCounts,
    /// Sums of the loss of masks, which `loss` leaves out.
    pub masks: MaskSums,
    /// The weighted loss per token.
    pub loss: f64,
    /// Samples.
    pub samples: usize,
    /// Tokens, images in place, without padding.
    pub tokens: usize,
    /// Samples that were cut.
    pub truncated: usize,
    /// Samples that were left out.
    pub skipped: usize,
    /// Learning rate of each group.
    pub rates: [f64; 3],
    /// Norms of the gradients, before clipping.
    pub norms: StepNorms,
    /// Seconds of the step.
    pub seconds: f64,
    /// Memory of the one GPU that trains, else of the process, in bytes, where the system says.
    pub memory: Option<u64>,
}

impl StepReport {
    /// Adds another batch of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.sums.merge(&other.sums);
        self.by_source.merge(&other.by_source);
        self.answers.merge(&other.answers);
        self.masks.merge(&other.masks);
        self.samples += other.samples;
        self.tokens += other.tokens;
        self.truncated += other.truncated;
        self.skipped += other.skipped;
    }

    /// A count by the seconds of the step.
    pub(crate) fn per_second(&self, count: usize) -> f64 {
        count as f64 / self.seconds.max(1e-9)
    }
}
