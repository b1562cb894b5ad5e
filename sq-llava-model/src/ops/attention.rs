//! Scaled dot-product attention with the masks that a decoder needs.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::module::attention as fused_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Tensor, TensorData};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;

/// Which keys a query sees.
#[derive(Debug, Clone)]
pub enum AttentionMask<B: Backend> {
    /// All of them: image encoders, and one-token decoding without padding.
    Full,
    /// Those up to itself, with as many queries as keys. (With fewer queries than keys backends
    /// disagree about the alignment, so a chunk gets an explicit mask.)
    Causal,
    /// `true` hides a key. `[batch, 1, queries, keys]`
    Hidden(Tensor<B, 4, Bool>),
}

impl<B: Backend> AttentionMask<B> {
    /// Mask of `queries` new tokens behind `past` tokens, each sample with its padding at the left.
    pub fn causal(padding: &[usize], past: usize, queries: usize, device: &B::Device) -> Self {
        Self::sliding(padding, past, queries, usize::MAX, device)
    }

    /// As [`Self::causal`], where a token sees the last `window` tokens, itself included.
    pub fn sliding(
        padding: &[usize],
        past: usize,
        queries: usize,
        window: usize,
        device: &B::Device,
    ) -> Self {
        let keys = past + queries;
        let hides = padding.iter().any(|&p| p > 0) || keys > window;
        if !hides && queries == 1 {
            return Self::Full;
        }
        if !hides && past == 0 {
            return Self::Causal;
        }
        let mut hidden = Vec::with_capacity(padding.len() * queries * keys);
        for &pad in padding {
            for position in past..keys {
                // A padding token sees itself, so that its row of the softmax is not empty.
                hidden.extend((0..keys).map(|key| {
                    key > position
                        || (key < pad && key != position)
                        || position.saturating_sub(key) >= window
                }));
            }
        }
        let data = TensorData::new(hidden, [padding.len(), 1, queries, keys]);
        Self::Hidden(Tensor::from_data(data, device))
    }
}

impl<B: AutodiffBackend> AttentionMask<B> {
    /// The same without a graph.
    pub fn inner(&self) -> AttentionMask<B::InnerBackend> {
        match self {
            Self::Full => AttentionMask::Full,
            Self::Causal => AttentionMask::Causal,
            Self::Hidden(hidden) => AttentionMask::Hidden(hidden.clone().inner()),
        }
    }
}

/// What is done with the scores of queries and keys before the softmax.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ScoreOptions {
    /// Factor of the scores; `None` is `1/√head_dim`.
    pub scale: Option<f64>,
    /// Soft limit c: `c · tanh(score / c)`. On the CPU it has no kernel of its own.
    pub softcap: Option<f64>,
}

/// Attention of grouped queries. Scale `1/√head_dim`.
///
/// `query [batch, heads, queries, head_dim]`, `key` and `value [batch, kv_heads, keys, head_dim]`
/// → `[batch, heads, queries, head_dim]`
pub fn attention<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
) -> Tensor<B, 4> {
    attention_with(query, key, value, mask, ScoreOptions::default())
}

/// As [`attention`], with a scale or soft limit of their own.
pub fn attention_with<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    options: ScoreOptions,
) -> Tensor<B, 4> {
    let query = match options.scale {
        Some(scale) => {
            let usual = (query.dims()[3] as f64).sqrt();
            query.mul_scalar(scale * usual)
        }
        None => query,
    };
    #[cfg(feature = "cpu")]
    let (query, key, value) = match options.softcap {
        Some(_) => (query, key, value),
        None => match on_cpu(query, key, value, mask) {
            Ok(output) => return output,
            Err([query, key, value]) => (query, key, value),
        },
    };
    // A cache may hold keys and values in fewer bits.
    let dtype = query.dtype();
    let (key, value) = (key.cast(dtype), value.cast(dtype));
    portable(query, key, value, mask, options.softcap)
}

/// Our kernel, where the tensors are the CPU backend's.
#[cfg(feature = "cpu")]
fn on_cpu<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
) -> Result<Tensor<B, 4>, [Tensor<B, 4>; 3]> {
    let hidden = match mask {
        AttentionMask::Full => cpu::Hidden::Nothing,
        AttentionMask::Causal => cpu::Hidden::Later,
        AttentionMask::Hidden(hidden) => match cpu::flex_bool(hidden) {
            Some(hidden) => cpu::Hidden::Marked(hidden),
            None => return Err([query, key, value]),
        },
    };
    let inputs = [query, key, value].map(cpu::float);
    match cpu::run::<B, _, 3>(cpu::Attention(hidden), inputs) {
        Ok(output) => Ok(cpu::tensor(output)),
        Err(inputs) => Err(inputs.map(cpu::tensor)),
    }
}

/// The operations that every backend has.
pub(crate) fn portable<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    softcap: Option<f64>,
) -> Tensor<B, 4> {
    let [batch, heads, queries, dim] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    let group = heads / kv_heads;
    let options = |is_causal| AttentionModuleOptions {
        is_causal,
        softcap,
        ..Default::default()
    };
    if group > 1 && queries == 1 {
        // One token: the queries that share a key head are the rows of one product, and keys and
        // values need not be repeated.
        let grouped = query.reshape([batch, kv_heads, group, dim]);
        let hidden = expand(mask, [batch, kv_heads, group, keys]);
        return fused_attention(grouped, key, value, hidden, None, options(false))
            .reshape([batch, heads, 1, dim]);
    }
    let causal = matches!(mask, AttentionMask::Causal);
    let hidden = expand(mask, [batch, heads, queries, keys]);
    let (key, value) = (repeat_heads(key, group), repeat_heads(value, group));
    fused_attention(query, key, value, hidden, None, options(causal))
}

fn expand<B: Backend>(mask: &AttentionMask<B>, shape: [usize; 4]) -> Option<Tensor<B, 4, Bool>> {
    match mask {
        AttentionMask::Hidden(hidden) => Some(hidden.clone().expand(shape)),
        AttentionMask::Full | AttentionMask::Causal => None,
    }
}

/// `[batch, kv_heads, keys, dim]` → `[batch, kv_heads · group, keys, dim]`
fn repeat_heads<B: Backend>(tensor: Tensor<B, 4>, group: usize) -> Tensor<B, 4> {
    if group == 1 {
        return tensor;
    }
    let [batch, kv_heads, keys, dim] = tensor.dims();
    tensor
        .unsqueeze_dim::<5>(2)
        .expand([batch, kv_heads, group, keys, dim])
        .reshape([batch, kv_heads * group, keys, dim])
}

/// `[batch, tokens, heads · dim]` → `[batch, heads, tokens, dim]`
pub(crate) fn split_heads<B: Backend>(tensor: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = tensor.dims();
    tensor
        .reshape([batch, tokens, heads, width / heads])
        .swap_dims(1, 2)
}

/// `[batch, heads, tokens, dim]` → `[batch, tokens, heads · dim]`
pub(crate) fn join_heads<B: Backend>(tensor: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, tokens, dim] = tensor.dims();
    tensor.swap_dims(1, 2).reshape([batch, tokens, heads * dim])
}
