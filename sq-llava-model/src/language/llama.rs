//! The decoder: LLaMA's (`modeling_llama.py` in transformers: RMSNorm, rotary positions,
//! grouped-query attention, SwiGLU) with what other families add, as their description says
//! ([`crate::config::Family::preset`]).

#[cfg(feature = "gpu")]
mod decode;
mod layer;
mod new_tokens;
#[cfg(feature = "cpu")]
mod step;

use burn::module::Module;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};

use crate::config::{Family, LlamaConfig};
use crate::language::cache::KvCache;
use crate::ops::attention::AttentionMask;
use crate::ops::cross_entropy::{joined, joined_token_losses, token_losses};
use crate::ops::embedding::Embedding;
use crate::ops::hidden;
use crate::ops::linear::{Linear, product};
use crate::ops::norm::RmsNorm;
use crate::ops::rope::{RotaryEmbedding, Rotation};

pub use layer::{LlamaAttention, LlamaLayer, LlamaMlp};
pub use new_tokens::NewTokens;

/// The decoder with its output head.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// Embedding, layers and last norm.
    pub model: LlamaModel<B>,
    /// Output head; `None` when it is tied to the embedding.
    pub lm_head: Option<Linear<B>>,
    /// Trainable rows of the role tokens of template `sq`.
    pub new_tokens: Option<NewTokens<B>>,
    #[module(skip)]
    rope: RotaryEmbedding,
    /// Frequencies in the layers with a window, where they differ.
    #[module(skip)]
    local_rope: Option<RotaryEmbedding>,
    /// Tokens that layers with a window see.
    #[module(skip)]
    window: Option<usize>,
    /// Length from which on all keys and values are computed again.
    #[module(skip)]
    anew_behind: Option<usize>,
    #[module(skip)]
    final_logit_softcapping: Option<f64>,
    /// Factor of token embeddings.
    #[module(skip)]
    embedding_scale: Option<f64>,
}

/// Embedding, layers and last norm.
#[derive(Module, Debug)]
pub struct LlamaModel<B: Backend> {
    /// Token embedding `[vocab_size, hidden]`.
    pub embed_tokens: Embedding<B>,
    /// Decoder layers.
    pub layers: Vec<LlamaLayer<B>>,
    /// Norm before the head.
    pub norm: RmsNorm<B>,
}

impl LlamaConfig {
    /// A decoder with lazily drawn weights.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Llama<B> {
        let layers = (0..self.num_hidden_layers).map(|layer| self.init_layer(layer, device));
        let hidden = self.hidden_size;
        let head = || Linear::init(hidden, self.vocab_size, false, device);
        let rope = |theta, scaling| RotaryEmbedding::new(self.rotated_width(), theta, scaling);
        let global = rope(self.rope_theta, self.rope_scaling.as_ref());
        Llama {
            model: LlamaModel {
                embed_tokens: Embedding::init(self.vocab_size, hidden, device),
                layers: layers.collect(),
                norm: self.norm(hidden, device),
            },
            lm_head: (!self.tie_word_embeddings).then(head),
            new_tokens: None,
            // Other classes of transformers go on behind the keys that they have.
            anew_behind: global
                .switches_behind()
                .filter(|_| self.family == Family::Phi3),
            rope: global,
            local_rope: self.rope_local_base_freq.map(|theta| rope(theta, None)),
            window: self.sliding_window.as_ref().map(|window| window.tokens),
            final_logit_softcapping: self.final_logit_softcapping,
            embedding_scale: self.embedding_scale.then(|| (hidden as f64).sqrt()),
        }
    }
}

impl<B: Backend> Llama<B> {
    /// Number of token ids that the model knows.
    pub fn vocabulary(&self) -> usize {
        let base = self.model.embed_tokens.rows();
        match &self.new_tokens {
            Some(new) => base.max(new.start + new.rows()),
            None => base,
        }
    }

