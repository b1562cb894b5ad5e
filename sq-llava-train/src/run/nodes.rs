//! Data-parallel training over several machines: each node takes its share of the batches of an
//! optimizer step, and before the step the nodes add up their gradients.
//!
//! Burn's own `burn-collective` 0.21.0 is not used: of its global all-reduces the first returns and
//! the second never does, in each of its strategies, because `SyncService::sync` empties a copy of
//! the list of nodes that have arrived (`global/node/sync.rs`, lines 71 and 79). Here the nodes
//! stand in a ring of TCP connections with deadlines (`nodes/ring.rs`).
//!
//! What is exchanged: the gradients of what trains, as sums (the loss's denominator is that of the
//! whole step already), and with them the sums and counts of the report, so that all nodes log the
//! same, stop at the same step and fail together.

mod gradients;
mod meeting;
mod ring;
mod start;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::meeting::port_of;
use self::ring::{Lost, Ring};
use crate::error::TrainError;
use crate::step::loss::LossSums;
use crate::step::report::StepReport;

pub(crate) use self::gradients::Trainable;
pub use self::meeting::Orchestrator;
pub(crate) use self::start::{StageStart, agree, agree_on_stage};

/// Values that are added up at a time: 64 MiB of f32 on the host.
const BUCKET_VALUES: usize = 16 << 20;

/// Nodes of a run.
const MOST_NODES: usize = 4096;

/// What is added to the time of day must be a time of day.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A node's place in a run over several machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Nodes of the run; with one there is no exchange.
    pub nodes: usize,
    /// This one's number, from 0.
    pub rank: usize,
    /// Where the orchestrator is, `HOST:PORT`.
    pub coordinator: String,
    /// Where the other nodes reach this one, `HOST:PORT`; `None` for its address as the
    /// orchestrator sees it, and any free port.
    pub address: Option<String>,
    /// How long the meeting and each exchange may take.
    pub timeout: Duration,
}

impl NodeConfig {
    /// Looks whether the numbers and addresses can be used.
    ///
    /// # Errors
    /// If one cannot.
    pub fn validate(&self) -> Result<(), TrainError> {
        let fail = |reason: String| Err(TrainError::NodeMeeting(reason));
        if self.nodes == 0 {
            return fail("--nodes is 0: there is at least this one".into());
        }
        if self.rank >= self.nodes {
            return fail(format!(
                "--node-rank is {}, but the ranks of {} node(s) are 0 to {}",
                self.rank,
                self.nodes,
                self.nodes - 1
            ));
        }
        let addresses = [
            ("--coordinator", Some(&self.coordinator)),
            ("--node-address", self.address.as_ref()),
        ];
        for (option, address) in addresses {
            if let Some(Err(reason)) = address.map(|address| port_of(address)) {
                return fail(format!("{option}: {reason}"));
            }
        }
        if self.timeout.is_zero() {
            return fail("--node-timeout is 0: nothing can be exchanged in no time".into());
        }
        if self.nodes > MOST_NODES {
            return fail(format!(
                "--nodes is {}; at most {MOST_NODES} train together",
                self.nodes
            ));
        }
        if self.timeout > LONGEST_TIMEOUT {
            return fail(format!(
                "--node-timeout is {} seconds; at most {} (30 days) can be waited",
                self.timeout.as_secs(),
                LONGEST_TIMEOUT.as_secs()
            ));
        }
        Ok(())
    }

    /// The run directory of this node: `node-RANK` inside the one that all were given, so that no
    /// two nodes ever write into the same, shared storage or not; that one itself for one node.
    pub fn run_directory(&self, out: &Path) -> PathBuf {
        match self.nodes {
            1 => out.to_path_buf(),
            _ => out.join(format!("node-{}", self.rank)),
        }
    }
}

/// The other nodes of a run.
#[derive(Debug)]
pub struct Nodes {
    rank: usize,
    count: usize,
    timeout: Duration,
    bucket_values: usize,
    /// `None` once an exchange failed.
    ring: Mutex<Option<Ring>>,
}

/// What a node says about a step before the gradients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StepNews {
    step: usize,
    step_tokens: usize,
    /// Whether it was asked to stop.
    stop: bool,
    /// Which trainable parameters have a gradient, eight to a byte.
    gradients: Vec<u8>,
    /// Bits of the sums over asked questions and over answers: JSON knows no NaN.
    loss: [u64; 2],
    /// Tokens of asked questions and of answers, samples, tokens, samples cut, samples left out.
    counts: [usize; 6],
}

impl StepNews {
    fn new(id: StepId, stop: bool, present: &[bool], report: &StepReport) -> Self {
        let sums = &report.sums;
        Self {
            step: id.step,
            step_tokens: id.step_tokens,
            stop,
            gradients: pack(present),
            loss: [sums.question, sums.answer].map(f64::to_bits),
            counts: [
                sums.question_tokens,
                sums.answer_tokens,
                report.samples,
                report.tokens,
                report.truncated,
                report.skipped,
            ],
        }
    }

