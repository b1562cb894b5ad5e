//! Rotary position embedding (Su et al. 2021), half-split as in LLaMA.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;
use crate::ops::cat::cat;

/// Scaling of the rotary frequencies for longer contexts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// All positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// LLaMA 3.1: low frequencies divided, high ones kept, a ramp between
    /// (`_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`).
    Llama3 {
        /// Division of the low frequencies.
        factor: f64,
        /// Rotations in the old context below which a frequency counts as low.
        low_freq_factor: f64,
        /// Rotations in the old context above which a frequency counts as high.
        high_freq_factor: f64,
        /// The old context.
        original_max_position_embeddings: usize,
    },
    /// Each frequency divided by a number of its own (GGUF's `rope_freqs.weight`).
    Factors {
        /// `head_dim / 2` divisors.
        factors: Vec<f64>,
    },
}

/// Frequencies of one head.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// `[head_dim / 2]`.
    inv_freq: Vec<f32>,
}

/// Cosines and sines of a set of positions.
#[derive(Debug, Clone)]
pub struct Rotation<B: Backend> {
    /// `[batch or 1, 1, tokens, head_dim]`.
    cos: Tensor<B, 4>,
    /// `[batch or 1, 1, tokens, head_dim]`.
    sin: Tensor<B, 4>,
}

impl RotaryEmbedding {
    /// Frequencies `theta^(−2i/d)`, scaled.
    pub fn new(head_dim: usize, theta: f64, scaling: Option<&RopeScaling>) -> Self {
        let inv_freq = (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f64 / head_dim as f64;
                scaled(theta.powf(exponent).recip(), i, scaling) as f32
            })
            .collect();
        Self { inv_freq }
    }

    /// Cosines and sines of `positions`, one row per sample (or one for all).
    pub fn rotation<B: Backend>(
        &self,
        positions: &[Vec<usize>],
        device: &B::Device,
    ) -> Rotation<B> {
        let (batch, tokens) = (positions.len(), positions.first().map_or(0, Vec::len));
        let dim = 2 * self.inv_freq.len();
        let mut cos = Vec::with_capacity(batch * tokens * dim);
        let mut sin = Vec::with_capacity(batch * tokens * dim);
        for &position in positions.iter().flatten() {
            // Both halves of a head turn by the same angles. f32 products, as the reference does.
            for _ in 0..2 {
                for freq in &self.inv_freq {
                    let (s, c) = (position as f32 * freq).sin_cos();
                    cos.push(c);
                    sin.push(s);
                }
            }
        }
        let shape = [batch, 1, tokens, dim];
        Rotation {
            cos: Tensor::from_data(TensorData::new(cos, shape), device),
            sin: Tensor::from_data(TensorData::new(sin, shape), device),
        }
    }
}

/// The frequency number `i` of a head.
fn scaled(freq: f64, i: usize, scaling: Option<&RopeScaling>) -> f64 {
    match scaling {
        None => freq,
        Some(RopeScaling::Linear { factor }) => freq / factor,
        // The configuration holds one for each.
        Some(RopeScaling::Factors { factors }) => freq / factors.get(i).unwrap_or(&1.0),
        Some(&RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => {
            let old = original_max_position_embeddings as f64;
            let rotations = old * freq / std::f64::consts::TAU;
            if rotations < low_freq_factor {
                freq / factor
            } else if rotations > high_freq_factor {
                freq
            } else {
                let smooth = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * freq / factor + smooth * freq
            }
        }
    }
}

impl<B: AutodiffBackend> Rotation<B> {
    /// The same without a graph.
    pub fn inner(&self) -> Rotation<B::InnerBackend> {
        Rotation {
            cos: self.cos.clone().inner(),
            sin: self.sin.clone().inner(),
        }
    }
}

impl<B: Backend> Rotation<B> {
    /// `x · cos + rotate_half(x) · sin`. `[batch, heads, tokens, head_dim]`
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        #[cfg(feature = "cpu")]
        let x = {
            let (cos, sin) = (self.cos.clone(), self.sin.clone());
            let inputs = [cpu::float(x), cpu::float(cos), cpu::float(sin)];
            match cpu::run::<B, _, 3>(cpu::Rotate, inputs) {
                Ok(output) => return cpu::tensor(output),
                Err([x, ..]) => cpu::tensor(x),
            }
        };
        self.portable(x)
    }

    /// The operations that every backend has.
    pub(crate) fn portable(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let half = x.dims()[3] / 2;
        let dtype = x.dtype();
        let mut parts = x.clone().split(half, 3).into_iter();
        // A head has an even width: two halves.
        let (low, high) = match (parts.next(), parts.next()) {
            (Some(low), Some(high)) => (low, high),
            _ => return x,
        };
        let rotated = cat(vec![high.neg(), low], 3);
        x * self.cos.clone().cast(dtype) + rotated * self.sin.clone().cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    #[test]
    fn rotation_keeps_norms_and_depends_on_the_distance_only() {
        let rope = RotaryEmbedding::new(8, 10_000.0, None);
        let device = Default::default();
        let q = Tensor::<Flex, 4>::from_floats(
            [[[[0.3, -0.2, 0.9, 0.1, 0.5, 0.4, -0.7, 0.2]]]],
            &device,
        );
        let k = Tensor::<Flex, 4>::from_floats(
            [[[[0.1, 0.8, -0.3, 0.6, 0.2, -0.5, 0.4, 0.9]]]],
            &device,
        );
        let dot = |a: usize, b: usize| {
            let a = rope.rotation::<Flex>(&[vec![a]], &device).apply(q.clone());
            let b = rope.rotation::<Flex>(&[vec![b]], &device).apply(k.clone());
            (a * b).sum().into_scalar()
        };
        assert!((dot(7, 3) - dot(104, 100)).abs() < 1e-4);
        assert!((dot(7, 3) - dot(7, 5)).abs() > 1e-3);
    }

    /// Values of `_compute_llama3_parameters` in transformers 5 for head_dim 8, theta 5e5,
    /// factor 8, low 1, high 4, old context 32.
    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        };
        let plain = RotaryEmbedding::new(8, 5e5, None).inv_freq;
        let scaled = RotaryEmbedding::new(8, 5e5, Some(&scaling)).inv_freq;
        assert_eq!(scaled[0], plain[0]);
        for i in 1..4 {
            assert!((scaled[i] - plain[i] / 8.0).abs() < 1e-9, "{i}");
        }
    }
}
