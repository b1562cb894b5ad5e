//! Rotary frequencies by kind of scaling (`modeling_rope_utils.py` in transformers 5).

use std::borrow::Cow;
use std::f64::consts::TAU;

use super::RopeScaling;

/// The frequencies of a head; some kinds of scaling let them depend on a text's length.
#[derive(Debug, Clone)]
pub(super) enum Frequencies {
    /// The same for every length.
    Fixed(Vec<f32>),
    /// Longrope: others for all positions of a text longer than `original` tokens.
    ByLength {
        short: Vec<f32>,
        long: Vec<f32>,
        original: usize,
    },
    /// Dynamic: beyond `original` tokens the base grows with the length.
    Growing {
        plain: Plain,
        factor: f64,
        original: usize,
    },
}

/// What unscaled frequencies are computed from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    /// Entries of a head that rotate.
    pub width: usize,
    /// Base.
    pub theta: f64,
}

impl Plain {
    /// `theta^(2i/width)`, the reciprocals of the frequencies.
    fn periods(self) -> impl Iterator<Item = f64> {
        let Self { width, theta } = self;
        (0..width.div_ceil(2)).map(move |i| theta.powf((2 * i) as f64 / width as f64))
    }

    fn frequencies(self) -> Vec<f32> {
        self.periods().map(|p| p.recip() as f32).collect()
    }

    /// Each divided by a number of its own.
    fn divided(self, factors: &[f64]) -> Vec<f32> {
        let factors = factors.iter().copied().chain(std::iter::repeat(1.0));
        let pairs = self.periods().zip(factors);
        pairs.map(|(p, f)| (p * f).recip() as f32).collect()
    }
}

impl Frequencies {
    /// Of a head, scaled.
    pub(super) fn new(plain: Plain, scaling: Option<&RopeScaling>) -> Self {
        match scaling {
            None => Self::Fixed(plain.frequencies()),
            Some(RopeScaling::Linear { factor }) => {
                let factors = vec![*factor; plain.width.div_ceil(2)];
                Self::Fixed(plain.divided(&factors))
            }
            Some(RopeScaling::Factors { factors }) => Self::Fixed(plain.divided(factors)),
            Some(&RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => {
                let rotations = original_max_position_embeddings as f64;
                let bands = [low_freq_factor, high_freq_factor];
                Self::Fixed(llama3(plain, factor, bands, rotations))
            }
            Some(RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                ..
            }) => Self::ByLength {
                short: plain.divided(short_factor),
                long: plain.divided(long_factor),
                original: *original_max_position_embeddings,
            },
            Some(&RopeScaling::Dynamic {
                factor,
                original_max_position_embeddings,
            }) => Self::Growing {
                plain,
                factor,
                original: original_max_position_embeddings,
            },
            Some(scaling @ RopeScaling::Yarn { .. }) => Self::Fixed(yarn(plain, scaling)),
        }
    }

    /// Number of frequencies: half the entries that rotate.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Fixed(all) | Self::ByLength { short: all, .. } => all.len(),
            Self::Growing { plain, .. } => plain.width.div_ceil(2),
        }
    }

    /// The frequencies for a text of `length` tokens.
    pub(super) fn of(&self, length: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Fixed(all) => Cow::Borrowed(all),
            Self::ByLength {
                short,
                long,
                original,
            } => Cow::Borrowed(if length > *original { long } else { short }),
            Self::Growing {
                plain,
                factor,
                original,
            } => {
                let longer = length.max(*original) as f64 / *original as f64;
                let width = plain.width as f64;
                let growth = (factor * longer - (factor - 1.0)).powf(width / (width - 2.0));
                let theta = plain.theta * growth;
                Cow::Owned(Plain { theta, ..*plain }.frequencies())
            }
        }
    }

    /// Whether they are others for texts of other lengths.
    pub(super) fn depends_on_length(&self) -> bool {
        !matches!(self, Self::Fixed(_))
    }

    /// Length beyond which other frequencies hold for all positions, those before it too.
    pub(super) fn switches_behind(&self) -> Option<usize> {
        match self {
            Self::ByLength {
                short,
                long,
                original,
            } => (short != long).then_some(*original),
            Self::Fixed(_) | Self::Growing { .. } => None,
        }
    }
}

/// LLaMA 3.1: low frequencies divided, high ones kept, a ramp between. `bands` are rotations in the
/// `old` context.
fn llama3(plain: Plain, factor: f64, [low, high]: [f64; 2], old: f64) -> Vec<f32> {
    let scaled = |period: f64| {
        let freq = period.recip();
        let rotations = old * freq / TAU;
        if rotations < low {
            freq / factor
        } else if rotations > high {
            freq
        } else {
            let smooth = (rotations - low) / (high - low);
            (1.0 - smooth) * freq / factor + smooth * freq
        }
    };
    plain.periods().map(|p| scaled(p) as f32).collect()
}

/// YaRN (Peng et al. 2023): as LLaMA 3's, with the ramp over the numbers of the frequencies.
fn yarn(plain: Plain, scaling: &RopeScaling) -> Vec<f32> {
    let &RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        truncate,
        original_max_position_embeddings,
        ..
    } = scaling
    else {
        return plain.frequencies();
    };
    let (width, old) = (plain.width as f64, original_max_position_embeddings as f64);
    // The frequency that turns so often in the old context.
    let number = |rotations: f64| width * (old / (rotations * TAU)).ln() / (2.0 * plain.theta.ln());
    let (mut low, mut high) = (number(beta_fast), number(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
    if low == high {
        high += 0.001;
    }
    let scaled = |(i, period): (usize, f64)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        ramp / (factor * period) + (1.0 - ramp) / period
    };
    let numbered = plain.periods().enumerate();
    numbered.map(|p| scaled(p) as f32).collect()
}
