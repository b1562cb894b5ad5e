//! The decoder: LLaMA's (`modeling_llama.py` in transformers: RMSNorm, rotary positions,
//! grouped-query attention, SwiGLU) with what other families add, as their description says
//! ([`crate::config::Family::preset`]).

mod new_tokens;

use burn::module::Module;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};

use crate::config::{LlamaConfig, NormPlacement, QkNorm};
use crate::language::cache::{KvCache, LayerCache};
use crate::ops::activation::Activation;
use crate::ops::attention::{AttentionMask, ScoreOptions, attention_with, join_heads, split_heads};
use crate::ops::cat::cat;
use crate::ops::embedding::Embedding;
use crate::ops::linear::{Linear, product, together};
use crate::ops::norm::RmsNorm;
use crate::ops::rope::{RotaryEmbedding, Rotation};

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

/// One decoder layer. In LLaMA the norms stand before attention and MLP, and the second one is
/// `post_attention_layernorm`; where norms stand behind the parts that one follows the attention,
/// and the MLP has norms of its own.
#[derive(Module, Debug)]
pub struct LlamaLayer<B: Backend> {
    /// Norm before the attention.
    pub input_layernorm: Option<RmsNorm<B>>,
    /// Attention.
    pub self_attn: LlamaAttention<B>,
    /// Norm before the MLP, or behind the attention.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Norm before the MLP, where the one above is behind the attention.
    pub pre_feedforward_layernorm: Option<RmsNorm<B>>,
    /// Norm behind the MLP.
    pub post_feedforward_layernorm: Option<RmsNorm<B>>,
    /// Gated MLP.
    pub mlp: LlamaMlp<B>,
    /// Whether it sees the last tokens only.
    #[module(skip)]
    slides: bool,
    /// Whether queries and keys rotate.
    #[module(skip)]
    rotates: bool,
}

/// Grouped-query attention.
#[derive(Module, Debug)]
pub struct LlamaAttention<B: Backend> {
    /// Queries.
    pub q_proj: Linear<B>,
    /// Keys.
    pub k_proj: Linear<B>,
    /// Values.
    pub v_proj: Linear<B>,
    /// Output.
    pub o_proj: Linear<B>,
    /// Norm of the queries.
    pub q_norm: Option<RmsNorm<B>>,
    /// Norm of the keys.
    pub k_norm: Option<RmsNorm<B>>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
    /// Whether the norms take all heads at once.
    #[module(skip)]
    joint_norm: bool,
    #[module(skip)]
    scores: ScoreOptions,
}

/// `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct LlamaMlp<B: Backend> {
    /// Gate.
    pub gate_proj: Linear<B>,
    /// Value.
    pub up_proj: Linear<B>,
    /// Output.
    pub down_proj: Linear<B>,
    #[module(skip)]
    act: Activation,
}

