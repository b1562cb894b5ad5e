//! Data-parallel training over several processes: each rank takes its share of the batches of an
//! optimizer step, and before the step the ranks add up their gradients.
//!
//! Ranks and addresses are MPI's (`nodes/mpi.rs`, feature `mpi`); `mpirun` or `srun` starts them.
//!
//! What is exchanged: the gradients of what trains, as sums (the loss's denominator is that of the
//! whole step already), and with them the sums and counts of the report, so that all nodes log the
//! same, stop at the same step and fail together.

mod exchange;
mod gradients;
mod launcher;
#[cfg(feature = "mpi")]
mod mpi;
mod start;
mod world;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use burn::optim::GradientsParams;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::world::World;
use crate::error::TrainError;
use crate::run::stop::StopSignal;
use crate::step::loss::LossSums;
use crate::step::masks::MaskSums;
use crate::step::report::StepReport;
use crate::step::source_sums::SourceSums;

pub(crate) use self::gradients::{Order, Trainable};
pub use self::launcher::Launcher;
pub(crate) use self::start::{StageStart, agree, agree_on_stage};

/// Values that are added up at a time: 32 MiB of f32.
#[cfg(feature = "mpi")]
const BUCKET_VALUES: usize = 8 << 20;

/// How often a rank that waits for the others looks whether it is asked to end.
const LOOK: Duration = Duration::from_millis(100);

/// When it first says that it waits; then after twice as long, and so on.
const LONG: Duration = Duration::from_secs(60);

/// The ranks of a run.
pub struct Nodes {
    world: Box<dyn World>,
    stop: StopSignal,
    bucket_values: usize,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes")
            .field("rank", &self.rank())
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// What a node says about a step beside the gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StepNews {
    step: usize,
    step_tokens: usize,
    step_masked: usize,
    /// Whether it was asked to stop.
    stop: bool,
    sums: LossSums,
    by_source: SourceSums,
    masks: MaskSums,
    /// Samples, tokens, samples cut, samples left out.
    counts: [usize; 4],
}

impl StepNews {
    fn new(id: StepId, stop: bool, report: &StepReport) -> Self {
        Self {
            step: id.step,
            step_tokens: id.step_tokens,
            step_masked: id.step_masked,
            stop,
            sums: report.sums,
            by_source: report.by_source.clone(),
            masks: report.masks,
            counts: [
                report.samples,
                report.tokens,
                report.truncated,
                report.skipped,
            ],
        }
    }

    fn report(&self) -> StepReport {
        let [samples, tokens, truncated, skipped] = self.counts;
        StepReport {
            sums: self.sums,
            by_source: self.by_source.clone(),
            masks: self.masks,
            samples,
            tokens,
            truncated,
            skipped,
            ..StepReport::default()
        }
    }
}

/// Which step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepId {
    /// From 0.
    pub step: usize,
    /// Learnable tokens of the whole step, over all nodes.
    pub step_tokens: usize,
    /// Pictures with masks of the whole step, over all nodes.
    pub step_masked: usize,
}

/// What a node has of a step, or all of them together.
pub(crate) struct NodeStep {
    /// Sums of the gradients.
    pub grads: GradientsParams,
    /// Sums and counts.
    pub report: StepReport,
    /// Whether the node, or any of them, was asked to stop.
    pub stop: bool,
}

impl Nodes {
    /// Meets the other processes that `mpirun` or `srun` has started; `None` if there are none.
    /// `stop` tells that this process is asked to end.
    ///
    /// A process that fails must call [`Self::abort`]: the others wait for it.
    ///
    /// # Errors
    /// If this was built without feature `mpi`, or MPI sees other ranks than were started.
    pub fn start(stop: StopSignal) -> Result<Option<Self>, TrainError> {
        let Some(launcher) = Launcher::from_env() else {
            return Ok(None);
        };
        Self::launched(&launcher, stop).map(Some)
    }

    #[cfg(not(feature = "mpi"))]
    fn launched(launcher: &Launcher, _stop: StopSignal) -> Result<Self, TrainError> {
        Err(launcher.refuse())
    }

