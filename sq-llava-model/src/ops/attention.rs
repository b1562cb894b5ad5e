//! Scaled dot-product attention with the masks that a decoder needs.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::module::attention as fused_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use crate::kernels::Kernels;
#[cfg(feature = "cpu")]
use crate::kernels::cpu;
#[cfg(feature = "gpu")]
use crate::kernels::gpu;
pub use crate::kernels::key_span::KeySpan;

/// Which keys a query sees.
#[derive(Debug, Clone)]
pub enum AttentionMask<B: Backend> {
    /// All of them: image encoders, and one-token decoding without padding.
    Full,
    /// Those up to itself, with as many queries as keys. (With fewer queries than keys backends
    /// disagree about the alignment, so a chunk gets spans or a mask.)
    Causal,
    /// Those of a span of its own: what the CPU's kernel reads in place of a mask.
    Outside(KeySpan),
    /// The same, told by the first key of each query, the last of them as late as the last key: what
    /// the GPU's kernel reads in place of a mask. f32 `[batch, queries]`
    Firsts(Tensor<B, 2>),
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
        let span = KeySpan {
            padding: padding.to_vec(),
            starts: vec![],
            window,
        };
        Self::of_span(span, past, queries, device)
    }

    /// Mask of packed rows of `tokens`, in each of which samples of these lengths stand one behind
    /// the other and see themselves alone (block-diagonal and causal), each token the last `window`
    /// tokens of its sample; what is behind the last sample is padding.
    pub fn packed(
        lengths: &[Vec<usize>],
        tokens: usize,
        window: usize,
        device: &B::Device,
    ) -> Self {
        if lengths.iter().all(|row| row.len() <= 1) {
            // No token of a sample sees the padding at its right.
            return Self::sliding(&vec![0; lengths.len()], 0, tokens, window, device);
        }
        Self::of_span(KeySpan::packed(lengths, window), 0, tokens, device)
    }

    fn of_span(span: KeySpan, past: usize, queries: usize, device: &B::Device) -> Self {
        match Kernels::of::<B>() {
            Kernels::Cpu => Self::Outside(span),
            // Made once for all layers.
            Kernels::Gpu => Self::Firsts(firsts(&span, past, queries, device)),
            Kernels::None => Self::Hidden(marks(&span, past, queries, device)),
        }
    }

    /// The same as a mask, if it is one. `[batch, 1, queries, keys]`
    fn marks(&self, queries: usize, keys: usize, device: &B::Device) -> Option<Tensor<B, 4, Bool>> {
        match self {
            Self::Full | Self::Causal => None,
            Self::Hidden(hidden) => Some(hidden.clone()),
            Self::Outside(span) => Some(marks(span, keys - queries, queries, device)),
            Self::Firsts(firsts) => {
                let [batch, _] = firsts.dims();
                let numbers = |range: std::ops::Range<usize>| {
                    let range = range.start as i64..range.end as i64;
                    Tensor::<B, 1, Int>::arange(range, device)
                        .float()
                        .cast(DType::F32)
                };
                let key = numbers(0..keys).reshape([1, 1, 1, keys]);
                let own = numbers(keys - queries..keys).reshape([1, 1, queries, 1]);
                let first = firsts.clone().reshape([batch, 1, queries, 1]);
                Some(key.clone().lower(first).bool_or(key.greater(own)))
            }
        }
    }
}

/// The first key of each query's span. `[batch, queries]`
fn firsts<B: Backend>(
    span: &KeySpan,
    past: usize,
    queries: usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    let rows = span.padding.len();
    let first = |row| (past..past + queries).map(move |at| span.of(row, at).start as f32);
    let firsts: Vec<f32> = (0..rows).flat_map(first).collect();
    Tensor::from_data(
        TensorData::new(firsts, [rows, queries]),
        (device, DType::F32),
    )
}

/// `true` for the keys outside the spans. `[batch, 1, queries, past + queries]`
fn marks<B: Backend>(
    span: &KeySpan,
    past: usize,
    queries: usize,
    device: &B::Device,
) -> Tensor<B, 4, Bool> {
    let (rows, keys) = (span.padding.len(), past + queries);
    let mut hidden = Vec::with_capacity(rows * queries * keys);
    for row in 0..rows {
        for position in past..keys {
            let seen = span.of(row, position);
            hidden.extend((0..keys).map(|key| !seen.contains(&key)));
        }
    }
    Tensor::from_data(TensorData::new(hidden, [rows, 1, queries, keys]), device)
}

impl<B: AutodiffBackend> AttentionMask<B> {
    /// The same without a graph.
    pub fn inner(&self) -> AttentionMask<B::InnerBackend> {
        match self {
            Self::Full => AttentionMask::Full,
            Self::Causal => AttentionMask::Causal,
            Self::Outside(span) => AttentionMask::Outside(span.clone()),
            Self::Firsts(firsts) => AttentionMask::Firsts(firsts.clone().inner()),
            Self::Hidden(hidden) => AttentionMask::Hidden(hidden.clone().inner()),
        }
    }
}

