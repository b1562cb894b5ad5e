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
        round(row, &mut values, &mut scales, &mut sums);
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
    /// Rounds a row block by block; each block's scale and sum.
    fn round<L>(row: &[f32], values: &mut [i16], scales: &mut [f32], sums: &mut [f32]) {
        let (blocks, rest) = row.as_chunks::<BLOCK>();
        let targets = values.as_chunks_mut::<BLOCK>().0.iter_mut();
        let mut targets = targets.zip(scales).zip(sums);
        for (row, ((values, scale), sum)) in blocks.iter().zip(&mut targets) {
            (*scale, *sum) = round_block(row, values);
        }
        if let (false, Some(((values, scale), sum))) = (rest.is_empty(), targets.next()) {
            let mut block = [0.0; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            (*scale, *sum) = round_block(&block, values);
        }
    }
}

/// Rounds a block; its scale and its sum.
#[inline(always)]
fn round_block(row: &[f32; BLOCK], values: &mut [i16; BLOCK]) -> (f32, f32) {
    let (parts, _) = row.as_chunks::<LANES>();
    let (mut lanes, mut sizes) = ([0.0f32; LANES], [0.0f32; LANES]);
    for part in parts {
        for lane in 0..LANES {
            lanes[lane] += part[lane];
            sizes[lane] = larger(part[lane].abs(), sizes[lane]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sizes[i] = larger(sizes[i + width], sizes[i]);
        }
        width /= 2;
    }
    let (sum, largest) = (total(lanes), sizes[0]);
    if !(sum.is_finite() && largest.is_finite()) {
        // What is not finite must not come out as a number.
        values.fill(0);
        return (f32::NAN, sum);
    }
    let scale = largest / LARGEST;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    if inverse.is_infinite() {
        // Below 10⁻³⁴, where the smallest numbers are near, nothing is left but zeros.
        values.fill(0);
        return (0.0, sum);
    }
    for (value, x) in values.iter_mut().zip(row) {
        // To nearest: the conversion cuts. The inverse may be rounded up.
        let near = x * inverse + 0.5f32.copysign(*x);
        // SAFETY: no number of the row is larger than `largest`, so this is near `LARGEST` at most.
        let near = unsafe { near.to_int_unchecked::<i32>() };
        *value = near.clamp(-(LARGEST as i32), LARGEST as i32) as i16;
    }
    (scale, sum)
}

/// The larger number, the second where the first is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of every size, a part block behind whole ones, and what has no inverse in f32.
    #[test]
    fn numbers_come_back_within_half_a_step() {
        for size in [1.0f32, 3e-5, 1e30, 1e-37, 1e-39, 0.0] {
            let row: Vec<f32> = (0..75)
                .map(|i| size * ((i * 37 % 101) as f32 / 50.0 - 1.0))
                .collect();
            let input = Input::new(&row, &[]);
            for (i, &x) in row.iter().enumerate() {
                let (x, scale) = (f64::from(x), f64::from(input.scales[i / BLOCK]));
                let found = f64::from(input.values[i]) * scale;
                let largest = f64::from(size);
                let step = largest / f64::from(LARGEST);
                // So small a number is as good as zero.
                let allowed = step * 0.51 + 1e-34;
                assert!(
                    (found - x).abs() <= allowed,
                    "{size:e} {i}: {found:e}, {x:e}"
                );
            }
            let blocks = row.chunks(BLOCK).zip(&input.sums);
            for (block, &sum) in blocks {
                let exact: f64 = block.iter().map(|x| f64::from(*x)).sum();
                let bound = 1e-5 * f64::from(size);
                assert!(
                    (f64::from(sum) - exact).abs() <= bound,
                    "{sum:e}, {exact:e}"
                );
            }
        }
    }
}
