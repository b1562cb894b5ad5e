//! Adaptive asking: how often a data source's questions are asked follows how far they have been
//! learnt against its answers.
//!
//! The idea is GradNorm's (Chen et al., ICML 2018, arXiv 1711.02257, equation 2): a task whose loss
//! has come less far from where it started than the others' gets more weight, by its relative inverse
//! training rate to a power. There gradients are scaled; here δ is.
//!
//! A stage is cut into intervals of optimizer steps. In an interval, of a source, L_q is the mean
//! cross-entropy of a token of asked questions and L_a that of answers, both unweighted. From the
//! first interval that has tokens of both, where they start (L_q0, L_a0), they are smoothed,
//! E ← β·E + (1 − β)·L, and
//!
//! ```text
//! r = (E_q / L_q0) / (E_a / L_a0)
//! δ = δ_0 · r^γ, not below δ_min, not above δ_max
//! ```
//!
//! So more is asked where questions lag behind answers, and less where they are ahead. δ moves for
//! the interval after the next ([`crate::data::deltas`] says why).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::recipe::AskingRecipe;
use crate::step::bits;
use crate::step::loss::LossSums;
use crate::step::source_sums::SourceSums;

/// How δ moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveSettings {
    /// Optimizer steps of an interval.
    pub every: usize,
    /// δ_0, where each source starts.
    pub delta: f64,
    /// δ_min and δ_max.
    pub bounds: [f64; 2],
    /// β: the part of a mean that stays with each interval.
    pub smoothing: f64,
    /// γ: how strongly δ follows.
    pub strength: f64,
}

impl AdaptiveSettings {
    /// Those of a recipe.
    pub fn of(asking: &AskingRecipe) -> Self {
        Self {
            every: asking.every,
            delta: asking.delta,
            bounds: [asking.delta_min, asking.delta_max],
            smoothing: asking.smoothing,
            strength: asking.strength,
        }
    }

    /// δ of a source whose questions are `ratio` (r) times as far from learnt as its answers, both
    /// against where they started. What is no number, of losses that are all zero, says nothing.
    pub fn delta_of(&self, ratio: f64) -> f64 {
        let [least, most] = self.bounds;
        match ratio.is_nan() {
            true => self.delta,
            false => (self.delta * ratio.powf(self.strength)).clamp(least, most),
        }
    }
}

/// What is known of the sources between two optimizer steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskingState {
    sources: Vec<SourceState>,
}

/// What is known of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceState {
    name: String,
    /// Of the steps so far of the interval at hand.
    interval: LossSums,
    /// `None` until an interval had tokens of both.
    learnt: Option<Learnt>,
    /// δ of the interval at hand.
    #[serde(with = "bits")]
    delta: f64,
    /// δ of the next one.
    #[serde(with = "bits")]
    next: f64,
}

/// How far questions and answers have been learnt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Learnt {
    question: Course,
    answer: Course,
}

/// The course of a mean loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Course {
    /// In the first interval.
    #[serde(with = "bits")]
    start: f64,
    /// Smoothed.
    #[serde(with = "bits")]
    mean: f64,
}

impl Course {
    fn from(start: f64) -> Self {
        Self { start, mean: start }
    }

    /// Adds an interval; one without tokens says nothing.
    fn add(&mut self, loss: Option<f64>, smoothing: f64) {
        if let Some(loss) = loss {
            self.mean = smoothing * self.mean + (1.0 - smoothing) * loss;
        }
    }

    fn relative(&self) -> f64 {
        self.mean / self.start
    }
}

impl SourceState {
    fn end_interval(&mut self, settings: &AdaptiveSettings) {
        let sums = std::mem::take(&mut self.interval);
        let (question, answer) = (sums.mean_question(), sums.mean_answer());
        match (&mut self.learnt, question, answer) {
            (Some(learnt), ..) => {
                learnt.question.add(question, settings.smoothing);
                learnt.answer.add(answer, settings.smoothing);
            }
            (empty, Some(question), Some(answer)) => {
                *empty = Some(Learnt {
                    question: Course::from(question),
                    answer: Course::from(answer),
                });
            }
            _ => {}
        }
        self.delta = self.next;
        self.next = match self.learnt {
            Some(Learnt { question, answer }) => {
                settings.delta_of(question.relative() / answer.relative())
            }
            None => settings.delta,
        };
    }
}

impl AskingState {
    /// Before the first step, of sources of these names.
    pub fn new(names: &[String], settings: &AdaptiveSettings) -> Self {
        let source = |name: &String| SourceState {
            name: name.clone(),
            interval: LossSums::default(),
            learnt: None,
            delta: settings.delta,
            next: settings.delta,
        };
        Self {
            sources: names.iter().map(source).collect(),
        }
    }

    /// Why it cannot be that of a stage with these sources.
    pub(crate) fn fault(&self, names: &[String], settings: &AdaptiveSettings) -> Option<String> {
        let own = self.sources.iter().map(|source| source.name.as_str());
        if !own.clone().eq(names.iter().map(String::as_str)) {
            return Some(format!(
                "it has followed the sources {}, and the data have {}",
                own.collect::<Vec<_>>().join(", "),
                names.join(", ")
            ));
        }
        let [least, most] = settings.bounds;
        let outside = |source: &&SourceState| {
            let both = [source.delta, source.next];
            !both.iter().all(|delta| (least..=most).contains(delta))
        };
        let outside = self.sources.iter().find(outside)?;
        Some(format!(
            "the asking probability of {} is outside of {least} to {most}",
            outside.name
        ))
    }

    /// Adds the sums of a step.
    pub fn add(&mut self, sums: &SourceSums) {
        for (place, source) in self.sources.iter_mut().enumerate() {
            source.interval.merge(&sums.of(place));
        }
    }

    /// Ends an interval: the next is at hand, and δ of the one behind it is known.
    pub fn end_interval(&mut self, settings: &AdaptiveSettings) {
        for source in &mut self.sources {
            source.end_interval(settings);
        }
    }

    /// δ of each source in the interval at hand and in the next.
    pub fn deltas(&self) -> [Arc<[f64]>; 2] {
        let sources = self.sources.iter();
        [
            sources.clone().map(|source| source.delta).collect(),
            sources.map(|source| source.next).collect(),
        ]
    }

    /// δ of the interval at hand by the names of the sources.
    pub fn by_name(&self) -> BTreeMap<String, f64> {
        let sources = self.sources.iter();
        sources
            .map(|source| (source.name.clone(), source.delta))
            .collect()
    }
}

#[cfg(test)]
mod tests;
