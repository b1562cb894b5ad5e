//! Autoregressive generation, one sample or a batch.

use std::ops::ControlFlow;

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use crate::error::ModelError;
use crate::generation::sampling::{Sampler, Sampling};
use crate::kernels::blocks::is_native;
use crate::language::cache::KvCache;
use crate::ops::finite::{all_finite, is_finite};
use crate::ops::pool::on_pool;
use crate::sq_llava::{Sample, SqLlava};

/// When and how to generate.
#[derive(Debug, Clone)]
pub struct GenerateConfig {
    /// Most tokens of an answer.
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

/// Keys and values that the continuations of one prefix hold at a time, in bytes: 4 GiB. Those that
/// do not fit wait until others are done.
pub const CACHE_BYTES: usize = 4 << 30;

/// A generated answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<i64>,
    /// Why it ended.
    pub finish: FinishReason,
}

/// A prefix that is already in the cache: prompts that begin alike are run once.
#[derive(Debug, Clone)]
pub struct Prefix<B: Backend> {
    cache: KvCache<B>,
    /// Of the token that follows, `[vocabulary]`.
    logits: Vec<f32>,
    ids: Vec<i64>,
}

impl<B: Backend> Prefix<B> {
    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether nothing is in the cache.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }
}

struct Sequence {
    row: usize,
    sampler: Sampler,
    /// Text tokens so far, for the repetition penalty.
    seen: Vec<i64>,
    last: i64,
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
        let limit = self.config.llama.max_position_embeddings;
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
                    let zeros = Tensor::zeros([pad, hidden], (&device, DType::F32));
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