/// Paths of a layer's linears in the layer.
const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl LlamaConfig {
    /// A decoder with lazily drawn weights.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Llama<B> {
        let layers = (0..self.num_hidden_layers).map(|layer| self.init_layer(layer, device));
        let hidden = self.hidden_size;
        let head = || Linear::init(hidden, self.vocab_size, false, device);
        let rope = |theta, scaling| RotaryEmbedding::new(self.head_dim(), theta, scaling);
        Llama {
            model: LlamaModel {
                embed_tokens: Embedding::init(self.vocab_size, hidden, device),
                layers: layers.collect(),
                norm: self.norm(hidden, device),
            },
            lm_head: (!self.tie_word_embeddings).then(head),
            new_tokens: None,
            rope: rope(self.rope_theta, self.rope_scaling.as_ref()),
            local_rope: self.rope_local_base_freq.map(|theta| rope(theta, None)),
            window: self.sliding_window.as_ref().map(|window| window.tokens),
            final_logit_softcapping: self.final_logit_softcapping,
            embedding_scale: self.embedding_scale.then(|| (hidden as f64).sqrt()),
        }
    }

    fn norm<B: Backend>(&self, width: usize, device: &B::Device) -> RmsNorm<B> {
        RmsNorm::init_offset(width, self.rms_norm_eps, self.norm_offset, device)
    }

    fn init_layer<B: Backend>(&self, layer: usize, device: &B::Device) -> LlamaLayer<B> {
        let [q, k, v, o, gate, up, down] = self
            .linears()
            .map(|(name, i, o)| Linear::init(i, o, self.has_bias(name), device));
        let norm = |width: usize| self.norm(width, device);
        let hidden = self.hidden_size;
        let (before, behind) = match self.norm_placement {
            NormPlacement::Before => (true, false),
            NormPlacement::Behind => (false, true),
            NormPlacement::Around => (true, true),
        };
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let qk_norm = |heads: usize| match self.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some(norm(self.head_dim())),
            QkNorm::All => Some(norm(heads * self.head_dim())),
        };
        LlamaLayer {
            input_layernorm: before.then(|| norm(hidden)),
            self_attn: LlamaAttention {
                q_proj: q,
                k_proj: k,
                v_proj: v,
                o_proj: o,
                q_norm: qk_norm(heads),
                k_norm: qk_norm(kv_heads),
                heads,
                kv_heads,
                joint_norm: self.qk_norm == QkNorm::All,
                scores: ScoreOptions {
                    scale: self.query_pre_attn_scalar.map(|n| n.powf(-0.5)),
                    softcap: self.attn_logit_softcapping,
                },
            },
            post_attention_layernorm: norm(hidden),
            pre_feedforward_layernorm: (before && behind).then(|| norm(hidden)),
            post_feedforward_layernorm: behind.then(|| norm(hidden)),
            mlp: LlamaMlp {
                gate_proj: gate,
                up_proj: up,
                down_proj: down,
                act: self.hidden_act,
            },
            slides: self.slides(layer),
            rotates: !self.unrotated_layers.contains(&layer),
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

    /// [`Self::linears`], to change them.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear<B>)> {
        let layers = self.model.layers.iter_mut().enumerate();
        layers.flat_map(|(index, layer)| {
            let named = move |(path, linear)| (format!("model.layers.{index}.{path}"), linear);
            layer.linears_mut().map(named)
        })
    }

    /// Embeddings of token ids in f32, as they enter the first layer. `[n]` → `[n, hidden]`
    pub fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let rows = self.embedding_rows(ids);
        match self.embedding_scale {
            Some(scale) => rows.mul_scalar(scale),
            None => rows,
        }
    }

    /// `[n]` → `[n, hidden]`
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

    /// Runs the layers over embeddings; new keys and values go into the cache.
    ///
    /// `padding` counts the padding tokens at the left of each sample; with a cache they are the
    /// cache's. `[batch, tokens, hidden]` → `[batch, tokens, hidden]`, before the last norm.
    pub fn forward_layers(
        &self,
        mut hidden: Tensor<B, 3>,
        padding: &[usize],
        mut cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        let [_, tokens, _] = hidden.dims();
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let context = self.context(padding, past, tokens, &hidden.device());
        for (index, layer) in self.model.layers.iter().enumerate() {
            let cache = cache.as_mut().map(|cache| cache.layer(index));
            hidden = layer.forward(hidden, &context, cache);
        }
        hidden
    }

    /// Positions and mask of `tokens` new tokens behind `past`, shared by all layers.
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
        let local = self.local_rope.as_ref();
        LayerContext {
            rotation: self.rope.rotation(&positions, device),
            local_rotation: local.map(|rope| rope.rotation(&positions, device)),
            mask: AttentionMask::causal(padding, past, tokens, device),
            sliding_mask: self
                .window
                .map(|window| AttentionMask::sliding(padding, past, tokens, window, device)),
        }
    }

    /// Last norm and head. `[n, hidden]` → `[n, vocabulary]`, f32
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let logits = self.scores(hidden);
        match self.final_logit_softcapping {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }

    fn scores(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = self.model.norm.forward(hidden);
        let base = match &self.lm_head {
            Some(head) => head.forward(hidden.clone()),
            None => self.model.embed_tokens.scores(hidden.clone()),
        };
        let Some(new) = &self.new_tokens else {
            return base;
        };
        let rows = new.lm_head.as_ref().unwrap_or(&new.embed);
        let scores = product(hidden, rows.val());
        let [n, width] = base.dims();
        let (start, end) = (new.start, new.start + new.rows());
        let mut parts = vec![base.clone().slice([0..n, 0..start.min(width)]), scores];
        if end < width {
            parts.push(base.slice([0..n, end..width]));
        }
        cat(parts, 1)
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

impl<B: Backend> LlamaLayer<B> {
    /// The linears that can be adapted or quantised, by their paths in the layer.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear<B>)> {
        let (a, m) = (&self.self_attn, &self.mlp);
        LINEARS.into_iter().zip([
            &a.q_proj,
            &a.k_proj,
            &a.v_proj,
            &a.o_proj,
            &m.gate_proj,
            &m.up_proj,
            &m.down_proj,
        ])
    }

    /// [`Self::linears`], to change them.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear<B>)> {
        let (a, m) = (&mut self.self_attn, &mut self.mlp);
        LINEARS.into_iter().zip([
            &mut a.q_proj,
            &mut a.k_proj,
            &mut a.v_proj,
            &mut a.o_proj,
            &mut m.gate_proj,
            &mut m.up_proj,
            &mut m.down_proj,
        ])
    }

    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(
        &self,
        hidden: Tensor<B, 3>,
        context: &LayerContext<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let (rotation, mask) = self.place(context);
        let normed = match &self.input_layernorm {
            Some(norm) => norm.forward(hidden.clone()),
            None => hidden.clone(),
        };
        let attended = self.self_attn.forward(normed, rotation, mask, cache);
        let Some(behind) = &self.post_feedforward_layernorm else {
            let hidden = hidden + attended;
            let normed = self.post_attention_layernorm.forward(hidden.clone());
            return hidden + self.mlp.forward(normed);
        };
        let hidden = hidden + self.post_attention_layernorm.forward(attended);
        let normed = match &self.pre_feedforward_layernorm {
            Some(norm) => norm.forward(hidden.clone()),
            None => hidden.clone(),
        };
        hidden + behind.forward(self.mlp.forward(normed))
    }

    /// Rotation and mask of this layer.
    fn place<'a>(
        &self,
        context: &'a LayerContext<B>,
    ) -> (Option<&'a Rotation<B>>, &'a AttentionMask<B>) {
        let local = context.local_rotation.as_ref().filter(|_| self.slides);
        let rotation = local.unwrap_or(&context.rotation);
        let sliding = context.sliding_mask.as_ref().filter(|_| self.slides);
        let mask = sliding.unwrap_or(&context.mask);
        (self.rotates.then_some(rotation), mask)
    }
}

