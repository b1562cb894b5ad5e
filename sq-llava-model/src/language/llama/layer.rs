//! One layer of the decoder: attention and gated MLP, with norms around them.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use super::LayerContext;
use crate::config::{LlamaConfig, NormPlacement, QkNorm};
use crate::language::cache::LayerCache;
use crate::ops::activation::Activation;
use crate::ops::attention::{AttentionMask, ScoreOptions, attention_with, join_heads, split_heads};
use crate::ops::linear::{Linear, together};
use crate::ops::norm::RmsNorm;
use crate::ops::residual::add;
use crate::ops::rope::Rotation;

/// One decoder layer. In LLaMA the norms come before attention and MLP, and the second one is
/// `post_attention_layernorm`; in families with norms after each part that one follows the
/// attention, and the MLP has norms of its own.
#[derive(Module, Debug)]
pub struct LlamaLayer<B: Backend> {
    /// Norm before the attention.
    pub input_layernorm: Option<RmsNorm<B>>,
    /// Attention.
    pub self_attn: LlamaAttention<B>,
    /// Norm before the MLP, or after the attention.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Norm before the MLP, where the one above follows the attention.
    pub pre_feedforward_layernorm: Option<RmsNorm<B>>,
    /// Norm after the MLP.
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
    pub q_proj: Option<Linear<B>>,
    /// Keys.
    pub k_proj: Option<Linear<B>>,
    /// Values.
    pub v_proj: Option<Linear<B>>,
    /// Queries, keys and values in one, in place of the three.
    pub qkv_proj: Option<Linear<B>>,
    /// Output.
    pub o_proj: Linear<B>,
    /// Norm of the queries.
    pub q_norm: Option<RmsNorm<B>>,
    /// Norm of the keys.
    pub k_norm: Option<RmsNorm<B>>,
    #[module(skip)]
    pub(super) heads: usize,
    #[module(skip)]
    pub(super) kv_heads: usize,
    #[module(skip)]
    pub(super) head_dim: usize,
    /// Whether the norms run over all heads at once.
    #[module(skip)]
    joint_norm: bool,
    #[module(skip)]
    pub(super) scores: ScoreOptions,
}

/// `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct LlamaMlp<B: Backend> {
    /// Gate.
    pub gate_proj: Option<Linear<B>>,
    /// Value.
    pub up_proj: Option<Linear<B>>,
    /// Gate and value in one, in place of the two.
    pub gate_up_proj: Option<Linear<B>>,
    /// Output.
    pub down_proj: Linear<B>,
    #[module(skip)]
    pub(super) act: Activation,
}

impl LlamaConfig {
    pub(super) fn norm<B: Backend>(&self, width: usize, device: &B::Device) -> RmsNorm<B> {
        RmsNorm::init_offset(width, self.rms_norm_eps, self.norm_offset, device)
    }

    pub(super) fn init_layer<B: Backend>(&self, layer: usize, device: &B::Device) -> LlamaLayer<B> {
        let norm = |width: usize| self.norm(width, device);
        let hidden = self.hidden_size;
        let (before, behind) = match self.norm_placement {
            NormPlacement::Before => (true, false),
            NormPlacement::Behind => (false, true),
            NormPlacement::Around => (true, true),
        };
        LlamaLayer {
            input_layernorm: before.then(|| norm(hidden)),
            self_attn: self.init_attention(device),
            post_attention_layernorm: norm(hidden),
            pre_feedforward_layernorm: (before && behind).then(|| norm(hidden)),
            post_feedforward_layernorm: behind.then(|| norm(hidden)),
            mlp: LlamaMlp {
                gate_proj: self.linear("gate_proj", device),
                up_proj: self.linear("up_proj", device),
                gate_up_proj: self.linear("gate_up_proj", device),
                down_proj: Linear::init(self.intermediate_size, hidden, self.mlp_bias, device),
                act: self.hidden_act,
            },
            slides: self.slides(layer),
            rotates: !self.unrotated_layers.contains(&layer),
        }
    }

    fn init_attention<B: Backend>(&self, device: &B::Device) -> LlamaAttention<B> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let head_dim = self.head_dim();
        let qk_norm = |heads: usize| match self.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some(self.norm(head_dim, device)),
            QkNorm::All => Some(self.norm(heads * head_dim, device)),
        };
        let (width, hidden) = (heads * head_dim, self.hidden_size);
        LlamaAttention {
            q_proj: self.linear("q_proj", device),
            k_proj: self.linear("k_proj", device),
            v_proj: self.linear("v_proj", device),
            qkv_proj: self.linear("qkv_proj", device),
            o_proj: Linear::init(width, hidden, self.output_bias, device),
            q_norm: qk_norm(heads),
            k_norm: qk_norm(kv_heads),
            heads,
            kv_heads,
            head_dim,
            joint_norm: self.qk_norm == QkNorm::All,
            scores: ScoreOptions {
                scale: self.query_pre_attn_scalar.map(|n| n.powf(-0.5)),
                softcap: self.attn_logit_softcapping,
            },
        }
    }

    /// A linear of a layer by its name, if layers have it.
    fn linear<B: Backend>(&self, name: &str, device: &B::Device) -> Option<Linear<B>> {
        let linears = self.linears();
        let &(_, d_in, d_out) = linears.iter().find(|(other, ..)| *other == name)?;
        Some(Linear::init(d_in, d_out, self.has_bias(name), device))
    }
}

