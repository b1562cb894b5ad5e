//! Preallocated key-value cache that grows in blocks.

use std::ops::Range;

use burn::tensor::{DType, Tensor, backend::Backend};

#[cfg(feature = "gpu")]
use crate::ops::{one_token, rope::Rotation};

/// Tokens by which a full cache grows.
const BLOCK: usize = 256;

/// Keys and values of all layers.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    /// Padding tokens to the left of each sample; they are never attended to.
    padding: Vec<usize>,
    /// What the keys and values were computed from, where they may have to be computed again.
    /// `[batch, tokens, hidden]` each
    inputs: Vec<Tensor<B, 3>>,
    /// Whether each sample has become longer than its first rotary frequencies hold for.
    long: Vec<bool>,
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct LayerCache<B: Backend> {
    /// `[batch, kv_heads, capacity, head_dim]`, twice.
    buffers: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
    len: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for samples with these numbers of padding tokens to their left.
    pub fn new(num_layers: usize, padding: Vec<usize>) -> Self {
        let layer = LayerCache {
            buffers: None,
            len: 0,
        };
        Self {
            layers: vec![layer; num_layers],
            padding,
            inputs: vec![],
            long: vec![],
        }
    }

    /// Tokens held, padding included.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Padding tokens to the left of each sample.
    pub fn padding(&self) -> &[usize] {
        &self.padding
    }

    /// The cache of one layer.
    pub(crate) fn layer(&mut self, index: usize) -> &mut LayerCache<B> {
        &mut self.layers[index]
    }

    /// Keeps new inputs of the layers and returns those that they have to run over now: the new
    /// ones, or all so far when a sample becomes longer than `length`; the cache is emptied then.
    /// `[batch, tokens, hidden]`
    pub(crate) fn take_in(&mut self, new: Tensor<B, 3>, length: usize) -> Tensor<B, 3> {
        let (past, tokens) = (self.len(), new.dims()[1]);
        let is_long = |pad: &usize| (past + tokens).saturating_sub(*pad) > length;
        let long = self.padding.iter().map(is_long).collect();
        self.inputs.push(new.clone());
        let before = std::mem::replace(&mut self.long, long);
        if past == 0 || before == self.long {
            return new;
        }
        for layer in &mut self.layers {
            layer.len = 0;
        }
        let all = Tensor::cat(std::mem::take(&mut self.inputs), 1);
        self.inputs.push(all.clone());
        all
    }

    /// Forgets all tokens after the first `len`; the memory stays.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
        }
        let mut left = len;
        self.inputs.retain_mut(|input| {
            let [batch, tokens, width] = input.dims();
            let kept = tokens.min(left);
            left -= kept;
            if (1..tokens).contains(&kept) {
                *input = input.clone().slice([0..batch, 0..kept, 0..width]);
            }
            kept > 0
        });
    }

    /// Repeats a single sample `n` times, so that `n` continuations share its prefix.
    #[must_use]
    pub fn repeat(&self, n: usize) -> Self {
        let layers = self.layers.iter().map(|layer| LayerCache {
            buffers: layer
                .buffers
                .as_ref()
                .map(|(k, v)| (k.clone().repeat_dim(0, n), v.clone().repeat_dim(0, n))),
            len: layer.len,
        });
        Self {
            layers: layers.collect(),
            padding: self.padding.repeat(n),
            inputs: self
                .inputs
                .iter()
                .map(|input| input.clone().repeat_dim(0, n))
                .collect(),
            long: self.long.repeat(n),
        }
    }

    /// Bytes of one sample's keys and values, and of what they may be computed from again, once it
    /// holds `tokens`; 0 while nothing is held.
    pub(crate) fn sample_bytes(&self, tokens: usize) -> usize {
        let capacity = tokens.div_ceil(BLOCK) * BLOCK;
        let of = |layer: &LayerCache<B>| {
            layer.buffers.as_ref().map_or(0, |(keys, _)| {
                let [_, heads, _, dim] = keys.dims();
                2 * heads * dim * capacity * keys.dtype().size()
            })
        };
        let inputs = self
            .inputs
            .first()
            .map_or(0, |input| input.dims()[2] * tokens * input.dtype().size());
        self.layers.iter().map(of).sum::<usize>() + inputs
    }

    /// Keeps the samples at `indices`, in that order.
    pub fn select(&mut self, indices: &[usize], device: &B::Device) {
        let index: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
        let index = Tensor::<B, 1, burn::tensor::Int>::from_data(index.as_slice(), device);
        for layer in &mut self.layers {
            if let Some((k, v)) = layer.buffers.take() {
                layer.buffers = Some((k.select(0, index.clone()), v.select(0, index.clone())));
            }
        }
        for input in &mut self.inputs {
            *input = input.clone().select(0, index.clone());
        }
        self.padding = indices.iter().map(|&i| self.padding[i]).collect();
        if !self.long.is_empty() {
            self.long = indices.iter().map(|&i| self.long[i]).collect();
        }
    }
}

