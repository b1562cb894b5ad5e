//! Attention of many queries, a block of queries at a time: memory grows with the number of keys and
//! not with its square. The products are the backend's own where the device has matrix units.

mod softmax;

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::matmul::product;
use super::{Device, Kernel, Plain, float, tensor};
pub(super) use softmax::{Scores, Slopes, Softmax};

/// Scores that are held at a time, of all heads together: 128 MiB in f32.
const HELD: usize = 1 << 25;

/// Queries of a block are a multiple of this, so that products fill their tiles.
const TILE: usize = 64;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    /// All of them.
    All,
    /// Those up to itself, with as many queries as keys.
    ToItself,
    /// Those from a first one, which a fourth input `[batch, queries]` tells, to itself; the last
    /// query is as late as the last key.
    FromFirst,
}

/// `query [batch, heads, queries, dim]`, `key` and `value [batch, kv_heads, keys, dim]` →
/// `[batch, heads, queries, dim]`
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    /// Keys that a query sees.
    pub seen: Seen,
    /// Factor of the scores; `None` is `1/√dim`.
    pub scale: Option<f32>,
    /// Soft limit c: `c · tanh(score / c)`.
    pub softcap: Option<f32>,
    /// Scores held at a time; one tile of queries is held in any case.
    pub held: usize,
}

impl Attention {
    /// With blocks as large as is good for the device.
    pub fn new(seen: Seen, scale: Option<f32>, softcap: Option<f32>) -> Self {
        Self {
            seen,
            scale,
            softcap,
            held: HELD,
        }
    }

    fn open<'a, D: Device>(&'a self, inputs: Vec<FloatTensor<D>>) -> Blocks<'a, D> {
        let mut inputs = inputs.into_iter();
        let mut next = || match inputs.next() {
            Some(input) => input,
            None => unreachable!("three inputs at least were accepted"),
        };
        let [query, key, value] = [next(), next(), next()].map(tensor::<D, 4>);
        Blocks {
            attention: self,
            query,
            key,
            value,
            firsts: inputs.next(),
        }
    }
}

impl<const N: usize> Kernel<N> for Attention {
    fn accepts(&self, inputs: &[Plain; N]) -> bool {
        let [query, key, value, firsts @ ..] = inputs.as_slice() else {
            return false;
        };
        let all = [query, key, value];
        let floats = all.iter().all(|plain| plain.is_float());
        if !floats || all.iter().any(|plain| plain.shape.num_dims() != 4) {
            return false;
        }
        let [batch, heads, queries, dim] = query.shape.dims::<4>();
        let [others, kv_heads, keys, width] = key.shape.dims::<4>();
        let alike = query.dtype == key.dtype && key == value && others == batch && width == dim;
        let grouped = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        let some = query.shape.num_elements() > 0 && keys > 0;
        let placed = match (self.seen, firsts) {
            (Seen::All, []) => true,
            (Seen::ToItself, []) => queries == keys,
            (Seen::FromFirst, [firsts]) => {
                let told = firsts.shape.num_dims() == 2;
                let told = told && firsts.shape.dims::<2>() == [batch, queries];
                told && firsts.is_float() && queries <= keys
            }
            _ => false,
        };
        alike && grouped && some && placed
    }

    fn forward<D: Device>(&self, inputs: [FloatTensor<D>; N]) -> FloatTensor<D> {
        float(self.open::<D>(inputs.into()).forward())
    }

    fn forward_saving<D: Device>(
        &self,
        inputs: [FloatTensor<D>; N],
        _: [bool; N],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        let saved = inputs.to_vec();
        (Kernel::<N>::forward::<D>(self, inputs), saved)
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<D>>; N] {
        let wanted = [wanted[0], wanted[1], wanted[2]];
        let found = self.open::<D>(saved).backward(tensor(grad), wanted);
        // The first keys take no gradient.
        let mut found = found.map(|found| found.map(float)).into_iter();
        std::array::from_fn(|_| found.next().flatten())
    }
}

/// The inputs, taken a block of queries at a time.
struct Blocks<'a, D: Device> {
    attention: &'a Attention,
    query: Tensor<D, 4>,
    key: Tensor<D, 4>,
    value: Tensor<D, 4>,
    firsts: Option<FloatTensor<D>>,
}