/// What is done with the scores of queries and keys before the softmax.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ScoreOptions {
    /// Factor of the scores; `None` is `1/√head_dim`.
    pub scale: Option<f64>,
    /// Soft limit c: `c · tanh(score / c)`.
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
    #[cfg(feature = "cpu")]
    let (query, key, value) = match on_cpu(query, key, value, mask, options) {
        Ok(output) => return output,
        Err([query, key, value]) => (query, key, value),
    };
    // A cache may hold keys and values in fewer bits.
    let dtype = query.dtype();
    let (key, value) = (key.cast(dtype), value.cast(dtype));
    #[cfg(feature = "gpu")]
    let (query, key, value) = match on_gpu(query, key, value, mask, options) {
        Ok(output) => return output,
        Err([query, key, value]) => (query, key, value),
    };
    portable(query, key, value, mask, options)
}

/// Our kernel with this mask, unless the mask is a tensor of another backend.
#[cfg(feature = "cpu")]
pub(crate) fn kernel<B: Backend>(
    mask: &AttentionMask<B>,
    options: ScoreOptions,
) -> Option<cpu::Attention> {
    Some(cpu::Attention {
        hidden: match mask {
            AttentionMask::Full => cpu::Hidden::Nothing,
            AttentionMask::Causal => cpu::Hidden::Later,
            AttentionMask::Outside(span) => cpu::Hidden::Outside(span.clone()),
            AttentionMask::Hidden(hidden) => cpu::Hidden::Marked(cpu::flex_bool(hidden)?),
            // Of a GPU's backend.
            AttentionMask::Firsts(_) => return None,
        },
        scale: options.scale.map(|scale| scale as f32),
        softcap: options.softcap.map(|cap| cap as f32),
    })
}

/// Our kernel, where the tensors are the CPU backend's.
#[cfg(feature = "cpu")]
fn on_cpu<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    options: ScoreOptions,
) -> Result<Tensor<B, 4>, [Tensor<B, 4>; 3]> {
    let Some(kernel) = kernel(mask, options) else {
        return Err([query, key, value]);
    };
    let inputs = [query, key, value].map(cpu::float);
    match cpu::run::<B, _, 3>(kernel, inputs) {
        Ok(output) => Ok(cpu::tensor(output)),
        Err(inputs) => Err(inputs.map(cpu::tensor)),
    }
}

/// Our kernel, where the tensors are a GPU backend's.
#[cfg(feature = "gpu")]
fn on_gpu<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    options: ScoreOptions,
) -> Result<Tensor<B, 4>, [Tensor<B, 4>; 3]> {
    let (seen, firsts) = match mask {
        AttentionMask::Full => (gpu::Seen::All, None),
        AttentionMask::Causal => (gpu::Seen::ToItself, None),
        AttentionMask::Firsts(firsts) => (gpu::Seen::FromFirst, Some(firsts.clone())),
        AttentionMask::Outside(_) | AttentionMask::Hidden(_) => return Err([query, key, value]),
    };
    let scale = options.scale.map(|scale| scale as f32);
    let kernel = gpu::Attention::new(seen, scale, options.softcap.map(|cap| cap as f32));
    let [query, key, value] = [query, key, value].map(gpu::float);
    let done = match firsts.map(gpu::float) {
        Some(firsts) => gpu::run::<B, _, 4>(kernel, [query, key, value, firsts])
            .map_err(|[query, key, value, _]| [query, key, value]),
        None => gpu::run::<B, _, 3>(kernel, [query, key, value]),
    };
    match done {
        Ok(output) => Ok(gpu::tensor(output)),
        Err(inputs) => Err(inputs.map(gpu::tensor)),
    }
}

/// The operations that every backend has.
pub(crate) fn portable<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    ScoreOptions { scale, softcap }: ScoreOptions,
) -> Tensor<B, 4> {
    let [batch, heads, queries, dim] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    let group = heads / kv_heads;
    let options = |is_causal| AttentionModuleOptions {
        is_causal,
        softcap,
        ..Default::default()
    };
    // Backends have no fast way with a scale of its own.
    let query = match scale {
        Some(scale) => query.mul_scalar(scale * (dim as f64).sqrt()),
        None => query,
    };
    let hidden = mask.marks(queries, keys, &query.device());
    if group > 1 && queries == 1 {
        // One token: the queries that share a key head are the rows of one product, and keys and
        // values need not be repeated.
        let grouped = query.reshape([batch, kv_heads, group, dim]);
        let hidden = hidden.map(|hidden| hidden.expand([batch, kv_heads, group, keys]));
        return fused_attention(grouped, key, value, hidden, None, options(false))
            .reshape([batch, heads, 1, dim]);
    }
    let causal = matches!(mask, AttentionMask::Causal);
    let hidden = hidden.map(|hidden| hidden.expand([batch, heads, queries, keys]));
    let (key, value) = (repeat_heads(key, group), repeat_heads(value, group));
    fused_attention(query, key, value, hidden, None, options(causal))
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
