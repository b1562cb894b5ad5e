//! The joint loss of asking and answering (paper, equation 4): cross-entropy over the tokens of
//! asked questions and of answers, and nothing else.
//!
//! Logits of a whole batch are never in memory: the head runs over chunks of the positions that
//! predict something, each with its own small graph, and what comes back is the gradient on the
//! hidden states.

use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sq_llava_model::language::llama::Llama;
use sq_llava_model::ops::cross_entropy::token_losses;

use crate::data::batch::Targets;
use crate::step::bits;
use crate::step::recompute::collect;
use crate::step::source_sums::SourceSums;

/// How the loss is weighted and computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSettings {
    /// Weight of the tokens of asked questions.
    pub question_weight: f64,
    /// Weight of the tokens of answers.
    pub answer_weight: f64,
    /// Tokens whose logits are in memory at once.
    pub chunk_tokens: usize,
}

/// Unweighted sums of cross-entropy in nats, and over how many tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSums {
    /// Over the tokens of asked questions.
    #[serde(with = "bits")]
    pub question: f64,
    /// Over the tokens of answers.
    #[serde(with = "bits")]
    pub answer: f64,
    /// Number of tokens of asked questions.
    pub question_tokens: usize,
    /// Number of tokens of answers.
    pub answer_tokens: usize,
}

/// How well answers are predicted, each token from the true ones before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerCounts {
    /// Tokens of answers, their end included.
    pub tokens: usize,
    /// Those of them that are the most likely.
    pub correct: usize,
    /// Answers.
    pub answers: usize,
    /// Those of them of which every token is the most likely: greedy decoding gives exactly them.
    pub exact: usize,
}

impl AnswerCounts {
    /// Adds those of another batch.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.correct += other.correct;
        self.answers += other.answers;
        self.exact += other.exact;
    }

    /// Part of the tokens that are right; `None` without any.
    pub fn accuracy(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.correct as f64 / self.tokens as f64)
    }

    /// Part of the answers that are right; `None` without any.
    pub(crate) fn exact_part(&self) -> Option<f64> {
        (self.answers > 0).then(|| self.exact as f64 / self.answers as f64)
    }
}

/// The loss with its way back.
#[derive(Debug)]
pub(crate) struct JointLoss<B: AutodiffBackend> {
    /// Sums for the log.
    pub sums: LossSums,
    /// The same of each source that is followed.
    pub by_source: SourceSums,
    /// Its gradient on the states, `[n, hidden]`. `None` if there is nothing to learn.
    pub gradient: Option<Tensor<B::InnerBackend, 2>>,
    /// Gradients of the head's own trainable rows.
    pub head: GradientsParams,
}

impl LossSums {
    /// Adds the loss of a token, which belongs to an asked question or to an answer.
    pub(crate) fn add(&mut self, loss: f32, asked: bool) {
        if asked {
            self.question += f64::from(loss);
            self.question_tokens += 1;
        } else {
            self.answer += f64::from(loss);
            self.answer_tokens += 1;
        }
    }

    pub(super) fn add_all(&mut self, losses: &[f32], asked: &[bool]) {
        for (&loss, &asked) in losses.iter().zip(asked) {
            self.add(loss, asked);
        }
    }

    /// Adds the sums of another part of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.question += other.question;
        self.answer += other.answer;
        self.question_tokens += other.question_tokens;
        self.answer_tokens += other.answer_tokens;
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.question_tokens + self.answer_tokens
    }

    /// The weighted loss per token; 0 where there is none.
    pub fn mean(&self, settings: &LossSettings) -> f64 {
        let sum = settings.question_weight * self.question + settings.answer_weight * self.answer;
        sum / self.tokens().max(1) as f64
    }

    /// Mean over the tokens of asked questions; `None` where there is none.
    pub(crate) fn mean_question(&self) -> Option<f64> {
        (self.question_tokens > 0).then(|| self.question / self.question_tokens as f64)
    }

    /// Mean over the tokens of answers; `None` where there is none.
    pub(crate) fn mean_answer(&self) -> Option<f64> {
        (self.answer_tokens > 0).then(|| self.answer / self.answer_tokens as f64)
    }
}

