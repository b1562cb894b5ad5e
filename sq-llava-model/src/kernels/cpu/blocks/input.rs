//! Rows of input as integers.

use super::super::level::vectorised;
use super::super::math::{LANES, total};
use super::{BLOCK, STEP};
use crate::kernels::blocks::QuantFormat;

/// The largest integer: 127 · 256 + 127, whose high and low bytes are both signed.
const LARGEST: f32 = 32_639.0;

/// Blocks that stand together in a vector of bytes, at most.
const FOUR: usize = 4;

/// One row of input in blocks of 16-bit integers.
pub(in super::super) struct Input {
    /// Padded to fours of blocks.
    pub values: Vec<i16>,
    /// One for each block; zeros up to a multiple of [`STEP`].
    pub scales: Vec<f32>,
    /// Sums of each block's values, as many.
    pub sums: Vec<f32>,
    /// The integers' bytes, for levels that multiply bytes.
    #[cfg(target_arch = "x86_64")]
    pub bytes: super::vnni::SplitInput,
}

impl Input {
    /// Rounds a row for weights in one of these formats.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn new(row: &[f32], formats: &[Option<QuantFormat>]) -> Self {
        let blocks = row.len().div_ceil(BLOCK);
        let padded = blocks.next_multiple_of(STEP);
        let mut values = vec![0; blocks.next_multiple_of(FOUR) * BLOCK];
        let (mut scales, mut sums) = (vec![0.0; padded], vec![0.0; padded]);
        let targets = values.chunks_mut(BLOCK).zip(&mut scales).zip(&mut sums);
        for (row, ((values, scale), sum)) in row.chunks(BLOCK).zip(targets) {
            let mut block = [0.0; BLOCK];
            block[..row.len()].copy_from_slice(row);
            (*scale, *sum) = round(&block, values);
        }
        #[cfg(target_arch = "x86_64")]
        let by_bytes = super::level() == super::Level::Vnni;
        Self {
            #[cfg(target_arch = "x86_64")]
            bytes: match super::Level::Vnni.is_available() && (by_bytes || cfg!(test)) {
                // SAFETY: the level is there.
                true => unsafe { super::vnni::SplitInput::new(&values, formats) },
                false => super::vnni::SplitInput::default(),
            },
            values,
            scales,
            sums,
        }
    }
}

vectorised! {
    /// Rounds a block; its scale and its sum.
    fn round<L>(row: &[f32; BLOCK], values: &mut [i16]) -> (f32, f32) {
        let (parts, _) = row.as_chunks::<LANES>();
        let (mut lanes, mut largest) = ([0.0f32; LANES], [0.0f32; LANES]);
        for part in parts {
            for lane in 0..LANES {
                lanes[lane] += part[lane];
                let size = part[lane].abs();
                largest[lane] = if size > largest[lane] { size } else { largest[lane] };
            }
        }
        let sum = total(lanes);
        let largest = largest.into_iter().fold(0.0f32, f32::max);
        // What is not finite must not come out as a number.
        let scale = match sum.is_finite() && largest.is_finite() {
            true => largest / LARGEST,
            false => f32::NAN,
        };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (value, x) in values.iter_mut().zip(row) {
            // To nearest: the cast cuts. The inverse may be rounded up.
            let near = (x * inverse + 0.5f32.copysign(*x)) as i32;
            *value = near.clamp(-(LARGEST as i32), LARGEST as i32) as i16;
        }
        (scale, sum)
    }
}