impl<D: Device> Blocks<'_, D> {
    fn ranges(&self) -> Vec<Range<usize>> {
        let [batch, heads, queries, _] = self.query.dims();
        let keys = self.key.dims()[2];
        let fit = self.attention.held / (batch * heads * keys);
        let step = (fit / TILE * TILE).max(TILE);
        let starts = (0..queries).step_by(step);
        starts
            .map(|start| start..queries.min(start + step))
            .collect()
    }

    /// The earliest keys, as many as the block sees.
    fn keys(&self, block: &Range<usize>) -> usize {
        let (queries, keys) = (self.query.dims()[2], self.key.dims()[2]);
        match self.attention.seen {
            Seen::All => keys,
            Seen::ToItself | Seen::FromFirst => keys - queries + block.end,
        }
    }

    /// What the scores of a block are of.
    fn scores(&self, block: &Range<usize>) -> Scores {
        let [_, heads, queries, dim] = self.query.dims();
        let scale = self.attention.scale;
        Scores {
            seen: self.attention.seen,
            heads,
            queries,
            past: self.key.dims()[2].saturating_sub(queries),
            block: block.clone(),
            scale: scale.unwrap_or_else(|| 1.0 / (dim as f32).sqrt()),
            softcap: self.attention.softcap,
        }
    }

    /// The queries of a block that share a key head as rows of one product, keys and values need not
    /// be repeated. `[batch, kv_heads, group · block, dim]`
    fn rows(&self, of: &Tensor<D, 4>, block: &Range<usize>) -> Tensor<D, 4> {
        let [batch, heads, _, dim] = of.dims();
        let kv_heads = self.key.dims()[1];
        let rows = heads / kv_heads * block.len();
        of.clone()
            .slice_dim(2, block.clone())
            .reshape([batch, kv_heads, rows, dim])
    }

    /// The way back. `[batch, heads, block, dim]`
    fn heads(&self, rows: Tensor<D, 4>, block: &Range<usize>) -> Tensor<D, 4> {
        let [batch, heads, _, dim] = self.query.dims();
        rows.reshape([batch, heads, block.len(), dim])
    }

    fn forward(&self) -> Tensor<D, 4> {
        let parts = self.ranges().into_iter().map(|block| {
            let seen = 0..self.keys(&block);
            let keys = self.key.clone().slice_dim(2, seen.clone());
            let scores = product(self.rows(&self.query, &block), keys.transpose());
            let inputs = std::iter::once(float(scores)).chain(self.firsts.clone());
            let weights = D::launch_one(&Softmax(self.scores(&block)), inputs.collect());
            let values = self.value.clone().slice_dim(2, seen);
            self.heads(product(tensor::<D, 4>(weights), values), &block)
        });
        joined(parts.collect())
    }

    /// Gradients of queries, keys and values. Scores are computed again.
    fn backward(&self, grad: Tensor<D, 4>, wanted: [bool; 3]) -> [Option<Tensor<D, 4>>; 3] {
        let mut query_parts = vec![];
        let (mut key_sum, mut value_sum) = (None, None);
        // The last block sees all keys, those before it the first of them.
        for block in self.ranges().into_iter().rev() {
            let seen = 0..self.keys(&block);
            let [keys, values] =
                [&self.key, &self.value].map(|all| all.clone().slice_dim(2, seen.clone()));
            let [rows, grads] = [&self.query, &grad].map(|all| self.rows(all, &block));
            let scores = product(rows.clone(), keys.clone().transpose());
            let steep = product(grads.clone(), values.transpose());
            let inputs = [scores, steep].map(float).into_iter();
            let inputs = inputs.chain(self.firsts.clone()).collect();
            let mut found = D::launch(&Slopes(self.scores(&block)), inputs);
            let slopes = tensor::<D, 4>(found.swap_remove(1));
            let weights = tensor::<D, 4>(found.swap_remove(0));
            if wanted[0] {
                query_parts.push(self.heads(product(slopes.clone(), keys), &block));
            }
            if wanted[1] {
                key_sum = Some(added(key_sum, product(slopes.transpose(), rows)));
            }
            if wanted[2] {
                value_sum = Some(added(value_sum, product(weights.transpose(), grads)));
            }
        }
        query_parts.reverse();
        let query = wanted[0].then(|| joined(query_parts));
        [query, key_sum, value_sum]
    }
}

/// Blocks of queries as one.
fn joined<D: Device>(mut blocks: Vec<Tensor<D, 4>>) -> Tensor<D, 4> {
    match blocks.len() {
        1 => blocks.swap_remove(0),
        _ => Tensor::cat(blocks, 2),
    }
}

/// A sum over keys with a part for the first of them.
fn added<D: Device>(sum: Option<Tensor<D, 4>>, part: Tensor<D, 4>) -> Tensor<D, 4> {
    let Some(sum) = sum else {
        return part;
    };
    let [batch, heads, keys, dim] = part.dims();
    if sum.dims()[2] == keys {
        return sum + part;
    }
    let first = [0..batch, 0..heads, 0..keys, 0..dim];
    let part = sum.clone().slice(first.clone()) + part;
    sum.slice_assign(first, part)
}
