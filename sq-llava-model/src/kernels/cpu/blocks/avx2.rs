//! AVX2, with fused multiply-add and f16 conversion.

use std::arch::x86_64::*;

use super::super::level::prefetch;
use super::{BLOCK, Input, Row};

/// Blocks of a step.
const LANES: usize = 8;
/// Sums that do not wait for each other.
const SUMS: usize = 2;
/// How far ahead weights are asked for, in bytes, and a line of the cache.
const AHEAD: usize = 4096;
const LINE: usize = 64;

/// Products of rows with inputs, written behind each row.
///
/// # Safety
/// The machine has the features. Rows are from [`Rows::row`](super::Rows::row), and inputs have as many blocks as they
/// and scales and sums for those, up to a multiple of [`STEP`](super::STEP).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rows<'a, const Q4: bool, const M: usize>(
    rows: impl Iterator<Item = (Row<'a>, &'a mut [f32])>,
    inputs: &[&Input; M],
) {
    for (row, out) in rows {
        let mut sums = [[_mm256_setzero_ps(); SUMS]; M];
        let whole = row.blocks / LANES * LANES;
        // SAFETY: the caller's promise; the blocks of all steps are inside the row.
        unsafe {
            for first in (0..whole).step_by(LANES) {
                // A known number of blocks, for which the compiler leaves no loop.
                step::<Q4, M>(&row, inputs, &mut sums, first, LANES);
            }
            if whole < row.blocks {
                step::<Q4, M>(&row, inputs, &mut sums, whole, row.blocks - whole);
            }
        }
        for (out, [a, b]) in out.iter_mut().zip(sums) {
            let sum = _mm256_add_ps(a, b);
            let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            *out = _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
        }
    }
}

/// Adds `count` blocks from `first` on, a multiple of [`LANES`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // several arrays side by side
unsafe fn step<const Q4: bool, const M: usize>(
    row: &Row<'_>,
    inputs: &[&Input; M],
    sums: &mut [[__m256; SUMS]; M],
    first: usize,
    count: usize,
) {
    let mut factors = [[0.0f32; LANES]; M];
    let block_bytes = if Q4 { BLOCK / 2 } else { BLOCK };
    for line in (0..count * block_bytes).step_by(LINE) {
        let at = first * block_bytes + line + AHEAD;
        prefetch(row.quants.as_ptr().wrapping_add(at));
    }
    // SAFETY: scales, minima and sums reach to the end of the step, numbers and values to that of
    // the blocks.
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
                sums[m][0] = _mm256_fmadd_ps(mins, input, sums[m][0]);
            }
        }
        for pair in (0..count.min(LANES)).step_by(SUMS) {
            // Sums by a known number, so that they stay in registers.
            for s in 0..SUMS {
                let i = pair + s;
                if i >= count {
                    break;
                }
                let block = first + i;
                let (low, high) = widened::<Q4>(row, block);
                for m in 0..M {
                    let x: *const __m256i = inputs[m].values.as_ptr().add(block * BLOCK).cast();
                    let dot = _mm256_add_epi32(
                        _mm256_madd_epi16(low, _mm256_loadu_si256(x)),
                        _mm256_madd_epi16(high, _mm256_loadu_si256(x.add(1))),
                    );
                    let factor = _mm256_set1_ps(factors[m][i]);
                    let sum = &mut sums[m][s];
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, *sum);
                }
            }
        }
    }
}

/// The numbers of a block as 16 bits each: its first half and its second.
///
/// # Safety
/// AVX2, and the block is inside the row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widened<const Q4: bool>(row: &Row<'_>, block: usize) -> (__m256i, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        if Q4 {
            let nibble = _mm_set1_epi8(15);
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
        }
    }
}
