//! Attention whose scores are in memory for a block of queries at a time, never T×T, forward and
//! backward (as Dao et al. 2022: the backward pass recomputes them from the logarithm of each
//! row's sum).

mod backward;
mod forward;

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, Shape, bf16, f16};
use burn_flex::{Flex, FlexTensor};

use super::Kernel;
use super::view::{Heads, filled, head_rows};
use super::weight::readable;

/// Queries of a block.
const BLOCK: usize = 64;

/// Which keys a query does not see.
#[derive(Debug, Clone)]
pub(crate) enum Hidden {
    /// None.
    Nothing,
    /// Those after itself; the last query is as late as the last key.
    Later,
    /// Those where the tensor `[batch, 1 or heads, queries, keys]` is true.
    Marked(FlexTensor),
}

/// `softmax(Q Kᵀ / √dim) V` of queries `[batch, heads, queries, dim]`, keys and values
/// `[batch, kv_heads, keys, dim]`, these in f32, f16 or bf16. A query that sees no key gets zeros.
#[derive(Debug)]
pub(crate) struct Attention(pub(crate) Hidden);

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
        let mask = match &self.0 {
            Hidden::Nothing => true,
            Hidden::Later => q[2] <= k[2],
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
        let mask = Mask::new(&self.0);
        let q = Heads::new(&query);
        match key.dtype() {
            DType::F16 => {
                forward::attend::<f16>(&q, &Heads::new(&key), &Heads::new(&value), &mask, None)
            }
            DType::BF16 => {
                forward::attend::<bf16>(&q, &Heads::new(&key), &Heads::new(&value), &mask, None)
            }
            _ => forward::attend::<f32>(&q, &Heads::new(&key), &Heads::new(&value), &mask, None),
        }
    }

    fn forward_saving(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        // The backward pass reads f32.
        let [query, key, value] = inputs.map(|input| match input.dtype() {
            DType::F32 => head_rows(input),
            _ => head_rows(Flex::float_cast(input, FloatDType::F32)),
        });
        let mask = Mask::new(&self.0);
        let [q, k, v] = [&query, &key, &value].map(Heads::<f32>::new);
        let mut log_sums = Vec::new();
        let shape = Shape::from(vec![q.batch, q.heads, q.tokens]);
        let output = forward::attend(&q, &k, &v, &mask, Some(&mut log_sums));
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
        let mask = Mask::new(&self.0);
        let found = backward::attend_back(&saved, head_rows(grad), &mask);
        let mut wanted = wanted.into_iter();
        found.map(|grad| wanted.next().unwrap_or(false).then_some(grad))
    }
}

/// A mask that can be read row by row.
enum Mask<'a> {
    Nothing,
    Later,
    Marked {
        data: &'a [u8],
        start: usize,
        strides: [usize; 4],
        /// 0 where all heads share a mask.
        heads: usize,
    },
}

impl<'a> Mask<'a> {
    fn new(hidden: &'a Hidden) -> Self {
        match hidden {
            Hidden::Nothing => Self::Nothing,
            Hidden::Later => Self::Later,
            Hidden::Marked(mask) => {
                let layout = mask.layout();
                let strides = layout.strides();
                Self::Marked {
                    data: mask.bytes(),
                    start: layout.start_offset(),
                    strides: [0, 1, 2, 3].map(|i| strides[i] as usize),
                    heads: layout.shape()[1],
                }
            }
        }
    }

    /// Keys that a block of queries before `end` may see, of `keys`.
    fn visible(&self, end: usize, queries: usize, keys: usize) -> usize {
        match self {
            Self::Later => end + keys - queries,
            _ => keys,
        }
    }

    /// Sets the scores of hidden keys to −∞ and returns how many keys from the first on can be
    /// seen at all.
    fn hide(
        &self,
        [batch, head, query]: [usize; 3],
        queries: usize,
        keys: usize,
        scores: &mut [f32],
    ) -> usize {
        match self {
            Self::Nothing => scores.len(),
            Self::Later => query + 1 + keys - queries,
            Self::Marked {
                data,
                start,
                strides,
                heads,
            } => {
                let head = if *heads == 1 { 0 } else { head };
                let row = start + batch * strides[0] + head * strides[1] + query * strides[2];
                if strides[3] == 1 {
                    for (score, &hidden) in scores.iter_mut().zip(&data[row..]) {
                        *score = if hidden == 0 {
                            *score
                        } else {
                            f32::NEG_INFINITY
                        };
                    }
                } else {
                    for (key, score) in scores.iter_mut().enumerate() {
                        if data[row + key * strides[3]] != 0 {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
                scores.len()
            }
        }
    }
}