impl<B: Backend> LlamaAttention<B> {
    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(
        &self,
        hidden: Tensor<B, 3>,
        rotation: Option<&Rotation<B>>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let [query, key, value] = together([&self.q_proj, &self.k_proj, &self.v_proj], hidden);
        let query = self.heads_of(query, self.heads, self.q_norm.as_ref(), rotation);
        let key = self.heads_of(key, self.kv_heads, self.k_norm.as_ref(), rotation);
        let value = split_heads(value, self.kv_heads);
        let (key, value) = match cache {
            Some(cache) => {
                let stored = self.k_proj.cache_dtype(key.dtype());
                cache.append(key, value, stored)
            }
            None => (key, value),
        };
        let output = attention_with(query, key, value, mask, self.scores);
        self.o_proj.forward(join_heads(output))
    }

    /// Normalised and rotated heads. `[batch, tokens, heads · dim]` → `[batch, heads, tokens, dim]`
    fn heads_of(
        &self,
        joined: Tensor<B, 3>,
        heads: usize,
        norm: Option<&RmsNorm<B>>,
        rotation: Option<&Rotation<B>>,
    ) -> Tensor<B, 4> {
        let split = match norm {
            Some(norm) if self.joint_norm => split_heads(norm.forward(joined), heads),
            Some(norm) => norm.forward(split_heads(joined, heads)),
            None => split_heads(joined, heads),
        };
        match rotation {
            Some(rotation) => rotation.apply(split),
            None => split,
        }
    }
}

impl<B: Backend> LlamaMlp<B> {
    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [gate, up] = together([&self.gate_proj, &self.up_proj], hidden);
        self.down_proj.forward(self.act.gated(gate, up))
    }
}
