//! Autoregressive generation, one sample or a batch.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::error::ModelError;
use crate::generation::sampling::{Sampler, Sampling};
use crate::kernels::blocks::is_native;
use crate::language::cache::KvCache;
use crate::ops::finite::{all_finite, is_finite};
use crate::ops::likeliest::{Choice, Likeliest};
use crate::sq_llava::{Sample, SqLlava};

/// When and how to generate.
#[derive(Debug, Clone)]
pub struct GenerateConfig {
    /// Largest number of tokens in an answer.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end an answer; they are not part of it.
    pub stop_ids: Vec<i64>,
    /// Tokens that are never chosen, such as the image placeholder.
    pub suppressed: Vec<i64>,
    /// Ids from here on are never chosen: a padded vocabulary holds rows that no tokenizer has.
    pub vocabulary: Option<usize>,
}

impl GenerateConfig {
    /// Greedy, up to `max_new_tokens`, with nothing that stops it.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::greedy(),
            stop_ids: vec![],
            suppressed: vec![],
            vocabulary: None,
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token.
    Stop,
    /// `max_new_tokens`.
    Length,
    /// The context window is full.
    Context,
    /// The callback asked for it (a stop string, an interrupt).
    Callback,
}

/// A generated answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<i64>,
    /// Why it ended.
    pub finish: FinishReason,
}

struct Sequence {
    row: usize,
    sampler: Sampler,
    /// Text tokens so far, for the repetition penalty.
    seen: Vec<i64>,
    last: i64,
}

impl Sequence {
    /// Sample `row` of a batch whose first has the number `first`.
    fn new(row: usize, first: usize, seen: Vec<i64>, config: &GenerateConfig) -> Self {
        Self {
            row,
            sampler: Sampler::new(config.sampling.clone(), (first + row) as u64),
            seen,
            last: 0,
        }
    }

    /// The next token of slot `slot` of the batch.
    fn draw(
        &mut self,
        next: &mut Next,
        slot: usize,
        config: &GenerateConfig,
    ) -> Result<i64, ModelError> {
        let id = match next {
            Next::Logits(rows) => {
                suppress(&mut rows[slot], config);
                self.sampler.next(&rows[slot], &self.seen)
            }
            Next::Chosen(ids) => ids[slot],
        };
        id.ok_or_else(|| {
            ModelError::Argument("no token is left to choose: all of them are suppressed".into())
        })
    }
}

/// What the next tokens of a batch come from.
pub(super) enum Next {
    /// Finite logits of each sequence. `batch` × `[vocabulary]`
    Logits(Vec<Vec<f32>>),
    /// Ids that the device chose; `None` where all are suppressed.
    Chosen(Vec<Option<i64>>),
}

