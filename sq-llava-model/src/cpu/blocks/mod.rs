//! Rows of weights in blocks ([`Blocks`]) times a few rows of input, for each instruction set.
//!
//! An input is rounded to 16-bit integers block by block, a relative error of 2⁻¹⁶ of the block's
//! largest value, and multiplied with the weights' integers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::f16;

use crate::quant::{BLOCK, Blocks, QuantFormat};

/// Scales are read in steps of this many.
const STEP: usize = 16;
/// Rows of input that share one pass over the weights.
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
    fn of(weight: &'a Blocks, row: usize) -> Self {
        Self {
            blocks: weight.row_blocks(),
            quants: weight.row_quants(row),
            scales: weight.scales_from(row),
            mins: weight.mins_from(row),
        }
    }
}

/// Products of weight rows from `first` on with all inputs: `out[weight row, input]`.
pub(super) fn dots(weight: &Blocks, first: usize, inputs: &[Input], out: &mut [f32]) {
    let level = level();
    for (i, out) in out.chunks_mut(inputs.len()).enumerate() {
        let row = Row::of(weight, first + i);
        for (inputs, out) in inputs.chunks(GROUP).zip(out.chunks_mut(GROUP)) {
            match inputs {
                [a, b, c, d] => {
                    out.copy_from_slice(&level.dot(weight.format, &row, &[a, b, c, d]));
                }
                inputs => {
                    for (input, out) in inputs.iter().zip(out) {
                        [*out] = level.dot(weight.format, &row, &[input]);
                    }
                }
            }
        }
    }
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

    fn dot<const M: usize>(
        self,
        format: QuantFormat,
        row: &Row<'_>,
        inputs: &[&Input; M],
    ) -> [f32; M] {
        let steps = row.blocks.next_multiple_of(STEP);
        let q4 = format == QuantFormat::Q4;
        assert!(row.quants.len() == row.blocks * format.block_bytes());
        assert!(row.scales.len() >= steps && (!q4 || row.mins.len() >= steps));
        for input in inputs {
            assert!(input.values.len() == row.blocks * BLOCK);
            assert!(input.scales.len() == steps && input.sums.len() == steps);
        }
        match (self, q4) {
            // SAFETY: `all` and `level` give these only where the machine has the features; the
            // lengths that the kernels read are asserted above.
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, false) => unsafe { vnni::<false, M>(row, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, true) => unsafe { vnni::<true, M>(row, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, false) => unsafe { avx2::<false, M>(row, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, true) => unsafe { avx2::<true, M>(row, inputs) },
            (Self::Portable, false) => portable::<false, M>(row, inputs),
            (Self::Portable, true) => portable::<true, M>(row, inputs),
        }
    }

    /// As [`dots`] at this level.
    #[cfg(test)]
    pub fn dots(self, weight: &Blocks, input: &Input) -> Vec<f32> {
        let dot = |row| self.dot(weight.format, &Row::of(weight, row), &[input])[0];
        (0..weight.rows).map(dot).collect()
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

/// # Safety
/// The lengths of row and inputs must be those that [`Level::dot`] asserts.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // several arrays side by side
unsafe fn avx2<const Q4: bool, const M: usize>(row: &Row<'_>, inputs: &[&Input; M]) -> [f32; M] {
    const LANES: usize = 8;
    let mut sums = [_mm256_setzero_ps(); M];
    let mut factors = [[0.0f32; LANES]; M];
    let nibble = _mm_set1_epi8(15);
    for first in (0..row.blocks).step_by(LANES) {
        // SAFETY: `first + LANES` is at most the blocks' number rounded up to STEP, and `first`
        // and the block number below stay under it: all reads are inside the asserted lengths.
        unsafe {
            let halves = _mm_loadu_si128(row.scales.as_ptr().add(first).cast());
            let scales = _mm256_cvtph_ps(halves);
            for m in 0..M {
                let input = _mm256_loadu_ps(inputs[m].scales.as_ptr().add(first));
                _mm256_storeu_ps(factors[m].as_mut_ptr(), _mm256_mul_ps(scales, input));
            }
            if Q4 {
                let halves = _mm_loadu_si128(row.mins.as_ptr().add(first).cast());
                let mins = _mm256_cvtph_ps(halves);
                for m in 0..M {
                    let input = _mm256_loadu_ps(inputs[m].sums.as_ptr().add(first));
                    sums[m] = _mm256_fmadd_ps(mins, input, sums[m]);
                }
            }
            for block in first..(first + LANES).min(row.blocks) {
                let (low, high) = if Q4 {
                    let pairs = row.quants.as_ptr().add(block * BLOCK / 2).cast();
                    let pairs = _mm_loadu_si128(pairs);
                    let low = _mm_and_si128(pairs, nibble);
                    let high = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
                    (_mm256_cvtepu8_epi16(low), _mm256_cvtepu8_epi16(high))
                } else {
                    let bytes: *const __m128i = row.quants.as_ptr().add(block * BLOCK).cast();
                    (
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)),
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.add(1))),
                    )
                };
                for m in 0..M {
                    let x: *const __m256i = inputs[m].values.as_ptr().add(block * BLOCK).cast();
                    let dot = _mm256_add_epi32(
                        _mm256_madd_epi16(low, _mm256_loadu_si256(x)),
                        _mm256_madd_epi16(high, _mm256_loadu_si256(x.add(1))),
                    );
                    let factor = _mm256_set1_ps(factors[m][block - first]);
                    sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, sums[m]);
                }
            }
        }
    }
    let mut out = [0.0; M];
    for (out, sum) in out.iter_mut().zip(sums) {
        let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        *out = _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    out
}

