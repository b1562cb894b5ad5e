//! Rows of weights in blocks ([`Blocks`]) times a few rows of input, for each instruction set.
//!
//! An input is rounded to 16-bit integers block by block, a relative error of 2⁻¹⁶ of the block's
//! largest value, and multiplied with the weights' integers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod vnni;

use half::f16;

use crate::kernels::blocks::{BLOCK, Blocks, QuantFormat};

/// Scales are read in steps of this many.
const STEP: usize = 16;
/// Rows of input that share a pass over the weights. Rows of weights are read one after the other:
/// memory gives several short streams at once half as fast.
const GROUP: usize = 4;

/// One row of input in blocks of 16-bit integers.
pub(super) struct Input {
    /// Padded to whole blocks.
    values: Vec<i16>,
    /// One for each block; zeros up to a multiple of [`STEP`].
    scales: Vec<f32>,
    /// Sums of each block's values, likewise.
    sums: Vec<f32>,
}

impl Input {
    pub fn new(row: &[f32]) -> Self {
        let blocks = row.len().div_ceil(BLOCK);
        let padded = blocks.next_multiple_of(STEP);
        let mut input = Self {
            values: vec![0; blocks * BLOCK],
            scales: vec![0.0; padded],
            sums: vec![0.0; padded],
        };
        let targets = input.values.chunks_mut(BLOCK);
        for (b, (row, values)) in row.chunks(BLOCK).zip(targets).enumerate() {
            let sum: f32 = row.iter().sum();
            let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            // What is not finite must not come out as a number.
            let scale = match sum.is_finite() && largest.is_finite() {
                true => largest / f32::from(i16::MAX),
                false => f32::NAN,
            };
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            for (value, x) in values.iter_mut().zip(row) {
                // To nearest; the cast cuts, and saturates where the inverse was rounded up.
                *value = (x * inverse + 0.5f32.copysign(*x)) as i16;
            }
            input.scales[b] = scale;
            input.sums[b] = sum;
        }
        input
    }
}

/// One row of weights.
struct Row<'a> {
    blocks: usize,
    quants: &'a [u8],
    /// At least [`STEP`] more than the row's own follow, of other rows or zeros.
    scales: &'a [f16],
    mins: &'a [f16],
}

impl<'a> Row<'a> {
    #[inline]
    fn of(weight: &'a Blocks, row: usize) -> Self {
        let row = Self {
            blocks: weight.row_blocks(),
            quants: weight.row_quants(row),
            scales: weight.scales_from(row),
            mins: weight.mins_from(row),
        };
        let steps = row.blocks.next_multiple_of(STEP);
        assert!(row.quants.len() == row.blocks * weight.format.block_bytes());
        assert!(row.scales.len() >= steps);
        assert!(weight.format == QuantFormat::Q8 || row.mins.len() >= steps);
        row
    }
}

/// Products of weight rows from `first` on with all inputs: `out[weight row, input]`.
pub(super) fn dots(weight: &Blocks, first: usize, inputs: &[Input], out: &mut [f32]) {
    level().dots(weight, first, inputs, out);
}

/// Instruction sets that products are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// AVX-512 with integer products (VNNI).
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Any machine.
    Portable,
}

impl Level {
    /// The levels that this machine has, best first.
    pub fn all() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let vnni = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 {
                levels.insert(0, Self::Avx2);
            }
            if avx2 && vnni {
                levels.insert(0, Self::Vnni);
            }
        }
        levels
    }

    /// As [`dots`] at this level.
    pub fn dots(self, weight: &Blocks, first: usize, inputs: &[Input], out: &mut [f32]) {
        let n = inputs.len();
        let whole = n / GROUP * GROUP;
        for start in (0..whole).step_by(GROUP) {
            let four = std::array::from_fn::<_, GROUP, _>(|m| &inputs[start + m]);
            self.rows(weight, first, &four, out, [start, n]);
        }
        for (start, input) in inputs.iter().enumerate().skip(whole) {
            self.rows(weight, first, &[input], out, [start, n]);
        }
    }

    /// All weight rows with some inputs, which stand from column `start` of `n` in `out`.
    fn rows<const M: usize>(
        self,
        weight: &Blocks,
        first: usize,
        inputs: &[&Input; M],
        out: &mut [f32],
        [start, n]: [usize; 2],
    ) {
        let blocks = weight.row_blocks();
        for input in inputs {
            assert!(input.values.len() == blocks * BLOCK);
            let steps = blocks.next_multiple_of(STEP);
            assert!(input.scales.len() == steps && input.sums.len() == steps);
        }
        let rows = out.chunks_mut(n).enumerate().map(|(i, out)| {
            let row = Row::of(weight, first + i);
            (row, &mut out[start..start + M])
        });
        match (self, weight.format) {
            // SAFETY: `all` and `level` give these only where the machine has the features; the
            // inputs' lengths are asserted above, a row's in `Row::of`.
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, QuantFormat::Q8) => unsafe { vnni::rows::<false, M>(rows, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, QuantFormat::Q4) => unsafe { vnni::rows::<true, M>(rows, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, QuantFormat::Q8) => unsafe { avx2::rows::<false, M>(rows, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, QuantFormat::Q4) => unsafe { avx2::rows::<true, M>(rows, inputs) },
            (Self::Portable, format) => {
                for (row, out) in rows {
                    let sums = match format {
                        QuantFormat::Q8 => portable::<false, M>(&row, inputs),
                        QuantFormat::Q4 => portable::<true, M>(&row, inputs),
                    };
                    out.copy_from_slice(&sums);
                }
            }
        }
    }
}

/// The best level of this machine.
fn level() -> Level {
    use std::sync::OnceLock;
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| Level::all()[0])
}

fn portable<const Q4: bool, const M: usize>(row: &Row<'_>, inputs: &[&Input; M]) -> [f32; M] {
    let mut sums = [0.0f32; M];
    let width = if Q4 { BLOCK / 2 } else { BLOCK };
    for (b, quants) in row.quants.chunks_exact(width).enumerate() {
        let mut weights = [0i32; BLOCK];
        if Q4 {
            for (i, &quant) in quants.iter().enumerate() {
                weights[i] = i32::from(quant & 15);
                weights[i + BLOCK / 2] = i32::from(quant >> 4);
            }
        } else {
            for (weight, &quant) in weights.iter_mut().zip(quants) {
                *weight = i32::from(quant as i8);
            }
        }
        let d = row.scales[b].to_f32();
        for (sum, input) in sums.iter_mut().zip(inputs) {
            let values = &input.values[b * BLOCK..(b + 1) * BLOCK];
            let dot: i32 = weights
                .iter()
                .zip(values)
                .map(|(w, &x)| w * i32::from(x))
                .sum();
            *sum += dot as f32 * (d * input.scales[b]);
            if Q4 {
                *sum += row.mins[b].to_f32() * input.sums[b];
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests;
