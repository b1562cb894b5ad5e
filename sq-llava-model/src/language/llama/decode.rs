//! One new token through a layer in few launches, on a GPU: the norm, queries, keys and values;
//! rotation and cache; attention; its output and the sum; the second norm and the gate; the last
//! map and the sum.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::LayerContext;
use super::layer::{LlamaAttention, LlamaLayer};
use crate::language::cache::LayerCache;
use crate::ops::attention::{AttentionMask, attention_with, join_heads, split_heads};
use crate::ops::few_rows;
use crate::ops::linear::together;
use crate::ops::one_token;
use crate::ops::rope::Rotation;

impl<B: Backend> LlamaLayer<B> {
    /// As [`Self::forward`] for one token behind others; `None`, with nothing changed, where the
    /// layer is made otherwise than LLaMA's, or keys are hidden.
    /// `[batch, 1, hidden]` → `[batch, 1, hidden]`
    pub(super) fn decoded(
        &self,
        hidden: &Tensor<B, 3>,
        context: &LayerContext<B>,
        cache: &mut LayerCache<B>,
    ) -> Option<Tensor<B, 3>> {
        let [rows, tokens, width] = hidden.dims();
        let (rotation, mask) = self.place(context);
        let alone = tokens == 1 && !cache.is_empty() && matches!(mask, AttentionMask::Full);
        if !alone || !few_rows::fits::<B>(rows) || self.post_feedforward_layernorm.is_some() {
            return None;
        }
        let norm = self.input_layernorm.as_ref()?;
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        let linears = [
            attention.q_proj.as_ref()?,
            attention.k_proj.as_ref()?,
            attention.v_proj.as_ref()?,
        ];
        let gates = [mlp.gate_proj.as_ref()?, mlp.up_proj.as_ref()?];
        if attention.q_norm.is_some() || attention.k_norm.is_some() {
            return None;
        }

        let hidden = hidden.clone().reshape([rows, width]);
        let projected = few_rows::behind_norm(norm, linears, hidden.clone());
        let projected =
            projected.unwrap_or_else(|| together(linears, norm.forward(hidden.clone())));
        let attended = attention.one_token(projected, rotation, cache);
        let o_proj = &attention.o_proj;
        let hidden = few_rows::onto(o_proj, attended.clone(), hidden.clone())
            .unwrap_or_else(|| hidden + o_proj.forward(attended));

        let norm = &self.post_attention_layernorm;
        let gated = few_rows::gated_behind_norm(norm, mlp.act, gates, hidden.clone());
        let gated = gated.unwrap_or_else(|| {
            let [gate, up] = together(gates, norm.forward(hidden.clone()));
            mlp.act.gated(gate, up)
        });
        let output = few_rows::onto(&mlp.down_proj, gated.clone(), hidden.clone())
            .unwrap_or_else(|| hidden + mlp.down_proj.forward(gated));
        Some(output.reshape([rows, 1, width]))
    }
}

impl<B: Backend> LlamaAttention<B> {
    /// Queries `[batch, heads · dim]`, keys and values `[batch, kv_heads · dim]` of one token that
    /// sees all keys → `[batch, heads · dim]`
    fn one_token(
        &self,
        [query, key, value]: [Tensor<B, 2>; 3],
        rotation: Option<&Rotation<B>>,
        cache: &mut LayerCache<B>,
    ) -> Tensor<B, 2> {
        let stored = self.stored(key.dtype());
        let given = [query.clone(), key.clone(), value.clone()];
        if let Some((query, [keys, values])) = cache.append_one(given, rotation, stored) {
            let (held, buffers) = (cache.len(), [keys, values]);
            let attended = one_token::attend(&query, &buffers, held, self.scores);
            return attended.unwrap_or_else(|| {
                let [keys, values] = buffers.map(|buffer| {
                    let [batch, heads, _, dim] = buffer.dims();
                    buffer.slice([0..batch, 0..heads, 0..held, 0..dim])
                });
                self.joined(query, keys, values)
            });
        }
        let of = |joined: Tensor<B, 2>, heads| split_heads(joined.unsqueeze_dim::<3>(1), heads);
        let turned = |heads: Tensor<B, 4>| match rotation {
            Some(rotation) => rotation.apply(heads),
            None => heads,
        };
        let query = turned(of(query, self.heads));
        let (key, value) = (turned(of(key, self.kv_heads)), of(value, self.kv_heads));
        let (keys, values) = cache.append(key, value, stored);
        self.joined(query, keys, values)
    }

    fn joined(
        &self,
        query: Tensor<B, 4>,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> Tensor<B, 2> {
        let output = attention_with(query, keys, values, &AttentionMask::Full, self.scores);
        join_heads(output).squeeze_dim(1)
    }
}