impl<B: Backend> LlamaLayer<B> {
    /// The linears that can be adapted or quantised, by their paths in the layer.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear<B>)> {
        let (a, m) = (&self.self_attn, &self.mlp);
        let all = [
            ("self_attn.q_proj", a.q_proj.as_ref()),
            ("self_attn.k_proj", a.k_proj.as_ref()),
            ("self_attn.v_proj", a.v_proj.as_ref()),
            ("self_attn.qkv_proj", a.qkv_proj.as_ref()),
            ("self_attn.o_proj", Some(&a.o_proj)),
            ("mlp.gate_proj", m.gate_proj.as_ref()),
            ("mlp.up_proj", m.up_proj.as_ref()),
            ("mlp.gate_up_proj", m.gate_up_proj.as_ref()),
            ("mlp.down_proj", Some(&m.down_proj)),
        ];
        let named = |(path, linear): (_, Option<_>)| Some((path, linear?));
        all.into_iter().filter_map(named)
    }

    /// [`Self::linears`], mutable.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear<B>)> {
        let (a, m) = (&mut self.self_attn, &mut self.mlp);
        let all = [
            ("self_attn.q_proj", a.q_proj.as_mut()),
            ("self_attn.k_proj", a.k_proj.as_mut()),
            ("self_attn.v_proj", a.v_proj.as_mut()),
            ("self_attn.qkv_proj", a.qkv_proj.as_mut()),
            ("self_attn.o_proj", Some(&mut a.o_proj)),
            ("mlp.gate_proj", m.gate_proj.as_mut()),
            ("mlp.up_proj", m.up_proj.as_mut()),
            ("mlp.gate_up_proj", m.gate_up_proj.as_mut()),
            ("mlp.down_proj", Some(&mut m.down_proj)),
        ];
        let named = |(path, linear): (_, Option<_>)| Some((path, linear?));
        all.into_iter().filter_map(named)
    }

    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(
        &self,
        hidden: Tensor<B, 3>,
        context: &LayerContext<B>,
        #[allow(unused_mut)] // Reached by kernels alone.
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        #[cfg(feature = "gpu")]
        if let Some(cache) = cache.as_mut()
            && let Some(output) = self.decoded(&hidden, context, cache)
        {
            return output;
        }
        let (rotation, mask) = self.place(context);
        let normed = match &self.input_layernorm {
            Some(norm) => norm.forward(hidden.clone()),
            None => hidden.clone(),
        };
        let attended = self.self_attn.forward(normed, rotation, mask, cache);
        let Some(behind) = &self.post_feedforward_layernorm else {
            let hidden = add(hidden, attended);
            let normed = self.post_attention_layernorm.forward(hidden.clone());
            return add(hidden, self.mlp.forward(normed));
        };
        let hidden = add(hidden, self.post_attention_layernorm.forward(attended));
        let normed = match &self.pre_feedforward_layernorm {
            Some(norm) => norm.forward(hidden.clone()),
            None => hidden.clone(),
        };
        add(hidden, behind.forward(self.mlp.forward(normed)))
    }

    /// Rotation and mask of this layer.
    pub(super) fn place<'a>(
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
        let [query, key, value] = self.projected(hidden);
        let query = self.heads_of(query, self.heads, self.q_norm.as_ref(), rotation);
        let key = self.heads_of(key, self.kv_heads, self.k_norm.as_ref(), rotation);
        let value = split_heads(value, self.kv_heads);
        let (key, value) = match cache {
            Some(cache) => {
                let stored = self.stored(key.dtype());
                cache.append(key, value, stored)
            }
            None => (key, value),
        };
        let output = attention_with(query, key, value, mask, self.scores);
        self.o_proj.forward(join_heads(output))
    }

    /// What keys and values are kept in that are computed in a dtype.
    pub(super) fn stored(&self, computed: DType) -> DType {
        let keys = self.k_proj.as_ref().or(self.qkv_proj.as_ref());
        keys.map_or(computed, |linear| linear.cache_dtype(computed))
    }

    /// Queries, keys and values. `[batch, tokens, hidden]` → `[batch, tokens, heads · dim]` each
    fn projected(&self, hidden: Tensor<B, 3>) -> [Tensor<B, 3>; 3] {
        let (width, shared) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match (&self.q_proj, &self.k_proj, &self.v_proj, &self.qkv_proj) {
            (Some(q), Some(k), Some(v), _) => together([q, k, v], hidden),
            (.., Some(qkv)) => parts(qkv.forward(hidden), [width, shared, shared]),
            _ => unreachable!("a layer is made with either"),
        }
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
        let [gate, up] = match (&self.gate_proj, &self.up_proj, &self.gate_up_proj) {
            (Some(gate), Some(up), _) => together([gate, up], hidden),
            (.., Some(both)) => parts(both.forward(hidden), [both.d_out() / 2; 2]),
            _ => unreachable!("a layer is made with either"),
        };
        self.down_proj.forward(self.act.gated(gate, up))
    }
}

/// Columns side by side. `[batch, tokens, Σ widths]` → `[batch, tokens, width]` each
fn parts<B: Backend, const N: usize>(
    joined: Tensor<B, 3>,
    widths: [usize; N],
) -> [Tensor<B, 3>; N] {
    let [batch, tokens, _] = joined.dims();
    let mut from = 0;
    widths.map(|width| {
        let columns = from..from + width;
        from = columns.end;
        joined.clone().slice([0..batch, 0..tokens, columns])
    })
}