    #[cfg(feature = "mpi")]
    fn launched(launcher: &Launcher, stop: StopSignal) -> Result<Self, TrainError> {
        let world = mpi::MpiWorld::start()?;
        launcher.compare(world.count())?;
        Ok(Self {
            world: Box::new(world),
            stop,
            bucket_values: BUCKET_VALUES,
        })
    }

    /// This node's number, from 0.
    pub fn rank(&self) -> usize {
        self.world.rank()
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.world.count()
    }

    /// The run directory of this node: `node-RANK` inside the one that all were given, so that no
    /// two nodes ever write into the same, shared storage or not.
    pub fn run_directory(&self, out: &Path) -> PathBuf {
        out.join(format!("node-{}", self.rank()))
    }

    /// Waits until all are done, and leaves them.
    pub(crate) fn leave(&self) {
        self.world.leave();
    }

    /// Ends the processes of all ranks, this one too; does nothing once the run was left.
    pub fn abort(&self) {
        self.world.abort();
        // The process ends meanwhile, unless the ranks have parted.
        self.world.leave();
    }

    /// What every node says, in the order of ranks. `at` says when, for messages.
    ///
    /// # Errors
    /// If one says something else, as another version would.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(
        &self,
        at: &str,
        mine: &T,
    ) -> Result<Vec<T>, TrainError> {
        let text = serde_json::to_vec(mine)
            .map_err(|e| TrainError::Internal(format!("a node's message is not JSON: {e}")))?;
        let all = self.wait(at, &self.world.gather(text))?;
        let said = all.iter().enumerate().map(|(rank, text)| {
            serde_json::from_slice(text).map_err(|e| {
                TrainError::NodesDiffer(format!("{at} rank {rank} does something else ({e})"))
            })
        });
        said.collect()
    }

    /// Waits for the others. Where one is lost MPI ends the rest; this says when.
    fn wait<T>(&self, at: &str, result: &Receiver<T>) -> Result<T, TrainError> {
        let start = Instant::now();
        let (mut next, mut asked) = (LONG, false);
        loop {
            match result.recv_timeout(LOOK) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(TrainError::Internal(format!("{at}: MPI has ended")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let rank = self.rank();
            if self.stop.is_set() && !asked {
                asked = true;
                tracing::warn!(
                    "rank {rank} is asked to end while it waits for the others, {at}; if one of \
                     them is lost, start all again with --resume"
                );
            }
            if start.elapsed() >= next {
                next *= 2;
                let seconds = start.elapsed().as_secs();
                tracing::warn!("rank {rank} waits for the others since {seconds} s, {at}");
            }
        }
    }

    /// Whether any node wishes something.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub(crate) fn any(&self, at: &str, wish: bool) -> Result<bool, TrainError> {
        Ok(self.gather(at, &wish)?.contains(&true))
    }

    /// Rank 0's number, for decisions that must be the same on all nodes: on other hardware the
    /// same sums may differ in their last bits.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub(crate) fn of_first(&self, at: &str, number: f64) -> Result<f64, TrainError> {
        Ok(f64::from_bits(self.gather(at, &number.to_bits())?[0]))
    }
}

/// Whether all nodes do the same step.
fn check(all: &[StepNews]) -> Result<(), TrainError> {
    for (rank, news) in all.iter().enumerate().skip(1) {
        let first = &all[0];
        let reason = if news.step != first.step {
            format!(
                "rank 0 is at step {}, rank {rank} at step {}",
                first.step + 1,
                news.step + 1
            )
        } else if news.step_tokens != first.step_tokens {
            format!(
                "step {} has {} learnable tokens on rank 0 and {} on rank {rank}: not all of them \
                 can use the same pictures",
                first.step + 1,
                first.step_tokens,
                news.step_tokens
            )
        } else if news.step_masked != first.step_masked {
            format!(
                "step {} has {} pictures with masks on rank 0 and {} on rank {rank}: not all of them \
                 have the same masks",
                first.step + 1,
                first.step_masked,
                news.step_masked
            )
        } else {
            continue;
        };
        return Err(TrainError::NodesDiffer(reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