/// # Safety
/// The lengths of row and inputs must be those that [`Level::dot`] asserts.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // several arrays side by side
unsafe fn vnni<const Q4: bool, const M: usize>(row: &Row<'_>, inputs: &[&Input; M]) -> [f32; M] {
    let mut sums = [_mm512_setzero_ps(); M];
    let mut factors = [[0.0f32; STEP]; M];
    let nibble = _mm_set1_epi8(15);
    for first in (0..row.blocks).step_by(STEP) {
        // SAFETY: as in `avx2`, with steps of STEP.
        unsafe {
            let halves = _mm256_loadu_si256(row.scales.as_ptr().add(first).cast());
            let scales = _mm512_cvtph_ps(halves);
            for m in 0..M {
                let input = _mm512_loadu_ps(inputs[m].scales.as_ptr().add(first));
                _mm512_storeu_ps(factors[m].as_mut_ptr(), _mm512_mul_ps(scales, input));
            }
            if Q4 {
                let halves = _mm256_loadu_si256(row.mins.as_ptr().add(first).cast());
                let mins = _mm512_cvtph_ps(halves);
                for m in 0..M {
                    let input = _mm512_loadu_ps(inputs[m].sums.as_ptr().add(first));
                    sums[m] = _mm512_fmadd_ps(mins, input, sums[m]);
                }
            }
            for block in first..(first + STEP).min(row.blocks) {
                let bytes = if Q4 {
                    let pairs = row.quants.as_ptr().add(block * BLOCK / 2).cast();
                    let pairs = _mm_loadu_si128(pairs);
                    let low = _mm_and_si128(pairs, nibble);
                    let high = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
                    _mm256_set_m128i(high, low)
                } else {
                    _mm256_loadu_si256(row.quants.as_ptr().add(block * BLOCK).cast())
                };
                let weights = _mm512_cvtepi8_epi16(bytes);
                for m in 0..M {
                    let x = inputs[m].values.as_ptr().add(block * BLOCK).cast();
                    let x = _mm512_loadu_si512(x);
                    let dot = _mm512_dpwssd_epi32(_mm512_setzero_si512(), weights, x);
                    let factor = _mm512_set1_ps(factors[m][block - first]);
                    sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, sums[m]);
                }
            }
        }
    }
    sums.map(|sum| _mm512_reduce_add_ps(sum))
}

#[cfg(test)]
mod tests;