#[cfg(feature = "gpu")]
impl<B: Backend> LayerCache<B> {
    /// Whether nothing is held yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one token behind others, where a GPU's kernel does it: queries `[batch, heads · dim]`,
    /// keys and values `[batch, kv_heads · dim]` → rotated queries `[batch, heads, 1, dim]` and the
    /// buffers. `None` leaves everything as it was.
    pub(crate) fn append_one(
        &mut self,
        projected: [Tensor<B, 2>; 3],
        rotation: Option<&Rotation<B>>,
        stored: DType,
    ) -> Option<(Tensor<B, 4>, [Tensor<B, 4>; 2])> {
        let [batch, heads, _, dim] = self.buffers.as_ref()?.0.dims();
        let device = projected[0].device();
        let (k, v) = self.room([batch, heads, self.len + 1, dim], stored, &device);
        match one_token::append(projected, rotation, [k, v], self.len) {
            Ok((queries, [k, v])) => {
                self.buffers = Some((k.clone(), v.clone()));
                self.len += 1;
                Some((queries, [k, v]))
            }
            Err([k, v]) => {
                self.buffers = Some((k, v));
                None
            }
        }
    }
}

impl<B: Backend> LayerCache<B> {
    /// Tokens held.
    #[cfg(any(feature = "cpu", feature = "gpu"))]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes the buffers out, with room for `tokens`. `[batch, kv_heads, tokens, head_dim]`
    pub(crate) fn room(
        &mut self,
        [batch, heads, tokens, dim]: [usize; 4],
        stored: DType,
        device: &B::Device,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let old = match self.buffers.take() {
            Some((k, v)) if k.dims()[2] >= tokens => return (k, v),
            old => old,
        };
        let shape = [batch, heads, tokens.div_ceil(BLOCK) * BLOCK, dim];
        let options = (device, stored);
        let grown = (Tensor::zeros(shape, options), Tensor::zeros(shape, options));
        match old {
            None => grown,
            Some((k, v)) => {
                let held = [0..batch, 0..heads, 0..k.dims()[2], 0..dim];
                (write(grown.0, held.clone(), k), write(grown.1, held, v))
            }
        }
    }

    /// Puts buffers back that hold `tokens`.
    #[cfg(feature = "cpu")]
    pub(crate) fn put(&mut self, buffers: (Tensor<B, 4>, Tensor<B, 4>), tokens: usize) {
        self.buffers = Some(buffers);
        self.len = tokens;
    }

    /// Adds keys and values `[batch, kv_heads, new, head_dim]`, held in `stored`, and returns all
    /// of them, `[batch, kv_heads, len, head_dim]`: the first ones as they came, later in `stored`.
    pub(crate) fn append(
        &mut self,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
        stored: DType,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let [batch, heads, new, dim] = keys.dims();
        let end = self.len + new;
        let first = (self.len == 0).then(|| (keys.clone(), values.clone()));
        let (mut k, mut v) = self.room([batch, heads, end, dim], stored, &keys.device());
        let place = [0..batch, 0..heads, self.len..end, 0..dim];
        k = write(k, place.clone(), keys);
        v = write(v, place, values);
        self.len = end;
        let all = [0..batch, 0..heads, 0..end, 0..dim];
        let views = first.unwrap_or_else(|| (k.clone().slice(all.clone()), v.clone().slice(all)));
        self.buffers = Some((k, v));
        views
    }
}