impl LossSettings {
    fn weights<B: Backend>(
        &self,
        asked: &[bool],
        denominator: usize,
        device: &B::Device,
    ) -> Tensor<B, 1> {
        let weight = |&asked: &bool| {
            let weight = if asked {
                self.question_weight
            } else {
                self.answer_weight
            };
            (weight / denominator.max(1) as f64) as f32
        };
        let weights: Vec<f32> = asked.iter().map(weight).collect();
        Tensor::from_data(TensorData::from(&weights[..]), (device, DType::F32))
    }

    /// Loss and gradients. `states [n, hidden]` are those before the last norm at `targets.rows`;
    /// `denominator` is the number of learnable tokens of the optimizer step.
    pub(crate) fn joint_loss<B: AutodiffBackend>(
        &self,
        llama: &Llama<B>,
        states: Tensor<B::InnerBackend, 2>,
        targets: &Targets,
        denominator: usize,
    ) -> JointLoss<B> {
        let mut out = JointLoss {
            sums: LossSums::default(),
            by_source: SourceSums::default(),
            gradient: None,
            head: GradientsParams::new(),
        };
        let total = targets.ids.len();
        if total == 0 {
            return out;
        }
        let device = states.device();
        let width = states.dims()[1];
        let mut gradients = Vec::new();
        for start in (0..total).step_by(self.chunk_tokens.max(1)) {
            let end = (start + self.chunk_tokens.max(1)).min(total);
            let asked = &targets.asked[start..end];
            let leaf = Tensor::<B, 2>::from_inner(states.clone().slice([start..end, 0..width]))
                .require_grad();
            let losses = llama.token_losses(leaf.clone(), &targets.ids[start..end]);
            let values = host(losses.clone());
            out.sums.add_all(&values, asked);
            out.by_source
                .add(&values, asked, &targets.sources[start..end]);
            let weights = self.weights::<B>(asked, denominator, &device);
            let mut grads = (losses * weights).sum().backward();
            // The leaf is part of the graph, so its gradient is there.
            gradients.extend(leaf.grad_remove(&mut grads));
            if let Some(rows) = &llama.new_tokens {
                collect(rows, &mut grads, &mut out.head);
            }
        }
        out.gradient = Some(Tensor::cat(gradients, 0));
        out
    }

    /// The loss alone, and how answers are predicted. As [`Self::joint_loss`].
    pub(crate) fn evaluate<B: Backend>(
        &self,
        llama: &Llama<B>,
        hidden: Tensor<B, 2>,
        targets: &Targets,
    ) -> (LossSums, SourceSums, AnswerCounts) {
        let (mut sums, mut by_source) = (LossSums::default(), SourceSums::default());
        let (total, width) = (targets.ids.len(), hidden.dims()[1]);
        let mut likeliest: Vec<i64> = Vec::with_capacity(total);
        for start in (0..total).step_by(self.chunk_tokens.max(1)) {
            let end = (start + self.chunk_tokens.max(1)).min(total);
            let chunk = hidden.clone().slice([start..end, 0..width]);
            let logits = llama.logits(chunk);
            likeliest.extend(logits.clone().argmax(1).into_data().iter::<i64>());
            let losses = host(token_losses(logits, &targets.ids[start..end]));
            let asked = &targets.asked[start..end];
            sums.add_all(&losses, asked);
            by_source.add(&losses, asked, &targets.sources[start..end]);
        }
        let mut counts = AnswerCounts::default();
        for answer in targets.answers() {
            let right = answer.clone().filter(|&i| likeliest[i] == targets.ids[i]);
            let right = right.count();
            counts.tokens += answer.len();
            counts.correct += right;
            counts.answers += 1;
            counts.exact += usize::from(right == answer.len());
        }
        (sums, by_source, counts)
    }
}

/// Values on the host, f32.
pub(crate) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
