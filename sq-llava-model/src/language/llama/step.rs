//! A decoded token on the CPU: the layers of [`super::layer`] on rows of numbers instead of tensors.
//!
//! A token of each of a few samples costs what reading the weights costs. A tensor for every
//! intermediate result would cost as much again in small models.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;

use super::layer::{LlamaAttention, LlamaLayer, LlamaMlp};
use super::{LayerContext, Llama};
use crate::kernels::cpu;
use crate::kernels::cpu::step::{SAMPLES, StepCache, StepLinear, gate, products, rms_norm, rotate};
use crate::language::cache::{KvCache, LayerCache};
use crate::ops::attention::{AttentionMask, ScoreOptions, kernel};
use crate::ops::linear::Linear;
use crate::ops::norm::RmsNorm;
use crate::ops::rope::Rotation;

/// The linears of a layer.
struct Maps {
    /// Queries, keys and values, or all in one.
    qkv: Vec<StepLinear>,
    o: StepLinear,
    /// Gate and value, or both in one.
    gate_up: Vec<StepLinear>,
    down: StepLinear,
}

/// Angles and mask of a layer.
struct Place {
    angles: Option<(FlexTensor, FlexTensor)>,
    attention: cpu::Attention,
}

impl<B: Backend> Llama<B> {
    /// The layers over one new token of each sample, where tensors, weights, mask and cache are
    /// such as the CPU's kernels read; else `None`, and the cache is as it was.
    /// `[samples, 1, hidden]` → `[samples, 1, hidden]`
    pub(super) fn step(
        &self,
        hidden: &Tensor<B, 3>,
        context: &LayerContext<B>,
        cache: &mut KvCache<B>,
    ) -> Option<Tensor<B, 3>> {
        let [samples, tokens, width] = hidden.dims();
        let few = tokens == 1 && (1..=SAMPLES).contains(&samples);
        if !few || !cpu::is_plain::<B>() || hidden.dtype() != DType::F32 || cache.is_empty() {
            return None;
        }
        let layers = self.model.layers.iter().map(|layer| {
            let (rotation, mask) = layer.place(context);
            Some((
                layer,
                layer.maps()?,
                place(rotation, mask, layer.self_attn.scores)?,
            ))
        });
        // All or none: a cache must not be written in part.
        let layers: Vec<_> = layers.collect::<Option<_>>()?;
        let mut x = cpu::to_rows(hidden.clone())?;
        for (index, (layer, maps, place)) in layers.into_iter().enumerate() {
            x = layer.step(x, samples, &maps, &place, cache.layer(index));
        }
        cpu::from_rows(x, [samples, 1, width])
    }
}

impl<B: Backend> LlamaLayer<B> {
    fn maps(&self) -> Option<Maps> {
        let (a, m) = (&self.self_attn, &self.mlp);
        let all = |linears: &[&Option<Linear<B>>]| {
            let linears = linears.iter().filter_map(|linear| linear.as_ref());
            linears.map(Linear::step).collect::<Option<Vec<_>>>()
        };
        Some(Maps {
            qkv: all(&[&a.q_proj, &a.k_proj, &a.v_proj, &a.qkv_proj])?,
            o: a.o_proj.step()?,
            gate_up: all(&[&m.gate_proj, &m.up_proj, &m.gate_up_proj])?,
            down: m.down_proj.step()?,
        })
    }

    /// As [`Self::forward`]. `[samples, hidden]` → `[samples, hidden]`
    fn step(
        &self,
        x: Vec<f32>,
        samples: usize,
        maps: &Maps,
        place: &Place,
        cache: &mut LayerCache<B>,
    ) -> Vec<f32> {
        let normed = match &self.input_layernorm {
            Some(norm) => normed_by(norm, &x),
            None => x.clone(),
        };
        let attended = self.self_attn.step(&normed, samples, maps, place, cache);
        let Some(behind) = &self.post_feedforward_layernorm else {
            let x = sum(x, &attended);
            let normed = normed_by(&self.post_attention_layernorm, &x);
            let fed = self.mlp.step(&normed, samples, maps);
            return sum(x, &fed);
        };
        let x = sum(x, &normed_by(&self.post_attention_layernorm, &attended));
        let normed = match &self.pre_feedforward_layernorm {
            Some(norm) => normed_by(norm, &x),
            None => x.clone(),
        };
        let fed = self.mlp.step(&normed, samples, maps);
        sum(x, &normed_by(behind, &fed))
    }
}