    fn report(&self) -> StepReport {
        let [question, answer] = self.loss.map(f64::from_bits);
        let [
            question_tokens,
            answer_tokens,
            samples,
            tokens,
            truncated,
            skipped,
        ] = self.counts;
        StepReport {
            sums: LossSums {
                question,
                answer,
                question_tokens,
                answer_tokens,
            },
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
    /// Meets the other nodes; `None` if there are none.
    ///
    /// # Errors
    /// If the configuration cannot be used or the nodes do not come together in time.
    pub fn join(config: &NodeConfig) -> Result<Option<Self>, TrainError> {
        config.validate()?;
        if config.nodes == 1 {
            return Ok(None);
        }
        let ring = meeting::join(config)?;
        tracing::info!(
            "node {} of {} has met the others",
            config.rank,
            config.nodes
        );
        Ok(Some(Self {
            rank: config.rank,
            count: config.nodes,
            timeout: config.timeout,
            bucket_values: BUCKET_VALUES,
            ring: Mutex::new(Some(ring)),
        }))
    }

    /// This node's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What every node says, in the order of ranks. `at` says when, for messages.
    ///
    /// # Errors
    /// If a node is lost or has failed.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(
        &self,
        at: &str,
        mine: &T,
    ) -> Result<Vec<T>, TrainError> {
        self.gather_until(at, Ok(mine), Instant::now() + self.timeout)
    }

    fn gather_until<T: Serialize + DeserializeOwned>(
        &self,
        at: &str,
        mine: Result<&T, String>,
        deadline: Instant,
    ) -> Result<Vec<T>, TrainError> {
        let text = serde_json::to_vec(&mine)
            .map_err(|e| TrainError::Internal(format!("a node's message is not JSON: {e}")))?;
        let all = self.on_ring(at, |ring| ring.gather(text, deadline))?;
        let mut said = Vec::with_capacity(all.len());
        for (rank, text) in all.iter().enumerate() {
            let fail = |reason: String| TrainError::NodeFailed { rank, reason };
            let one: Result<T, String> = serde_json::from_slice(text)
                .map_err(|e| fail(format!("{at} it does something else ({e})")))?;
            said.push(one.map_err(fail)?);
        }
        Ok(said)
    }

    /// Does something on the ring, which is of no more use once it has failed.
    fn on_ring<T>(
        &self,
        at: &str,
        work: impl FnOnce(&mut Ring) -> Result<T, Lost>,
    ) -> Result<T, TrainError> {
        let mut slot = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = |reason: String| TrainError::NodeLost {
            at: at.to_owned(),
            reason,
        };
        let Some(ring) = &mut *slot else {
            return Err(lost("the connections are gone".into()));
        };
        work(ring).map_err(|Lost { rank, error }| {
            // Closes the connections, so that the others need not wait for their own deadline.
            *slot = None;
            lost(match error.kind() {
                std::io::ErrorKind::TimedOut => format!(
                    "the exchange did not finish within {} s: rank {rank}, or one behind it, is \
                     lost or hangs",
                    self.timeout.as_secs_f64()
                ),
                _ => format!("rank {rank}, or one behind it, is lost ({error})"),
            })
        })
    }

    /// Tells the others why this node ends, unless they know. They are told at their next
    /// exchange.
    pub(crate) fn tell(&self, error: &TrainError) {
        if !error.is_of_nodes() {
            tracing::warn!("this node ends, and tells the others: {error}");
            let deadline = Instant::now() + self.timeout;
            // Who does not hear it sees the connection close. The first error is the one to tell.
            let _ = self.gather_until::<()>("at the end", Err(error.to_string()), deadline);
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

    /// A whole step, from each node's share of it. All nodes get the same, bit for bit.
    ///
    /// # Errors
    /// If a node is lost, has failed or does another step.
    pub(crate) fn exchange<B: AutodiffBackend, M: Module<B>>(
        &self,
        trainable: &Trainable<'_, M>,
        id: StepId,
        mine: NodeStep,
    ) -> Result<NodeStep, TrainError> {
        let NodeStep {
            mut grads,
            report,
            stop,
        } = mine;
        let deadline = Instant::now() + self.timeout;
        let at = format!("at step {}", id.step + 1);
        let entries = gradients::entries(trainable, &grads);
        let present: Vec<bool> = entries.iter().map(|entry| entry.has_gradient).collect();
        let mine = StepNews::new(id, stop, &present, &report);
        let all = self.gather_until(&at, Ok(&mine), deadline)?;
        check(&all)?;
        let mut wanted = vec![false; entries.len()];
        for news in &all {
            for (wanted, present) in wanted.iter_mut().zip(unpack(&news.gradients)) {
                *wanted |= present;
            }
        }
        let mut sum = GradientsParams::new();
        for range in gradients::buckets(&entries, &wanted, self.bucket_values) {
            let mut values = gradients::take(trainable, &mut grads, &range, &wanted)?;
            self.on_ring(&at, |ring| ring.sum(&mut values, deadline))?;
            gradients::put(trainable, &mut sum, &range, &wanted, &values);
        }
        let mut report = StepReport::default();
        for news in &all {
            report.merge(&news.report());
        }
        Ok(NodeStep {
            grads: sum,
            report,
            stop: all.iter().any(|news| news.stop),
        })
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
        } else if news.gradients.len() != first.gradients.len() {
            format!("rank 0 and rank {rank} do not train the same parameters")
        } else {
            continue;
        };
        return Err(TrainError::NodesDiffer(reason));
    }
    Ok(())
}

/// Eight flags to a byte, the first one lowest.
fn pack(flags: &[bool]) -> Vec<u8> {
    let byte = |eight: &[bool]| {
        let bits = eight.iter().enumerate();
        bits.fold(0, |byte, (i, &flag)| byte | (u8::from(flag) << i))
    };
    flags.chunks(8).map(byte).collect()
}

/// The flags again, to the end of the last byte.
fn unpack(bytes: &[u8]) -> impl Iterator<Item = bool> {
    bytes
        .iter()
        .flat_map(|byte| (0..8).map(move |i| byte >> i & 1 == 1))
}

#[cfg(test)]
mod tests;