/// Puts tokens at `place`. burn-flex copies the whole buffer for that, our kernel does not.
fn write<B: Backend>(
    buffer: Tensor<B, 4>,
    place: [Range<usize>; 4],
    rows: Tensor<B, 4>,
) -> Tensor<B, 4> {
    #[cfg(feature = "cpu")]
    let (buffer, rows) = match crate::kernels::cpu::append(buffer, place[2].start, rows) {
        Ok(buffer) => return buffer,
        Err(inputs) => inputs,
    };
    let dtype = buffer.dtype();
    buffer.slice_assign(place, rows.cast(dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    fn numbers(from: usize, n: usize) -> Tensor<Flex, 4> {
        let values: Vec<f32> = (from..from + n).map(|v| v as f32).collect();
        Tensor::<Flex, 1>::from_floats(values.as_slice(), &Default::default()).reshape([1, 1, n, 1])
    }

    #[test]
    fn growing_and_truncating_keeps_what_is_held() {
        let mut cache = KvCache::<Flex>::new(1, vec![0]);
        for start in (0..600).step_by(100) {
            cache
                .layer(0)
                .append(numbers(start, 100), numbers(start, 100), DType::F32);
        }
        assert_eq!(cache.len(), 600);
        cache.truncate(500);
        let (k, v) = cache
            .layer(0)
            .append(numbers(500, 1), numbers(500, 1), DType::F32);
        let expected: Vec<f32> = (0..501).map(|v| v as f32).collect();
        assert_eq!(k.into_data().to_vec::<f32>().unwrap(), expected);
        assert_eq!(v.into_data().to_vec::<f32>().unwrap(), expected);
    }

    /// What comes first is attended to as it came; what is read later was rounded once.
    #[test]
    fn later_tokens_read_the_stored_dtype() {
        let third = |from: usize, n: usize| numbers(from, n) / 3.0;
        for (stored, error) in [(DType::F16, 4.9e-4), (DType::BF16, 3.9e-3)] {
            let mut cache = KvCache::<Flex>::new(1, vec![0]);
            let (k, _) = cache.layer(0).append(third(1, 300), third(1, 300), stored);
            assert_eq!(k.dtype(), DType::F32);
            // One more than the room of the first 300.
            let (k, v) = cache
                .layer(0)
                .append(third(301, 213), third(301, 213), stored);
            assert_eq!(
                (k.dtype(), v.dtype(), k.dims()),
                (stored, stored, [1, 1, 513, 1])
            );
            for tensor in [k, v] {
                let found: Vec<f32> = tensor.cast(DType::F32).into_data().to_vec().unwrap();
                for (i, found) in found.into_iter().enumerate() {
                    let exact = (i + 1) as f32 / 3.0;
                    assert!(
                        (found - exact).abs() <= error * exact,
                        "{found} for {exact}"
                    );
                }
            }
        }
    }

    /// Each sample by its own length; what was forgotten does not come again.
    #[test]
    fn what_was_taken_in_comes_again_beyond_a_length() {
        let mut cache = KvCache::<Flex>::new(1, vec![0, 2]);
        let run = |cache: &mut KvCache<Flex>, from: usize, n: usize| {
            let samples = cache.padding().len();
            let new = numbers(from, n).reshape([1, n, 1]).repeat_dim(0, samples);
            let now = cache.take_in(new, 6);
            let tokens = now.dims()[1];
            let keys = now.clone().reshape([samples, 1, tokens, 1]);
            cache.layer(0).append(keys.clone(), keys, DType::F32);
            let first = now.slice([0..1, 0..tokens, 0..1]).into_data();
            first.to_vec::<f32>().unwrap()
        };
        assert_eq!(run(&mut cache, 0, 5).len(), 5);
        assert_eq!(run(&mut cache, 5, 1), [5.0]);
        cache.truncate(4);
        assert_eq!(run(&mut cache, 10, 2), [10.0, 11.0]);
        let all = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0];
        assert_eq!(run(&mut cache, 12, 1), all);
        assert_eq!(cache.len(), 7);
        // The other sample's padding is not part of its length.
        cache.select(&[1], &Default::default());
        assert_eq!(run(&mut cache, 13, 1), [13.0]);
        let mut twice = cache.repeat(2);
        assert_eq!(run(&mut twice, 14, 1).len(), 9);
        assert_eq!(run(&mut twice, 15, 1), [15.0]);
    }
}
