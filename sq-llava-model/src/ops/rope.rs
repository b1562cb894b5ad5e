//! Rotary position embedding (Su et al. 2021), half-split as in LLaMA, of all entries of a head or
//! the first ones only.

mod frequencies;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

#[cfg(feature = "cpu")]
use crate::kernels::cpu;
#[cfg(feature = "gpu")]
use crate::kernels::gpu;
use crate::ops::cat::cat;
use frequencies::{Frequencies, Plain};

/// Scaling of the rotary frequencies for longer contexts (`modeling_rope_utils.py` in transformers
/// 5). The old context is the one that the model was first trained with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// All positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// LLaMA 3.1: low frequencies divided, high ones kept, a ramp between
    /// (`_compute_llama3_parameters`).
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
    /// YaRN: low frequencies divided, high ones kept, a ramp between; cosines and sines multiplied
    /// (`_compute_yarn_parameters`).
    Yarn {
        /// Division of the low frequencies.
        factor: f64,
        /// Rotations in the old context above which a frequency counts as high.
        beta_fast: f64,
        /// Rotations in the old context below which a frequency counts as low.
        beta_slow: f64,
        /// Whether the ends of the ramp are whole numbers.
        truncate: bool,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// The old context.
        original_max_position_embeddings: usize,
    },
    /// NTK: the base grows with the length of a text that is longer than the old context
    /// (`_compute_dynamic_ntk_parameters`).
    Dynamic {
        /// How much longer the context can be.
        factor: f64,
        /// The old context, in tokens: `max_position_embeddings`.
        original_max_position_embeddings: usize,
    },
    /// Each frequency divided by a number of its own, others in texts longer than the old context;
    /// cosines and sines multiplied (`_compute_longrope_parameters`).
    LongRope {
        /// Divisors up to the old context, one for each frequency.
        short_factor: Vec<f64>,
        /// Divisors beyond it, at all positions.
        long_factor: Vec<f64>,
        /// Factor of cosines and sines, in short texts too.
        attention_factor: f64,
        /// The old context.
        original_max_position_embeddings: usize,
    },
    /// Each frequency divided by a number of its own (GGUF's `rope_freqs.weight`).
    Factors {
        /// One divisor for each frequency.
        factors: Vec<f64>,
    },
}

/// Frequencies of one head.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    frequencies: Frequencies,
    /// Factor of cosines and sines.
    attention_factor: f32,
}

/// Cosines and sines of a set of positions.
#[derive(Debug, Clone)]
pub struct Rotation<B: Backend> {
    /// `[batch or 1, 1, tokens, rotated]`.
    cos: Tensor<B, 4>,
    /// `[batch or 1, 1, tokens, rotated]`.
    sin: Tensor<B, 4>,
}

impl RotaryEmbedding {
    /// Frequencies `theta^(−2i/width)`, scaled, of a head whose first `width` entries rotate (one
    /// more, where that is odd).
    pub fn new(width: usize, theta: f64, scaling: Option<&RopeScaling>) -> Self {
        let attention_factor = match scaling {
            Some(
                RopeScaling::Yarn {
                    attention_factor, ..
                }
                | RopeScaling::LongRope {
                    attention_factor, ..
                },
            ) => *attention_factor as f32,
            _ => 1.0,
        };
        Self {
            frequencies: Frequencies::new(Plain { width, theta }, scaling),
            attention_factor,
        }
    }

    /// Tokens of a text beyond which keys of its beginning are others than before.
    pub(crate) fn switches_behind(&self) -> Option<usize> {
        self.frequencies.switches_behind()
    }

    /// Whether the length of a text changes its frequencies.
    pub(crate) fn depends_on_length(&self) -> bool {
        self.frequencies.depends_on_length()
    }

    /// Cosines and sines of `positions`, one row per batch element (or one for all). A text begins
    /// at each position 0; a row may hold several, or the end of one. The length of each, up to its
    /// last position, may change its frequencies.
    pub fn rotation<B: Backend>(
        &self,
        positions: &[Vec<usize>],
        device: &B::Device,
    ) -> Rotation<B> {
        let (batch, tokens) = (positions.len(), positions.first().map_or(0, Vec::len));
        let dim = 2 * self.frequencies.len();
        let mut cos = Vec::with_capacity(batch * tokens * dim);
        let mut sin = Vec::with_capacity(batch * tokens * dim);
        let texts = positions
            .iter()
            .flat_map(|row| row.chunk_by(|_, &next| next != 0));
        for text in texts {
            let length = text.last().map_or(0, |last| last + 1);
            let frequencies = self.frequencies.of(length);
            for &position in text {
                // Both halves turn by the same angles. f32 products, as the reference does.
                for _ in 0..2 {
                    for freq in frequencies.iter() {
                        let (s, c) = (position as f32 * freq).sin_cos();
                        cos.push(c * self.attention_factor);
                        sin.push(s * self.attention_factor);
                    }
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
    /// Cosines and sines. `[batch or 1, 1, tokens, rotated]` each
    #[cfg(any(feature = "cpu", feature = "gpu"))]
    pub(crate) fn angles(&self) -> [Tensor<B, 4>; 2] {
        [self.cos.clone(), self.sin.clone()]
    }

    /// `x · cos + rotate_half(x) · sin` of the first `rotated` entries of each head; the others
    /// stay. `[batch, heads, tokens, head_dim]`
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        #[cfg(feature = "cpu")]
        let x = {
            let (cos, sin) = (self.cos.clone(), self.sin.clone());
            let inputs = [cpu::float(x), cpu::float(cos), cpu::float(sin)];
            match cpu::run::<B, _, 3>(cpu::Rotate, inputs) {
                Ok(output) => return cpu::tensor(output),
                Err([x, ..]) => cpu::tensor::<B, 4>(x),
            }
        };
        #[cfg(feature = "gpu")]
        let x = {
            let (cos, sin) = (self.cos.clone(), self.sin.clone());
            let inputs = [gpu::float(x), gpu::float(cos), gpu::float(sin)];
            match gpu::run::<B, _, 3>(gpu::Rotate, inputs) {
                Ok(output) => return gpu::tensor(output),
                Err([x, ..]) => gpu::tensor(x),
            }
        };
        self.portable(x)
    }

    /// The operations that every backend has.
    pub(crate) fn portable(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, heads, tokens, width] = x.dims();
        let (dtype, rotated) = (x.dtype(), self.cos.dims()[3]);
        let half = rotated / 2;
        let part =
            |from: usize, to: usize| x.clone().slice([0..batch, 0..heads, 0..tokens, from..to]);
        let turned = part(0, rotated) * self.cos.clone().cast(dtype)
            + cat(vec![part(half, rotated).neg(), part(0, half)], 3) * self.sin.clone().cast(dtype);
        match width - rotated {
            0 => turned,
            _ => cat(vec![turned, part(rotated, width)], 3),
        }
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
        let of = |scaling| {
            RotaryEmbedding::new(8, 5e5, scaling)
                .frequencies
                .of(1)
                .to_vec()
        };
        let (plain, scaled) = (of(None), of(Some(&scaling)));
        assert_eq!(scaled[0], plain[0]);
        for i in 1..4 {
            assert!((scaled[i] - plain[i] / 8.0).abs() < 1e-9, "{i}");
        }
    }
}
