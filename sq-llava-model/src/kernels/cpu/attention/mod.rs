//! Attention whose scores are in memory for a block of queries at a time, never T×T, forward and
//! backward (as Dao et al. 2022: the backward pass recomputes them from the logarithm of each
//! row's sum).

mod backward;
mod forward;
mod mask;
mod softcap;
mod step;

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Element, FloatDType, Shape, bf16, f16};
use burn_flex::{Flex, FlexTensor};

use super::Kernel;
use super::rows::Stored;
use super::view::{Heads, filled, head_rows};
use super::weight::readable;
use crate::kernels::key_span::KeySpan;
use mask::Mask;

/// Queries of a block.
const BLOCK: usize = 64;

/// Which keys a query does not see.
#[derive(Debug, Clone)]
pub(crate) enum Hidden {
    /// None.
    Nothing,
    /// Those after itself; the last query is as late as the last key.
    Later,
    /// Those outside a span of each query's own.
    Outside(KeySpan),
    /// Those where the tensor `[batch, 1 or heads, queries, keys]` is true.
    Marked(FlexTensor),
}

/// `softmax(f(Q Kᵀ · scale)) V` of queries `[batch, heads, queries, dim]`, keys and values
/// `[batch, kv_heads, keys, dim]`, these in f32, f16 or bf16. A query that sees no key gets zeros.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) hidden: Hidden,
    /// Factor of the scores; `None` is `1/√dim`.
    pub(crate) scale: Option<f32>,
    /// Soft limit c of the scores, `f(s) = c · tanh(s / c)`.
    pub(crate) softcap: Option<f32>,
}

impl Attention {
    /// One query for each head, behind which no key stands; the mask is none or a span.
    /// `[batch, heads, dim]`
    pub(super) fn step<T: Stored + Element + bytemuck::Pod>(
        &self,
        q: &Heads<'_>,
        k: &Heads<'_, T>,
        v: &Heads<'_, T>,
    ) -> Vec<f32> {
        step::attend(q, k, v, &self.scores(q.dim))
    }

    fn scores(&self, dim: usize) -> Scores<'_> {
        Scores {
            mask: Mask::new(&self.hidden),
            factor: self.scale.unwrap_or(1.0 / (dim as f32).sqrt()),
            softcap: self.softcap,
        }
    }
}

/// How scores come from products of queries and keys.
struct Scores<'a> {
    mask: Mask<'a>,
    factor: f32,
    softcap: Option<f32>,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    output: FlexTensor,
    /// Logarithm of the sum of each row's exponentials, `[batch, heads, queries]`.
    log_sums: FlexTensor,
}

impl Kernel<3> for Attention {
    type Saved = Saved;

    fn accepts(&self, inputs: &[&FlexTensor; 3]) -> bool {
        let [q, k, v] = inputs.map(|input| input.layout().shape().dims::<4>());
        let [query, key, value] = inputs.map(FlexTensor::dtype);
        let read = query == DType::F32 && key == value && readable(key);
        let mask = match &self.hidden {
            Hidden::Nothing => true,
            Hidden::Later => q[2] <= k[2],
            Hidden::Outside(span) => q[2] <= k[2] && span.fits(q[0]),
            Hidden::Marked(mask) => {
                let [b, h, queries, keys] = mask.layout().shape().dims::<4>();
                b == q[0] && (h == 1 || h == q[1]) && queries == q[2] && keys == k[2]
            }
        };
        // Every size but the batch must be there.
        let filled = q[2] > 0 && k[2] > 0 && q[3] > 0 && k[1] > 0;
        read && mask && filled && k == v && q[3] == k[3] && q[0] == k[0] && q[1] % k[1] == 0
    }

    fn forward(&self, inputs: [FlexTensor; 3]) -> FlexTensor {
        let [query, key, value] = inputs.map(head_rows);
        let q = Heads::new(&query);
        let scores = self.scores(q.dim);
        match key.dtype() {
            DType::F16 => {
                forward::attend::<f16>(&q, &Heads::new(&key), &Heads::new(&value), &scores, None)
            }
            DType::BF16 => {
                forward::attend::<bf16>(&q, &Heads::new(&key), &Heads::new(&value), &scores, None)
            }
            _ => forward::attend::<f32>(&q, &Heads::new(&key), &Heads::new(&value), &scores, None),
        }
    }

    fn forward_saving(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        // The backward pass reads f32.
        let [query, key, value] = inputs.map(|input| match input.dtype() {
            DType::F32 => head_rows(input),
            _ => head_rows(Flex::float_cast(input, FloatDType::F32)),
        });
        let [q, k, v] = [&query, &key, &value].map(Heads::<f32>::new);
        let scores = self.scores(q.dim);
        let mut log_sums = Vec::new();
        let shape = Shape::from(vec![q.batch, q.heads, q.tokens]);
        let output = forward::attend(&q, &k, &v, &scores, Some(&mut log_sums));
        let saved = Saved {
            output: output.clone(),
            log_sums: filled(log_sums, shape),
            query,
            key,
            value,
        };
        (output, saved)
    }

    fn backward(
        &self,
        saved: Saved,
        grad: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let dim = saved.query.layout().shape()[3];
        let found = backward::attend_back(&saved, head_rows(grad), &self.scores(dim));
        let mut wanted = wanted.into_iter();
        found.map(|grad| wanted.next().unwrap_or(false).then_some(grad))
    }
}