impl<B: Backend> SqLlava<B> {
    /// Answers each sample. `on_token(sample, id)` sees every token as it comes and may end its
    /// answer; the token it ends at stays part of the answer.
    ///
    /// # Errors
    /// If a prompt does not fit into the context, its images do not match its ids, an argument is
    /// impossible, or the model computes NaN or infinity.
    pub fn generate(
        &self,
        samples: &[Sample<'_, B>],
        config: &GenerateConfig,
        on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ModelError> {
        config.sampling.validate()?;
        if samples.is_empty() {
            return Ok(vec![]);
        }
        let embeddings = self.embed(samples)?;
        let lengths: Vec<usize> = embeddings.iter().map(|e| e.dims()[0]).collect();
        // The window holds at least one more token, else there is nothing to generate.
        let limit = self.config.llama.context_window();
        if let Some(&tokens) = lengths.iter().find(|&&tokens| tokens >= limit) {
            return Err(ModelError::ContextOverflow { tokens, limit });
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padding: Vec<usize> = lengths.iter().map(|len| longest - len).collect();
        let (device, hidden) = (self.device(), self.config.llama.hidden_size);
        let padded: Vec<Tensor<B, 3>> = embeddings
            .into_iter()
            .zip(&padding)
            .map(|(embedding, &pad)| {
                let row = if pad == 0 {
                    embedding
                } else {
                    let zeros = Tensor::zeros([pad, hidden], (&device, embedding.dtype()));
                    Tensor::cat(vec![zeros, embedding], 0)
                };
                row.unsqueeze()
            })
            .collect();
        let mut cache = KvCache::new(self.language_model.model.layers.len(), padding);
        let logits = self
            .prefill(Tensor::cat(padded, 0), &mut cache)
            .map_err(|error| error.within(samples))?;
        let seen = samples.iter().map(|s| text_ids(s.ids)).collect();
        self.decode(logits, cache, (0, seen), config, on_token)
    }

    /// Runs tokens after those in the cache and returns the logits of the last position only.
    /// `[batch, tokens, hidden]` → `batch` × `[vocabulary]`
    ///
    /// # Errors
    /// If they are not finite; the cache cannot be used after that.
    pub(super) fn prefill(
        &self,
        embeddings: Tensor<B, 3>,
        cache: &mut KvCache<B>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let past = cache.len();
        let given = embeddings.clone();
        let (last, logits) = self.last_logits(embeddings, cache);
        self.finite(past, given, last, logits, cache)
    }

    /// The last position's hidden states and logits. `[batch, tokens, hidden]` → `[batch, hidden]`,
    /// `[batch, vocabulary]`
    fn last_logits(
        &self,
        embeddings: Tensor<B, 3>,
        cache: &mut KvCache<B>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let [batch, tokens, width] = embeddings.dims();
        let padding = cache.padding().to_vec();
        let llama = &self.language_model;
        let hidden = llama.forward_layers(embeddings, &padding, Some(cache));
        let last = hidden.slice([0..batch, tokens - 1..tokens, 0..width]);
        let last = last.reshape([batch, width]);
        (last.clone(), llama.logits(last))
    }

    /// Logits on the host, of embeddings behind `past` tokens; or what is not finite.
    fn finite(
        &self,
        past: usize,
        given: Tensor<B, 3>,
        last: Tensor<B, 2>,
        logits: Tensor<B, 2>,
        cache: &mut KvCache<B>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let logits = rows(logits)?;
        // Int8 and int4 on the CPU round their inputs to integers, where NaN becomes 0.
        let rounded = is_native::<B>() && !(is_finite(&given) && is_finite(&last));
        if !rounded && logits.iter().all(|row| all_finite(row)) {
            return Ok(logits);
        }
        cache.truncate(past);
        Err(self.first_not_finite(given, last, &logits, cache))
    }

    /// The error of the first sample of a batch whose numbers are not finite.
    fn first_not_finite(
        &self,
        embeddings: Tensor<B, 3>,
        last: Tensor<B, 2>,
        logits: &[Vec<f32>],
        cache: &mut KvCache<B>,
    ) -> ModelError {
        let [_, tokens, width] = embeddings.dims();
        let sample = |row: usize| {
            embeddings
                .clone()
                .slice([row..row + 1, 0..tokens, 0..width])
        };
        let wrong = (0..logits.len()).find(|&row| {
            let last = last.clone().slice([row..row + 1, 0..width]);
            !(all_finite(&logits[row]) && is_finite(&last) && is_finite(&sample(row)))
        });
        let row = wrong.unwrap_or(0);
        let padding = cache.padding()[row];
        cache.select(&[row], &self.device());
        let origin = self.text_origin(sample(row), padding, cache);
        self.not_finite(row, origin)
    }

    /// Generates after what the cache holds. `first` is the number of the first sample, by which
    /// `on_token` and the draws know it.
    pub(super) fn decode(
        &self,
        logits: Vec<Vec<f32>>,
        mut cache: KvCache<B>,
        (first, seen): (usize, Vec<Vec<i64>>),
        config: &GenerateConfig,
        on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ModelError> {
        let device = self.device();
        let limit = self.config.llama.context_window();
        let unfinished = Generation {
            ids: vec![],
            finish: FinishReason::Length,
        };
        let mut generations = vec![unfinished; seen.len()];
        let mut running: Vec<Sequence> = seen
            .into_iter()
            .enumerate()
            .map(|(row, seen)| Sequence::new(row, first, seen, config))
            .collect();
        if config.max_new_tokens == 0 {
            return Ok(generations);
        }
        let mut next = Next::Logits(logits);
        let likeliest = self.likeliest(config);
        // The batch's last tokens, where the device chose them.
        let mut chosen: Option<Tensor<B, 1, Int>> = None;
        loop {
            let mut kept = Vec::with_capacity(running.len());
            for (slot, sequence) in running.iter_mut().enumerate() {
                let id = sequence.draw(&mut next, slot, config)?;
                let generation = &mut generations[sequence.row];
                if config.stop_ids.contains(&id) {
                    generation.finish = FinishReason::Stop;
                    continue;
                }
                generation.ids.push(id);
                sequence.seen.push(id);
                sequence.last = id;
                if on_token(first + sequence.row, id).is_break() {
                    generation.finish = FinishReason::Callback;
                } else if generation.ids.len() >= config.max_new_tokens {
                    generation.finish = FinishReason::Length;
                } else if cache.len() - cache.padding()[slot] + 1 >= limit {
                    generation.finish = FinishReason::Context;
                } else {
                    kept.push(slot);
                }
            }
            if kept.is_empty() {
                return Ok(generations);
            }
            if kept.len() < running.len() {
                // Finished samples leave the batch.
                cache.select(&kept, &device);
                chosen = None;
                let mut slots = 0..;
                running.retain(|_| slots.next().is_some_and(|slot| kept.contains(&slot)));
            }
            (next, chosen) = self.step(&running, &mut cache, chosen, likeliest.as_ref())?;
        }
    }

    /// Chooses on the device where the likeliest token is wanted.
    fn likeliest(&self, config: &GenerateConfig) -> Option<Likeliest<B>> {
        if !config.sampling.is_greedy() {
            return None;
        }
        let vocabulary = self.language_model.vocabulary();
        let bar = |scores: &mut [f32]| suppress(scores, config);
        Likeliest::on_gpu(vocabulary, bar, &self.device())
    }

    /// What follows the last token of each running sequence, and the chosen ids where they are on
    /// the device; `last` are such ids of the step before.
    fn step(
        &self,
        running: &[Sequence],
        cache: &mut KvCache<B>,
        last: Option<Tensor<B, 1, Int>>,
        likeliest: Option<&Likeliest<B>>,
    ) -> Result<(Next, Option<Tensor<B, 1, Int>>), ModelError> {
        let ids = last.unwrap_or_else(|| {
            let last: Vec<i64> = running.iter().map(|s| s.last).collect();
            Tensor::from_data(last.as_slice(), &self.device())
        });
        let embedded = self.language_model.embed(ids).unsqueeze_dim::<3>(1);
        let (past, given) = (cache.len(), embedded.clone());
        let (last, logits) = self.last_logits(embedded, cache);
        let chosen = likeliest.and_then(|likeliest| likeliest.choose(logits.clone()));
        if let Some((ids, choices)) = chosen
            && !choices.contains(&Choice::NotFinite)
        {
            let id = |choice| match choice {
                Choice::Token(id) => Some(id),
                Choice::NoneLeft | Choice::NotFinite => None,
            };
            let next = Next::Chosen(choices.into_iter().map(id).collect());
            return Ok((next, Some(ids)));
        }
        let logits = self.finite(past, given, last, logits, cache);
        let logits = logits.map_err(|error| {
            let rows: Vec<usize> = running.iter().map(|sequence| sequence.row).collect();
            error.of_sample(&rows)
        })?;
        Ok((Next::Logits(logits), None))
    }
}

fn suppress(scores: &mut [f32], config: &GenerateConfig) {
    if let Some(vocabulary) = config.vocabulary.filter(|&v| v < scores.len()) {
        scores[vocabulary..].fill(f32::NEG_INFINITY);
    }
    for &id in &config.suppressed {
        if let Some(score) = usize::try_from(id).ok().and_then(|id| scores.get_mut(id)) {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn rows<B: Backend>(logits: Tensor<B, 2>) -> Result<Vec<Vec<f32>>, ModelError> {
    let [_, width] = logits.dims();
    let values: Vec<f32> = logits
        .into_data()
        .convert::<f32>()
        .into_vec()
        .map_err(|e| ModelError::Argument(format!("logits could not be read back: {e:?}")))?;
    if values.len() == width {
        return Ok(vec![values]);
    }
    Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
}

/// Ids of text, without those of images.
pub(super) fn text_ids(ids: &[i64]) -> Vec<i64> {
    ids.iter().copied().filter(|&id| id >= 0).collect()
}