    /// The layers' linears by their paths in the decoder.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Linear<B>)> {
        let layers = self.model.layers.iter().enumerate();
        layers.flat_map(|(index, layer)| {
            let named = move |(path, linear)| (format!("model.layers.{index}.{path}"), linear);
            layer.linears().map(named)
        })
    }

    /// [`Self::linears`], mutable.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear<B>)> {
        let layers = self.model.layers.iter_mut().enumerate();
        layers.flat_map(|(index, layer)| {
            let named = move |(path, linear)| (format!("model.layers.{index}.{path}"), linear);
            layer.linears_mut().map(named)
        })
    }

    /// What the states between layers are stored in ([`hidden::dtype`]).
    pub fn hidden_dtype(&self) -> DType {
        hidden::dtype::<B>(self.model.embed_tokens.weight.dtype())
    }

    /// Embeddings of token ids, as they enter the first layer. `[n]` → `[n, hidden]`, in
    /// [`Self::hidden_dtype`]
    pub fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let rows = self.embedding_rows(ids);
        let scaled = match self.embedding_scale {
            Some(scale) => rows.mul_scalar(scale),
            None => rows,
        };
        scaled.cast(self.hidden_dtype())
    }

    /// `[n]` → `[n, hidden]`, f32
    fn embedding_rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let Some(new) = &self.new_tokens else {
            return self.model.embed_tokens.forward(ids).cast(DType::F32);
        };
        let last = self.model.embed_tokens.rows() as i64 - 1;
        let (start, rows) = (new.start as i64, new.rows());
        let base = self.model.embed_tokens.forward(ids.clone().clamp_max(last));
        // A one-hot product, so that the few new rows get gradients and the table needs none.
        let offsets = Tensor::<B, 1, Int>::arange(0..rows as i64, &ids.device());
        let one_hot = ids
            .sub_scalar(start)
            .unsqueeze_dim::<2>(1)
            .equal(offsets.unsqueeze_dim::<2>(0)) // [n, rows]
            .float()
            .cast(DType::F32);
        let is_new = one_hot.clone().sum_dim(1); // [n, 1]
        base.cast(DType::F32) * (is_new.neg() + 1.0)
            + one_hot.matmul(new.embed.val().cast(DType::F32))
    }

    /// Runs the layers over embeddings; new keys and values are added to the cache.
    ///
    /// `padding` counts the padding tokens at the left of each sample; with a cache they are the
    /// cache's. When a text becomes longer than its rotary frequencies hold for, what is in the
    /// cache is computed again, as transformers does for Phi-3.
    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`, before the last norm.
    pub fn forward_layers(
        &self,
        mut hidden: Tensor<B, 3>,
        padding: &[usize],
        mut cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        let [batch, new, width] = hidden.dims();
        if let (Some(cache), Some(length)) = (cache.as_mut(), self.anew_behind) {
            hidden = cache.take_in(hidden, length);
        }
        let [_, tokens, _] = hidden.dims();
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let context = self.context(padding, past, tokens, &hidden.device());
        #[cfg(feature = "cpu")]
        if let Some(cache) = cache.as_mut()
            && let Some(hidden) = self.step(&hidden, &context, cache)
        {
            return hidden;
        }
        hidden = self.run_layers(hidden, &context, cache);
        match tokens - new {
            0 => hidden,
            old => hidden.slice([0..batch, old..tokens, 0..width]),
        }
    }

    /// Runs the layers over whole rows at the places of a context.
    /// `[rows, tokens, hidden]` → `[rows, tokens, hidden]`, before the last norm.
    pub fn forward_at(&self, hidden: Tensor<B, 3>, context: &LayerContext<B>) -> Tensor<B, 3> {
        self.run_layers(hidden, context, None)
    }

    fn run_layers(
        &self,
        hidden: Tensor<B, 3>,
        context: &LayerContext<B>,
        mut cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        let layers = self.model.layers.iter().enumerate();
        layers.fold(hidden, |hidden, (index, layer)| {
            let cache = cache.as_mut().map(|cache| cache.layer(index));
            layer.forward(hidden, context, cache)
        })
    }

    /// Positions and mask of `tokens` new tokens after `past` earlier ones, shared by all layers.
    pub fn context(
        &self,
        padding: &[usize],
        past: usize,
        tokens: usize,
        device: &B::Device,
    ) -> LayerContext<B> {
        // Positions count from the first token that is not padding.
        let row = |pad: usize| {
            (past..past + tokens)
                .map(|t| t.saturating_sub(pad))
                .collect()
        };
        let positions: Vec<Vec<usize>> = if padding.windows(2).all(|w| w[0] == w[1]) {
            vec![row(padding.first().copied().unwrap_or(0))]
        } else {
            padding.iter().map(|&pad| row(pad)).collect()
        };
        self.context_at(&positions, device, |window| {
            AttentionMask::sliding(padding, past, tokens, window, device)
        })
    }

    /// Positions and mask of rows of `tokens`, in each of which samples of these lengths stand one
    /// behind the other, or one alone, and padding behind the last. Each sees itself alone, has
    /// positions from 0 on, and frequencies of its own length.
    pub fn packed_context(
        &self,
        lengths: &[Vec<usize>],
        tokens: usize,
        device: &B::Device,
    ) -> LayerContext<B> {
        let alone = lengths.iter().all(|row| row.len() <= 1);
        let positions: Vec<Vec<usize>> = if alone && !self.rope.depends_on_length() {
            vec![(0..tokens).collect()]
        } else {
            let row = |lengths: &Vec<usize>| {
                let padding = tokens - lengths.iter().sum::<usize>();
                let texts = lengths.iter().chain(std::iter::once(&padding));
                texts.flat_map(|&length| 0..length).collect()
            };
            lengths.iter().map(row).collect()
        };
        self.context_at(&positions, device, |window| {
            AttentionMask::packed(lengths, tokens, window, device)
        })
    }

    /// `mask` makes the mask of a window.
    fn context_at(
        &self,
        positions: &[Vec<usize>],
        device: &B::Device,
        mask: impl Fn(usize) -> AttentionMask<B>,
    ) -> LayerContext<B> {
        let local = self.local_rope.as_ref();
        LayerContext {
            rotation: self.rope.rotation(positions, device),
            local_rotation: local.map(|rope| rope.rotation(positions, device)),
            mask: mask(usize::MAX),
            sliding_mask: self.window.map(mask),
        }
    }

    /// Last norm and head. `[n, hidden]` → `[n, vocabulary]`, f32
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        // The head's product of few rows keeps f32: in bf16 the largest two are often one number.
        let logits = match self.scores(hidden.cast(DType::F32)) {
            (base, None) => base,
            (base, Some((start, new))) => joined(base, new, start),
        };
        self.softened(logits)
    }

    /// Cross-entropy of [`Self::logits`] in nats, in f32; `ids [n]`, each inside the vocabulary. The
    /// logits of new tokens and the others are not joined for it, and are in the dtype of `hidden`.
    /// `[n, hidden]` → `[n]`
    pub fn token_losses(&self, hidden: Tensor<B, 2>, ids: &[i64]) -> Tensor<B, 1> {
        match self.scores(hidden) {
            (base, None) => token_losses(self.softened(base), ids),
            (base, Some((start, new))) => {
                joined_token_losses(self.softened(base), self.softened(new), start, ids)
            }
        }
    }

    /// The soft limit of the logits, if there is one.
    fn softened(&self, logits: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.final_logit_softcapping {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }

    /// Products with the head's rows, and with those of new tokens, which have the ids from the
    /// number on. `[n, hidden]` → `[n, base]`, `[n, rows]`
    fn scores(&self, hidden: Tensor<B, 2>) -> (Tensor<B, 2>, Option<(usize, Tensor<B, 2>)>) {
        let hidden = self.model.norm.forward(hidden);
        let base = match &self.lm_head {
            Some(head) => head.forward(hidden.clone()),
            None => self.model.embed_tokens.scores(hidden.clone()),
        };
        let new = self.new_tokens.as_ref().map(|new| {
            let rows = new.lm_head.as_ref().unwrap_or(&new.embed);
            (new.start, product(hidden, rows.val()))
        });
        (base, new)
    }
}

/// What all layers of one forward pass share.
#[derive(Debug, Clone)]
pub struct LayerContext<B: Backend> {
    rotation: Rotation<B>,
    /// Of layers with a window, where it differs.
    local_rotation: Option<Rotation<B>>,
    mask: AttentionMask<B>,
    /// Of layers with a window.
    sliding_mask: Option<AttentionMask<B>>,
}

impl<B: AutodiffBackend> LayerContext<B> {
    /// The same without a graph.
    pub fn inner(&self) -> LayerContext<B::InnerBackend> {
        LayerContext {
            rotation: self.rotation.inner(),
            local_rotation: self.local_rotation.as_ref().map(Rotation::inner),
            mask: self.mask.inner(),
            sliding_mask: self.sliding_mask.as_ref().map(AttentionMask::inner),
        }
    }
}