    /// Runs a prompt and keeps its keys and values, to continue it several times.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn prefix(&self, sample: &Sample<'_, B>) -> Result<Prefix<B>, ModelError> {
        let embedding = self.embed(std::slice::from_ref(sample))?.remove(0);
        let (tokens, limit) = (
            embedding.dims()[0],
            self.config.llama.max_position_embeddings,
        );
        if tokens >= limit {
            return Err(ModelError::ContextOverflow { tokens, limit });
        }
        let mut cache = KvCache::new(self.language_model.model.layers.len(), vec![0]);
        let logits = self
            .prefill(embedding.unsqueeze::<3>(), &mut cache)
            .map_err(|error| error.within(std::slice::from_ref(sample)))?;
        Ok(Prefix {
            cache,
            logits: logits.concat(),
            ids: text_ids(sample.ids),
        })
    }

    /// Adds text to a prefix.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn extend(&self, prefix: &mut Prefix<B>, ids: &[i64]) -> Result<(), ModelError> {
        if ids.is_empty() {
            return Ok(());
        }
        let sample = Sample {
            ids,
            images: vec![],
        };
        let embedding = self.embed(std::slice::from_ref(&sample))?.remove(0);
        let limit = self.config.llama.max_position_embeddings;
        let tokens = prefix.len() + ids.len();
        if tokens >= limit {
            return Err(ModelError::ContextOverflow { tokens, limit });
        }
        let logits = self.prefill(embedding.unsqueeze::<3>(), &mut prefix.cache)?;
        prefix.logits = logits.concat();
        prefix.ids.extend_from_slice(ids);
        Ok(())
    }

    /// Continues one prefix `n` times, as many at once as fit into [`CACHE_BYTES`]; the draws of
    /// each are its own.
    ///
    /// # Errors
    /// If an argument is impossible, or the model computes NaN or infinity.
    pub fn continue_prefix(
        &self,
        prefix: &Prefix<B>,
        n: usize,
        config: &GenerateConfig,
        on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ModelError> {
        self.continue_prefix_within(CACHE_BYTES, prefix, n, config, on_token)
    }

    /// [`Self::continue_prefix`] with another limit on the bytes of keys and values; one continuation
    /// runs in any case. The answers do not depend on it, but for the rounding of quantised weights
    /// ([`QuantFormat`](crate::kernels::blocks::QuantFormat)).
    ///
    /// # Errors
    /// As [`Self::continue_prefix`].
    pub fn continue_prefix_within(
        &self,
        bytes: usize,
        prefix: &Prefix<B>,
        n: usize,
        config: &GenerateConfig,
        on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ModelError> {
        config.sampling.validate()?;
        let limit = self.config.llama.max_position_embeddings;
        let tokens = prefix.len().saturating_add(config.max_new_tokens);
        let each = prefix.cache.sample_bytes(tokens.min(limit)).max(1);
        let at_once = (bytes / each).max(1);
        let mut all = Vec::new();
        for first in (0..n).step_by(at_once) {
            let rows = at_once.min(n - first);
            let logits = vec![prefix.logits.clone(); rows];
            let seen = vec![prefix.ids.clone(); rows];
            let cache = prefix.cache.repeat(rows);
            all.extend(self.decode(logits, cache, (first, seen), config, on_token)?);
        }
        Ok(all)
    }

    /// Samples of `tokens` tokens whose keys and values fit into [`CACHE_BYTES`], at least one.
    pub(crate) fn most_at_once(&self, tokens: usize) -> usize {
        let llama = &self.config.llama;
        let width = llama.num_hidden_layers * llama.num_key_value_heads * llama.head_dim();
        let tokens = tokens.min(llama.max_position_embeddings);
        let each = 2 * width * tokens * size_of::<f32>();
        (CACHE_BYTES / each.max(1)).max(1)
    }

    /// Runs tokens behind what the cache holds and returns the logits of the last position only.
    /// `[batch, tokens, hidden]` → `batch` × `[vocabulary]`
    ///
    /// # Errors
    /// If they are not finite; the cache is spoilt then.
    fn prefill(
        &self,
        embeddings: Tensor<B, 3>,
        cache: &mut KvCache<B>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let [batch, tokens, width] = embeddings.dims();
        let (past, padding) = (cache.len(), cache.padding().to_vec());
        let llama = &self.language_model;
        let given = embeddings.clone();
        let (last, logits) = on_pool::<B, _>(|| {
            let hidden = llama.forward_layers(embeddings, &padding, Some(cache));
            let last = hidden.slice([0..batch, tokens - 1..tokens, 0..width]);
            let last = last.reshape([batch, width]);
            (last.clone(), llama.logits(last))
        });
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

    /// Generates behind what the cache holds. `first` is the number of the first sample: `on_token`
    /// and the draws know it by that.
    fn decode(
        &self,
        mut logits: Vec<Vec<f32>>,
        mut cache: KvCache<B>,
        (first, seen): (usize, Vec<Vec<i64>>),
        config: &GenerateConfig,
        on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ModelError> {
        let device = self.device();
        let limit = self.config.llama.max_position_embeddings;
        let unfinished = Generation {
            ids: vec![],
            finish: FinishReason::Length,
        };
        let mut generations = vec![unfinished; seen.len()];
        let mut running: Vec<Sequence> = seen
            .into_iter()
            .enumerate()
            .map(|(row, seen)| Sequence {
                row,
                sampler: Sampler::new(config.sampling.clone(), (first + row) as u64),
                seen,
                last: 0,
            })
            .collect();
        if config.max_new_tokens == 0 {
            return Ok(generations);
        }
        loop {
            let mut kept = Vec::with_capacity(running.len());
            for (slot, sequence) in running.iter_mut().enumerate() {
                let scores = &mut logits[slot];
                suppress(scores, config);
                let id = sequence
                    .sampler
                    .next(scores, &sequence.seen)
                    .ok_or_else(|| {
                        ModelError::Argument(
                            "no token is left to choose: all of them are suppressed".into(),
                        )
                    })?;
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
                let mut slot = 0;
                running.retain(|_| {
                    slot += 1;
                    kept.contains(&(slot - 1))
                });
            }
            let last: Vec<i64> = running.iter().map(|s| s.last).collect();
            let ids = Tensor::<B, 1, Int>::from_data(last.as_slice(), &device);
            let embedded = self.language_model.embed(ids).unsqueeze_dim::<3>(1);
            logits = self.prefill(embedded, &mut cache).map_err(|error| {
                let rows: Vec<usize> = running.iter().map(|sequence| sequence.row).collect();
                error.of_sample(&rows)
            })?;
        }
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
        .to_vec()
        .map_err(|e| ModelError::Argument(format!("logits could not be read back: {e:?}")))?;
    Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
}

fn text_ids(ids: &[i64]) -> Vec<i64> {
    ids.iter().copied().filter(|&id| id >= 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SqLlavaConfig;
    use burn_flex::Flex;

    fn model() -> SqLlava<Flex> {
        SqLlavaConfig::preset("tiny")
            .unwrap()
            .init(&Default::default())
            .unwrap()
    }

    fn sample(ids: &[i64]) -> Sample<'_, Flex> {
        Sample {
            ids,
            images: vec![],
        }
    }

    fn go_on(_: usize, _: i64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn a_batch_of_unequal_prompts_answers_as_each_alone() {
        let model = model();
        let prompts: [&[i64]; 3] = [&[1, 5, 9, 40, 7, 8], &[1, 77], &[1, 3, 200, 12]];
        let config = GenerateConfig::greedy(12);
        let samples: Vec<_> = prompts.iter().map(|ids| sample(ids)).collect();
        let batch = model.generate(&samples, &config, &mut go_on).unwrap();
        for (sample, batched) in samples.iter().zip(&batch) {
            let alone = model
                .generate(std::slice::from_ref(sample), &config, &mut go_on)
                .unwrap();
            assert_eq!(&alone[0], batched);
            assert_eq!(batched.ids.len(), 12);
        }
    }

    #[test]
    fn samples_that_end_early_leave_the_others_unchanged() {
        let model = model();
        let config = GenerateConfig {
            sampling: Sampling::asking(3),
            ..GenerateConfig::greedy(20)
        };
        let samples = [sample(&[1, 5, 9]), sample(&[1, 6, 9])];
        let full = model.generate(&samples, &config, &mut go_on).unwrap();
        let mut count = 0;
        let cut = model
            .generate(&samples, &config, &mut |row, _| {
                count += usize::from(row == 0);
                if row == 0 && count == 4 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
        assert_eq!(cut[0].finish, FinishReason::Callback);
        assert_eq!(cut[0].ids, full[0].ids[..4]);
        assert_eq!(cut[1], full[1]);
    }

    #[test]
    fn a_shared_prefix_gives_what_the_whole_prompt_gives() {
        let model = model();
        let ids = [1, 5, 9, 40, 7, 8, 100, 33];
        let config = GenerateConfig::greedy(10);
        let whole = model
            .generate(&[sample(&ids)], &config, &mut go_on)
            .unwrap();
        let mut prefix = model.prefix(&sample(&ids[..5])).unwrap();
        model.extend(&mut prefix, &ids[5..]).unwrap();
        let continued = model
            .continue_prefix(&prefix, 2, &config, &mut go_on)
            .unwrap();
        assert_eq!(continued[0], whole[0]);
        assert_eq!(continued[1], whole[0]);
    }

    #[test]
    fn fault_26_continuations_within_little_memory_are_the_same() {
        let model = model();
        let prefix = model.prefix(&sample(&[1, 5, 9, 40, 7])).unwrap();
        let config = GenerateConfig {
            sampling: Sampling::asking(3),
            ..GenerateConfig::greedy(6)
        };
        let run = |bytes| {
            let mut tokens = vec![vec![]; 7];
            let mut most = 0;
            let all = model.continue_prefix_within(bytes, &prefix, 7, &config, &mut |row, id| {
                tokens[row].push(id);
                // Rows that are under way: one that has begun and is not full.
                let running = tokens.iter().filter(|t| (1..6).contains(&t.len()));
                most = most.max(running.count());
                ControlFlow::Continue(())
            });
            (all.unwrap(), tokens, most)
        };
        // 3 layers, 2 heads of 16, 256 tokens, f32, keys and values.
        let each = 3 * 2 * 16 * 256 * 4 * 2;
        assert_eq!(prefix.cache.sample_bytes(11), each);
        // The context's 512 tokens at most.
        assert_eq!(model.most_at_once(usize::MAX), CACHE_BYTES / (2 * each));
        let whole = run(usize::MAX);
        assert!(whole.0.iter().any(|one| *one != whole.0[0]), "they differ");
        for (bytes, at_once) in [(0, 1), (each, 1), (3 * each + 1, 3)] {
            let (generations, tokens, most) = run(bytes);
            assert_eq!((&generations, &tokens), (&whole.0, &whole.1), "{bytes}");
            assert!(most <= at_once, "{most} at once in {bytes} bytes");
        }
    }

    #[test]
    fn suppressed_tokens_never_come_and_stop_tokens_end() {
        let model = model();
        let free = GenerateConfig::greedy(8);
        let samples = [sample(&[1, 5, 9])];
        let first = model.generate(&samples, &free, &mut go_on).unwrap()[0]
            .ids
            .clone();
        let suppressed = GenerateConfig {
            suppressed: vec![first[0]],
            ..free.clone()
        };
        let other = model.generate(&samples, &suppressed, &mut go_on).unwrap();
        assert!(!other[0].ids.contains(&first[0]));
        let stopping = GenerateConfig {
            stop_ids: vec![first[0]],
            ..free
        };
        let none = model.generate(&samples, &stopping, &mut go_on).unwrap();
        assert_eq!(none[0].finish, FinishReason::Stop);
        assert!(none[0].ids.is_empty());
    }

    #[test]
    fn a_full_context_is_an_error_and_a_filling_one_ends() {
        let model = model();
        let long = vec![5; 512];
        let error = model
            .generate(&[sample(&long)], &GenerateConfig::greedy(1), &mut go_on)
            .unwrap_err();
        assert!(matches!(
            error,
            ModelError::ContextOverflow {
                tokens: 512,
                limit: 512
            }
        ));
        let nearly = vec![5; 508];
        let cut = model
            .generate(&[sample(&nearly)], &GenerateConfig::greedy(50), &mut go_on)
            .unwrap();
        assert_eq!(cut[0].finish, FinishReason::Context);
        assert_eq!(cut[0].ids.len(), 4);
    }
}
