//! What is measured at each optimizer step, and Burn's metrics over it.

use std::sync::Arc;

use burn::train::ItemLazy;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};
use serde::Serialize;

use crate::step::report::StepReport;

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
    /// Part of the answers' tokens that the model would have chosen.
    AnswerAccuracy,
    /// Part of the answers of which it would have chosen every token: its greedy answers.
    ExactAnswers,
    /// Learning rate of the LLM's adapters.
    RateLlm,
    /// Learning rate of projector, prototypes and new tokens.
    RateProjector,
    /// Learning rate of the vision adapters.
    RateVision,
    /// Norm of all gradients.
    GradNorm,
    /// Norm of the gradients of the LLM's adapters.
    GradNormLlm,
    /// Norm of the gradients of projector, prototypes and new tokens.
    GradNormProjector,
    /// Norm of the gradients of the vision adapters.
    GradNormVision,
    /// Tokens per second.
    TokensPerSecond,
    /// Samples per second.
    SamplesPerSecond,
    /// Memory of the one GPU that trains, else of the process, in MiB; `None` where the system does not
    /// say.
    Memory,
    /// Tokens, images in place.
    Tokens,
    /// Tokens of asked questions.
    QuestionTokens,
    /// Tokens of answers.
    AnswerTokens,
    /// Samples.
    Samples,
    /// Samples that were cut.
    Truncated,
    /// Samples that were left out.
    Skipped,
    /// Loss per picture with masks.
    LossMasks,
}

impl Quantity {
    /// Those of an optimizer step.
    pub const TRAINING: [Self; 20] = [
        Self::Loss,
        Self::LossQuestion,
        Self::LossAnswer,
        Self::RateLlm,
        Self::RateProjector,
        Self::RateVision,
        Self::GradNorm,
        Self::GradNormLlm,
        Self::GradNormProjector,
        Self::GradNormVision,
        Self::TokensPerSecond,
        Self::SamplesPerSecond,
        Self::Memory,
        Self::Tokens,
        Self::QuestionTokens,
        Self::AnswerTokens,
        Self::Samples,
        Self::Truncated,
        Self::Skipped,
        Self::LossMasks,
    ];

    /// Those of a validation.
    pub const VALIDATION: [Self; 12] = [
        Self::Loss,
        Self::LossQuestion,
        Self::LossAnswer,
        Self::AnswerAccuracy,
        Self::ExactAnswers,
        Self::Tokens,
        Self::QuestionTokens,
        Self::AnswerTokens,
        Self::Samples,
        Self::Truncated,
        Self::Skipped,
        Self::LossMasks,
    ];

    /// Those of an optimizer step that a person watches.
    pub const DASHBOARD: [Self; 16] = [
        Self::Loss,
        Self::LossQuestion,
        Self::LossAnswer,
        Self::RateLlm,
        Self::RateProjector,
        Self::RateVision,
        Self::GradNorm,
        Self::GradNormLlm,
        Self::GradNormProjector,
        Self::GradNormVision,
        Self::TokensPerSecond,
        Self::SamplesPerSecond,
        Self::Memory,
        Self::Truncated,
        Self::Skipped,
        Self::LossMasks,
    ];

    /// Those of a validation that a person watches.
    pub const DASHBOARD_VALIDATION: [Self; 6] = [
        Self::Loss,
        Self::LossQuestion,
        Self::LossAnswer,
        Self::AnswerAccuracy,
        Self::ExactAnswers,
        Self::LossMasks,
    ];

    /// Name in dashboards and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::LossQuestion => "loss_question",
            Self::LossAnswer => "loss_answer",
            Self::AnswerAccuracy => "answer_accuracy",
            Self::ExactAnswers => "exact_answers",
            Self::RateLlm => "lr_llm",
            Self::RateProjector => "lr_projector",
            Self::RateVision => "lr_vision",
            Self::GradNorm => "grad_norm",
            Self::GradNormLlm => "grad_norm_llm",
            Self::GradNormProjector => "grad_norm_projector",
            Self::GradNormVision => "grad_norm_vision",
            Self::TokensPerSecond => "tokens_per_second",
            Self::SamplesPerSecond => "samples_per_second",
            Self::Memory => "memory_mib",
            Self::Tokens => "tokens",
            Self::QuestionTokens => "question_tokens",
            Self::AnswerTokens => "answer_tokens",
            Self::Samples => "samples",
            Self::Truncated => "truncated",
            Self::Skipped => "skipped",
            Self::LossMasks => "loss_masks",
        }
    }

    /// Whether it counts things.
    pub fn is_count(self) -> bool {
        matches!(
            self,
            Self::Tokens
                | Self::QuestionTokens
                | Self::AnswerTokens
                | Self::Samples
                | Self::Truncated
                | Self::Skipped
        )
    }

    /// Its value; `None` where the step has none (no asked question, for one).
    pub fn of(self, report: &StepReport) -> Option<f64> {
        match self {
            Self::Loss => Some(report.loss),
            Self::LossQuestion => report.sums.mean_question(),
            Self::LossAnswer => report.sums.mean_answer(),
            Self::AnswerAccuracy => report.answers.accuracy(),
            Self::ExactAnswers => report.answers.exact_part(),
            Self::RateLlm => Some(report.rates[0]),
            Self::RateProjector => Some(report.rates[1]),
            Self::RateVision => Some(report.rates[2]),
            Self::GradNorm => Some(report.norms.total),
            Self::GradNormLlm => Some(report.norms.groups[0]),
            Self::GradNormProjector => Some(report.norms.groups[1]),
            Self::GradNormVision => Some(report.norms.groups[2]),
            Self::TokensPerSecond => Some(report.per_second(report.tokens)),
            Self::SamplesPerSecond => Some(report.per_second(report.samples)),
            Self::Memory => report.memory.map(|bytes| bytes as f64 / f64::from(1 << 20)),
            Self::Tokens => Some(report.tokens as f64),
            Self::QuestionTokens => Some(report.sums.question_tokens as f64),
            Self::AnswerTokens => Some(report.sums.answer_tokens as f64),
            Self::Samples => Some(report.samples as f64),
            Self::Truncated => Some(report.truncated as f64),
            Self::Skipped => Some(report.skipped as f64),
            Self::LossMasks => report.masks.mean(),
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
            higher_is_better: matches!(
                self.quantity,
                Quantity::TokensPerSecond
                    | Quantity::SamplesPerSecond
                    | Quantity::AnswerAccuracy
                    | Quantity::ExactAnswers
            ),
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
