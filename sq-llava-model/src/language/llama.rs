//! LLaMA decoder (`modeling_llama.py` in transformers): RMSNorm, rotary positions, grouped-query
//! attention, SwiGLU.

use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};

use crate::config::LlamaConfig;
use crate::language::cache::{KvCache, LayerCache};
use crate::ops::activation::Activation;
use crate::ops::attention::{AttentionMask, attention, join_heads, split_heads};
use crate::ops::cat::cat;
use crate::ops::embedding::Embedding;
use crate::ops::linear::{Linear, product, together};
use crate::ops::norm::RmsNorm;
use crate::ops::rope::{RotaryEmbedding, Rotation};

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

/// Rows of embedding and head that train although the base is frozen. They stand in for the ids
/// from `start`, over the base's own rows where it has them.
#[derive(Module, Debug)]
pub struct NewTokens<B: Backend> {
    /// `[rows, hidden]`.
    pub embed: Param<Tensor<B, 2>>,
    /// `[rows, hidden]`; `None` when the head is tied to the embedding.
    pub lm_head: Option<Param<Tensor<B, 2>>>,
    /// Id of the first row.
    #[module(skip)]
    pub start: usize,
}

/// One decoder layer.
#[derive(Module, Debug)]
pub struct LlamaLayer<B: Backend> {
    /// Norm before the attention.
    pub input_layernorm: RmsNorm<B>,
    /// Attention.
    pub self_attn: LlamaAttention<B>,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Gated MLP.
    pub mlp: LlamaMlp<B>,
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
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
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
        let (hidden, eps) = (self.hidden_size, self.rms_norm_eps);
        let layers = (0..self.num_hidden_layers).map(|_| {
            let [q, k, v, o, gate, up, down] = self.linears().map(|(name, i, o)| {
                let mlp = matches!(name, "gate_proj" | "up_proj" | "down_proj");
                let bias = if mlp {
                    self.mlp_bias
                } else {
                    self.attention_bias
                };
                Linear::init(i, o, bias, device)
            });
            LlamaLayer {
                input_layernorm: RmsNorm::init(hidden, eps, device),
                self_attn: LlamaAttention {
                    q_proj: q,
                    k_proj: k,
                    v_proj: v,
                    o_proj: o,
                    heads: self.num_attention_heads,
                    kv_heads: self.num_key_value_heads,
                },
                post_attention_layernorm: RmsNorm::init(hidden, eps, device),
                mlp: LlamaMlp {
                    gate_proj: gate,
                    up_proj: up,
                    down_proj: down,
                    act: self.hidden_act,
                },
            }
        });
        let head = || Linear::init(hidden, self.vocab_size, false, device);
        Llama {
            model: LlamaModel {
                embed_tokens: Embedding::init(self.vocab_size, hidden, device),
                layers: layers.collect(),
                norm: RmsNorm::init(hidden, eps, device),
            },
            lm_head: (!self.tie_word_embeddings).then(head),
            new_tokens: None,
            rope: RotaryEmbedding::new(
                self.head_dim(),
                self.rope_theta,
                self.rope_scaling.as_ref(),
            ),
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

    /// Embeddings of token ids in f32. `[n]` → `[n, hidden]`
    pub fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
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
        LayerContext {
            rotation: self.rope.rotation(&positions, device),
            mask: AttentionMask::causal(padding, past, tokens, device),
        }
    }

    /// Last norm and head. `[n, hidden]` → `[n, vocabulary]`, f32
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
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

impl<B: Backend> NewTokens<B> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.embed.lazy_shape()[0]
    }

    /// Rows at the mean of the old ones plus seeded noise of a tenth of their deviation: the
    /// tokens start as unremarkable as any, yet differ from each other.
    pub fn init(llama: &Llama<B>, start: usize, rows: usize, seed: u64) -> Self {
        let draw = |table: Tensor<B, 2>, seed: u64| {
            // The last row that counts is the one before `start`: padding rows say nothing.
            let [all, width] = table.dims();
            let old = table
                .slice([0..start.min(all), 0..width])
                .detach()
                .cast(DType::F32);
            let (variance, mean) = old.var_mean(0); // [1, width]
            let noise = crate::ops::draws::normal::<B>(rows, width, seed, &mean.device());
            let rows = mean + noise * variance.sqrt().mul_scalar(0.1);
            Param::from_tensor(rows)
        };
        let embed = draw(llama.model.embed_tokens.table(), seed);
        let lm_head = llama
            .lm_head
            .as_ref()
            .map(|head| draw(head.clone().dequantize().weight.val(), seed ^ 1));
        Self {
            embed,
            lm_head,
            start,
        }
    }

    /// Rows to be overwritten by a checkpoint's.
    pub fn zeros(rows: usize, hidden: usize, tied: bool, start: usize, device: &B::Device) -> Self {
        let zeros = || Initializer::Zeros.init([rows, hidden], device);
        Self {
            embed: zeros(),
            lm_head: (!tied).then(zeros),
            start,
        }
    }
}

/// What all layers of one forward pass share.
#[derive(Debug, Clone)]
pub struct LayerContext<B: Backend> {
    rotation: Rotation<B>,
    mask: AttentionMask<B>,
}

impl<B: AutodiffBackend> LayerContext<B> {
    /// The same without a graph.
    pub fn inner(&self) -> LayerContext<B::InnerBackend> {
        LayerContext {
            rotation: self.rotation.inner(),
            mask: self.mask.inner(),
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
        let normed = self.input_layernorm.forward(hidden.clone());
        let hidden = hidden + self.self_attn.forward(normed, context, cache);
        let normed = self.post_attention_layernorm.forward(hidden.clone());
        hidden + self.mlp.forward(normed)
    }
}

impl<B: Backend> LlamaAttention<B> {
    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(
        &self,
        hidden: Tensor<B, 3>,
        context: &LayerContext<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let [query, key, value] = together([&self.q_proj, &self.k_proj, &self.v_proj], hidden);
        let query = split_heads(query, self.heads);
        let key = split_heads(key, self.kv_heads);
        let value = split_heads(value, self.kv_heads);
        let query = context.rotation.apply(query);
        let key = context.rotation.apply(key);
        let (key, value) = match cache {
            Some(cache) => {
                let stored = self.k_proj.cache_dtype(key.dtype());
                cache.append(key, value, stored)
            }
            None => (key, value),
        };
        let output = attention(query, key, value, &context.mask);
        self.o_proj.forward(join_heads(output))
    }
}

impl<B: Backend> LlamaMlp<B> {
    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [gate, up] = together([&self.gate_proj, &self.up_proj], hidden);
        self.down_proj.forward(self.act.gated(gate, up))
    }
}
