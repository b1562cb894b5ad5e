//! What is measured at each optimizer step, and Burn's metrics over it.

use std::sync::Arc;

use burn::train::ItemLazy;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};
use serde::Serialize;

use crate::loss::LossSums;

/// One optimizer step, or a batch of it before the batches are added up.
#[derive(Debug, Clone, Default)]
pub struct StepReport {
    /// Sums of the loss.
    pub sums: LossSums,
    /// The weighted loss per token.
    pub loss: f64,
    /// Samples.
    pub samples: usize,
    /// Tokens, images in place, without padding.
    pub tokens: usize,
    /// Samples that were cut.
    pub truncated: usize,
    /// Learning rate of each group.
    pub rates: [f64; 3],
    /// Norm of all gradients, before clipping.
    pub grad_norm: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
}

impl StepReport {
    /// Adds another batch of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.sums.merge(&other.sums);
        self.samples += other.samples;
        self.tokens += other.tokens;
        self.truncated += other.truncated;
    }
}

impl ItemLazy for StepReport {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl Adaptor<StepReport> for StepReport {
    fn adapt(&self) -> StepReport {
        self.clone()
    }
}

/// A number of a [`StepReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Quantity {
    /// The weighted loss per token.
    Loss,
    /// Loss per token of asked questions.
    LossQuestion,
    /// Loss per token of answers.
    LossAnswer,
    /// Learning rate of the LLM's adapters.
    RateLlm,
    /// Learning rate of projector, prototypes and new tokens.
    RateProjector,
    /// Learning rate of the vision adapters.
    RateVision,
    /// Norm of all gradients.
    GradNorm,
    /// Tokens per second.
    TokensPerSecond,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Loss,
        Self::LossQuestion,
        Self::LossAnswer,
        Self::RateLlm,
        Self::RateProjector,
        Self::RateVision,
        Self::GradNorm,
        Self::TokensPerSecond,
    ];

    /// Name in dashboards and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::LossQuestion => "loss_question",
            Self::LossAnswer => "loss_answer",
            Self::RateLlm => "lr_llm",
            Self::RateProjector => "lr_projector",
            Self::RateVision => "lr_vision",
            Self::GradNorm => "grad_norm",
            Self::TokensPerSecond => "tokens_per_second",
        }
    }

    /// Its value; `None` where the step has none (no asked question, for one).
    pub fn of(self, report: &StepReport) -> Option<f64> {
        match self {
            Self::Loss => Some(report.loss),
            Self::LossQuestion => report.sums.mean_question(),
            Self::LossAnswer => report.sums.mean_answer(),
            Self::RateLlm => Some(report.rates[0]),
            Self::RateProjector => Some(report.rates[1]),
            Self::RateVision => Some(report.rates[2]),
            Self::GradNorm => Some(report.grad_norm),
            Self::TokensPerSecond => Some(report.tokens_per_second),
        }
    }
}

/// A quantity as Burn's dashboard shows it.
#[derive(Clone)]
pub struct StepMetric {
    quantity: Quantity,
    name: MetricName,
    state: NumericMetricState,
    last: f64,
}

impl StepMetric {
    /// The metric of a quantity.
    pub fn new(quantity: Quantity) -> Self {
        Self {
            quantity,
            name: Arc::new(quantity.name().to_owned()),
            state: NumericMetricState::default(),
            last: 0.0,
        }
    }
}

impl Metric for StepMetric {
    type Input = StepReport;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        let attributes = NumericAttributes {
            unit: None,
            higher_is_better: self.quantity == Quantity::TokensPerSecond,
        };
        attributes.into()
    }

    fn update(&mut self, report: &StepReport, _metadata: &MetricMetadata) -> SerializedEntry {
        // A step without such tokens repeats the value before it: a curve has no gaps.
        self.last = self.quantity.of(report).unwrap_or(self.last);
        let format = FormatOptions::new(self.name.clone()).precision(4);
        self.state.update(self.last, 1, format)
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for StepMetric {
    fn value(&self) -> NumericEntry {
        self.state.current_value()
    }

    fn running_value(&self) -> NumericEntry {
        self.state.running_value()
    }
}
