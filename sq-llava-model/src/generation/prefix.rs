//! Prompts that begin alike: their common prefix is run once and continued several times.

use std::ops::ControlFlow;

use burn::tensor::backend::Backend;

use crate::error::ModelError;
use crate::generation::generate::{GenerateConfig, Generation, text_ids};
use crate::language::cache::KvCache;
use crate::sq_llava::{Sample, SqLlava};

/// Keys and values that the continuations of one prefix hold at a time, in bytes: 4 GiB. Those that
/// do not fit wait until others are done.
pub(crate) const CACHE_BYTES: usize = 4 << 30;

/// A prefix that is already in the cache, so that prompts which begin alike run it once.
#[derive(Debug, Clone)]
pub struct Prefix<B: Backend> {
    pub(super) cache: KvCache<B>,
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

impl<B: Backend> SqLlava<B> {
    /// Runs a prompt and keeps its keys and values, to continue it several times.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn prefix(&self, sample: &Sample<'_, B>) -> Result<Prefix<B>, ModelError> {
        let embedding = self.embed(std::slice::from_ref(sample))?.remove(0);
        let (tokens, limit) = (embedding.dims()[0], self.config.llama.context_window());
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
        let limit = self.config.llama.context_window();
        let tokens = prefix.len() + ids.len();
        if tokens >= limit {
            return Err(ModelError::ContextOverflow { tokens, limit });
        }
        let logits = self.prefill(embedding.unsqueeze::<3>(), &mut prefix.cache)?;
        prefix.logits = logits.concat();
        prefix.ids.extend_from_slice(ids);
        Ok(())
    }

    /// Continues one prefix `n` times, as many at once as keep their keys and values in 4 GiB; the
    /// draws of each are its own.
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

    /// [`Self::continue_prefix`] with another limit on the bytes of keys and values; one
    /// continuation runs in any case. The answers do not depend on it, but for the rounding of
    /// quantised weights ([`QuantFormat`](crate::kernels::blocks::QuantFormat)).
    ///
    /// # Errors
    /// As [`Self::continue_prefix`].
    pub(crate) fn continue_prefix_within(
        &self,
        bytes: usize,
        prefix: &Prefix<B>,
        n: usize,
        config: &GenerateConfig,
        on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ModelError> {
        config.sampling.validate()?;
        let limit = self.config.llama.context_window();
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
        let tokens = tokens.min(llama.context_window());
        let each = 2 * width * tokens * size_of::<f32>();
        (CACHE_BYTES / each.max(1)).max(1)
    }
}