impl<B: Backend> LlamaAttention<B> {
    /// As [`Self::forward`]. `[samples, hidden]` → `[samples, hidden]`
    fn step(
        &self,
        x: &[f32],
        samples: usize,
        maps: &Maps,
        place: &Place,
        cache: &mut LayerCache<B>,
    ) -> Vec<f32> {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let qkv: Vec<&StepLinear> = maps.qkv.iter().collect();
        let parts = columns(
            products(&qkv, samples, x),
            samples,
            &[heads * dim, kv_heads * dim, kv_heads * dim],
        );
        let Ok([query, key, value]) = <[Vec<f32>; 3]>::try_from(parts) else {
            unreachable!("as many parts as widths")
        };
        let turned = |mut x: Vec<f32>, norm: Option<&RmsNorm<B>>| {
            if let Some(norm) = norm {
                // As wide as a head or as all of them: its weight says.
                x = normed_by(norm, &x);
            }
            if let Some((cos, sin)) = &place.angles {
                rotate(&mut x, [samples, dim], cos, sin);
            }
            x
        };
        let query = turned(query, self.q_norm.as_ref());
        let key = turned(key, self.k_norm.as_ref());
        let (at, shape) = (cache.len(), [samples, kv_heads, cache.len() + 1, dim]);
        let device = self.o_proj.weight.device();
        let (keys, values) = cache.room(shape, self.stored(DType::F32), &device);
        let mut held = StepCache::new(plain(keys), plain(values));
        held.write(at, &key, &value);
        let out = held.attend(&place.attention, &query, at + 1);
        let [Some(keys), Some(values)] = [held.keys, held.values].map(cpu::from_plain) else {
            unreachable!("{PLAIN}")
        };
        cache.put((keys, values), at + 1);
        products(&[&maps.o], samples, &out).swap_remove(0)
    }
}

impl<B: Backend> LlamaMlp<B> {
    /// As [`Self::forward`]. `[samples, hidden]` → `[samples, hidden]`
    fn step(&self, x: &[f32], samples: usize, maps: &Maps) -> Vec<f32> {
        let both: Vec<&StepLinear> = maps.gate_up.iter().collect();
        let both = products(&both, samples, x);
        let width = both.iter().map(Vec::len).sum::<usize>() / (2 * samples);
        let both = columns(both, samples, &[width, width]);
        let gated = gate(self.act, &both[0], &both[1]);
        products(&[&maps.down], samples, &gated).swap_remove(0)
    }
}

/// Angles and mask for the kernels, if they read such.
fn place<B: Backend>(
    rotation: Option<&Rotation<B>>,
    mask: &AttentionMask<B>,
    scores: ScoreOptions,
) -> Option<Place> {
    if matches!(mask, AttentionMask::Hidden(_)) {
        return None;
    }
    let angles = match rotation {
        Some(rotation) => {
            let [cos, sin] = rotation.angles();
            Some((cpu::plain(cos)?, cpu::plain(sin)?))
        }
        None => None,
    };
    let attention = kernel(mask, scores)?;
    Some(Place { angles, attention })
}

/// Rows of several maps as rows of these widths: the maps' own, or columns of one map's.
fn columns(mut rows: Vec<Vec<f32>>, samples: usize, widths: &[usize]) -> Vec<Vec<f32>> {
    if rows.len() == widths.len() {
        return rows;
    }
    let joined = rows.swap_remove(0);
    let width = joined.len() / samples;
    let mut from = 0;
    let part = |&part: &usize| {
        let columns = from..from + part;
        from = columns.end;
        let rows = joined.chunks_exact(width);
        rows.flat_map(|row| row[columns.clone()].iter().copied())
            .collect()
    };
    widths.iter().map(part).collect()
}

