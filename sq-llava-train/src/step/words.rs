//! The objective "words": image tokens learn to lie where the LLM has the words of their captions,
//! without a pass through the LLM.
//!
//! A picture's token `p` has the direction `v_p / |v_p|`, a word `t` of the batch (a token that is
//! learnt, distinct) the embedding `e_t` less the mean of all words of the batch, by the root mean
//! square `r` of these lengths. A picture says a word as far as its best tokens do,
//!
//! ```text
//! z_it = 1/3 · log mean over p of i (exp(3 · 45 · v_p · (e_t − ē) / (|v_p| r)))
//! ```
//!
//! and a word is learnt by telling the `n_t` samples of the batch that have it from the others:
//!
//! ```text
//! loss of a word t of sample i = −log(n_t · exp(z_it) / sum over samples j (exp(z_jt)))
//! ```
//!
//! A word that all samples have so teaches nothing, and no word's frequency is learnt. Directions
//! leave lengths open, which the LLM's first layers do not: a tenth of the mean of
//! `(log |v_p| / ℓ)²`, with `ℓ` the root mean square of `|e_t|`, keeps tokens as long as words.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use sq_llava_data::{IMAGE_TOKEN_INDEX, TokenRole};
use sq_llava_model::language::llama::Llama;
use sq_llava_model::ops::cat::cat;

use crate::data::batch::{MicroBatch, TrainSample};
use crate::step::loss::{LossSettings, LossSums, host};
use crate::step::source_sums::SourceSums;

/// The most that a score can be, about, for a word of usual length.
const SCALE: f64 = 45.0;

/// How much more the best tokens of a picture count than the others.
const SHARPNESS: f64 = 3.0;

/// Weight of the lengths.
const LENGTHS: f64 = 0.1;

/// What keeps a length from being nothing.
const LEAST_LENGTH: f64 = 1e-6;

/// A sample that words are learnt of.
#[derive(Debug)]
pub struct Captioned<B: Backend> {
    /// What the LLM would see of its pictures. `[tokens, hidden]`
    pub tokens: Tensor<B, 2>,
    /// Places of its words among the batch's, each as often as it is said, and what each counts.
    pub words: Vec<(usize, f64)>,
}

/// The loss of a batch's words.
#[derive(Debug)]
pub struct WordLoss<B: Backend> {
    /// What the step learns from, `[1]`.
    pub total: Tensor<B, 1>,
    /// Of each word of each sample, unweighted.
    pub losses: Vec<f32>,
}

impl<B: Backend> WordLoss<B> {
    /// Of these samples, of which there is one at least, and the embeddings of the batch's words,
    /// `[words, hidden]`. `length_weight` is that of the tokens' lengths, a tenth of which counts.
    pub fn of(samples: &[Captioned<B>], embeddings: Tensor<B, 2>, length_weight: f64) -> Self {
        let device = embeddings.device();
        let words = embeddings.dims()[0];
        let norms = |rows: Tensor<B, 2>| rows.square().sum_dim(1); // [n, 1]
        let usual = |rows| norms(rows).mean_dim(0).sqrt().clamp_min(LEAST_LENGTH); // [1, 1]
        let apart = embeddings.clone() - embeddings.clone().mean_dim(0);
        let apart = apart.clone() / usual(apart);

        let tokens = cat(samples.iter().map(|one| one.tokens.clone()).collect(), 0);
        let lengths = norms(tokens.clone()).sqrt().clamp_min(LEAST_LENGTH);
        let off = (lengths.clone() / usual(embeddings)).log().square().mean();
        let scores = (tokens / lengths).matmul(apart.transpose()); // [tokens, words]
        let scores = scores.mul_scalar(SHARPNESS * SCALE);
        let mut start = 0;
        let said = samples.iter().map(|one| {
            let end = start + one.tokens.dims()[0];
            let own = scores.clone().slice([start..end, 0..words]);
            start = end;
            // No exponential overflows.
            let most = own.clone().detach().max_dim(0);
            let mean = (own - most.clone()).exp().mean_dim(0);
            (mean.log() + most).div_scalar(SHARPNESS)
        });
        let said = cat(said.collect(), 0); // [samples, words]
        let logs = log_softmax(said, 0);

        let mut weights = vec![0.0f32; samples.len() * words];
        let mut having = vec![0usize; words];
        for (sample, one) in samples.iter().enumerate() {
            for &(word, weight) in &one.words {
                weights[sample * words + word] -= weight as f32;
            }
            for word in one
                .words
                .iter()
                .map(|(word, _)| *word)
                .collect::<BTreeSet<_>>()
            {
                having[word] += 1;
            }
        }
        let values = host(logs.clone());
        let losses = samples.iter().enumerate().flat_map(|(sample, one)| {
            let (values, having) = (&values, &having);
            let loss = move |&(word, _): &(usize, f64)| {
                -values[sample * words + word] - (having[word] as f32).ln()
            };
            one.words.iter().map(loss)
        });
        let losses = losses.collect();
        let weights = TensorData::new(weights, [samples.len(), words]);
        let weights = Tensor::<B, 2>::from_data(weights, (&device, DType::F32));
        let total = (logs * weights).sum() + off.mul_scalar(LENGTHS * length_weight);
        Self { total, losses }
    }
}

/// The loss of a batch's words, and sums of it for the log.
pub(super) struct BatchWords<B: Backend> {
    pub total: Tensor<B, 1>,
    pub sums: LossSums,
    pub by_source: SourceSums,
}

impl<B: Backend> BatchWords<B> {
    /// Of a batch and the image tokens of its pictures. `None` where there are not two samples to
    /// tell apart.
    pub fn of(
        llama: &Llama<B>,
        batch: &MicroBatch,
        images: &HashMap<Arc<str>, Tensor<B, 2>>,
        settings: &LossSettings,
    ) -> Option<Self> {
        if !tells_apart(batch) {
            return None;
        }
        let samples: Vec<&TrainSample> = captioned(batch).collect();
        let vocabulary: BTreeSet<i64> = samples
            .iter()
            .flat_map(|sample| words(sample).map(|(id, _)| id))
            .collect();
        let vocabulary: Vec<i64> = vocabulary.into_iter().collect();
        let denominator = batch.step_tokens.max(1) as f64;
        let (mut asked, mut sources) = (Vec::new(), Vec::new());
        let captioned: Vec<Captioned<B>> = samples
            .iter()
            .map(|sample| {
                let pictures = sample.pictures.iter();
                let tokens = pictures.filter_map(|picture| images.get(&picture.key).cloned());
                let words = words(sample).map(|(id, question)| {
                    asked.push(question);
                    sources.push(sample.source);
                    let place = vocabulary.partition_point(|word| *word < id);
                    let weight = match question {
                        true => settings.question_weight,
                        false => settings.answer_weight,
                    };
                    (place, weight / denominator)
                });
                Captioned {
                    words: words.collect(),
                    tokens: cat(tokens.collect(), 0).cast(DType::F32),
                }
            })
            .collect();
        let device = captioned[0].tokens.device();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::from(&vocabulary[..]), &device);
        let embeddings = llama.embed(ids).cast(DType::F32).detach();
        // As much of the step as its words.
        let part = asked.len() as f64 / denominator;
        let WordLoss { total, losses } = WordLoss::of(&captioned, embeddings, part);
        let (mut sums, mut by_source) = (LossSums::default(), SourceSums::default());
        sums.add_all(&losses, &asked);
        by_source.add(&losses, &asked, &sources);
        Some(Self {
            total,
            sums,
            by_source,
        })
    }
}

/// Whether a batch has two samples with pictures and words.
pub(super) fn tells_apart(batch: &MicroBatch) -> bool {
    captioned(batch).nth(1).is_some()
}

fn captioned(batch: &MicroBatch) -> impl Iterator<Item = &TrainSample> {
    let captioned = |sample: &&TrainSample| !sample.pictures.is_empty() && sample.learnable() > 0;
    batch.samples.iter().filter(captioned)
}

/// Tokens of a sample that are learnt, and whether each belongs to an asked question.
fn words(sample: &TrainSample) -> impl Iterator<Item = (i64, bool)> {
    let tokens = sample.ids.iter().zip(&sample.roles).skip(1);
    let learnt =
        tokens.filter(|&(&id, &role)| role != TokenRole::Ignore && id != IMAGE_TOKEN_INDEX);
    learnt.map(|(&id, &role)| (id, role == TokenRole::Question))
}