fn normed_by<B: Backend>(norm: &RmsNorm<B>, x: &[f32]) -> Vec<f32> {
    rms_norm(x, &plain(norm.factor()), norm.eps)
}

const PLAIN: &str = "the backend's tensors were found plain before the first layer";

fn plain<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FlexTensor {
    match cpu::plain(tensor) {
        Some(tensor) => tensor,
        None => unreachable!("{PLAIN}"),
    }
}

fn sum(mut x: Vec<f32>, y: &[f32]) -> Vec<f32> {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    x
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;
    use burn_flex::Flex;

    use super::*;
    use crate::config::{Family, LlamaConfig, SlidingWindow};

    type B = Flex;

    fn small(family: Family) -> LlamaConfig {
        let config = family.preset().with_hidden_size(48);
        config
            .with_num_hidden_layers(3)
            .with_num_attention_heads(6)
            .with_num_key_value_heads(2)
            .with_head_dim(Some(16))
            .with_intermediate_size(40)
            .with_vocab_size(16)
            .with_unrotated_layers(vec![1])
            .with_sliding_window(Some(SlidingWindow {
                tokens: 5,
                layers: vec![true, false, true],
            }))
    }

    /// Token by token behind a prompt, as the layers on tensors give the whole text.
    #[test]
    fn tokens_one_by_one_are_those_of_the_whole_text() {
        let (tokens, prompt, width) = (12, 4, 48);
        for family in Family::ALL {
            let llama = small(family).init::<B>(&Default::default());
            let normal = Distribution::Normal(0.0, 1.0);
            let text = Tensor::<B, 3>::random([3, tokens, width], normal, &Default::default());
            let padding = [0, 2, 3];
            let whole = llama.forward_layers(text.clone(), &padding, None);
            let part = |from: usize, to: usize| text.clone().slice([0..3, from..to, 0..width]);
            let mut cache = KvCache::new(3, padding.to_vec());
            llama.forward_layers(part(0, prompt), &padding, Some(&mut cache));
            for at in prompt..tokens {
                let hidden = part(at, at + 1);
                let context = llama.context(&padding, at, 1, &Default::default());
                let found = llama.step(&hidden, &context, &mut cache);
                let found = found.expect("plain tensors, and no adapter");
                assert_eq!(cache.len(), at + 1);
                let expected = whole.clone().slice([0..3, at..at + 1, 0..width]);
                let error = (found - expected.clone()).abs().max().into_scalar();
                let size = expected.abs().max().into_scalar();
                assert!(
                    error < 1e-4 * size,
                    "{family:?} {at}: {error:e} of {size:e}"
                );
            }
        }
    }

    #[test]
    fn what_the_kernels_do_not_read_goes_the_other_way() {
        let llama = small(Family::Llama).init::<B>(&Default::default());
        let hidden = Tensor::<B, 3>::ones([1, 1, 48], &Default::default());
        let mut cache = KvCache::new(3, vec![0]);
        let context = |past| llama.context(&[0], past, 1, &Default::default());
        assert!(llama.step(&hidden, &context(0), &mut cache).is_none());
        llama.forward_layers(hidden.clone(), &[0], Some(&mut cache));
        let mut adapted = llama.clone();
        let config = crate::ops::lora::LoraConfig::llm(2, 4.0, 0.0);
        let down = &mut adapted.model.layers[2].mlp.down_proj;
        *down = down.clone().with_lora(&config, 0);
        assert!(adapted.step(&hidden, &context(1), &mut cache).is_none());
        assert_eq!(cache.len(), 1);
        assert!(llama.step(&hidden, &context(1), &mut cache).is_some());
    }
}
