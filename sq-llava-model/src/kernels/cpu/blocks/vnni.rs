//! AVX-512 with integer products.

use std::arch::x86_64::*;

use super::{BLOCK, Input, Row, STEP};

/// Sums that do not wait for each other.
const SUMS: usize = 2;

/// Products of rows with inputs, written behind each row.
///
/// # Safety
/// The machine has the features. Rows are from [`Row::of`], and inputs have as many blocks as they
/// and scales and sums for those, up to a multiple of [`STEP`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn rows<'a, const Q4: bool, const M: usize>(
    rows: impl Iterator<Item = (Row<'a>, &'a mut [f32])>,
    inputs: &[&Input; M],
) {
    for (row, out) in rows {
        let mut sums = [[_mm512_setzero_ps(); SUMS]; M];
        let whole = row.blocks / STEP * STEP;
        // SAFETY: the caller's promise; the blocks of all steps are inside the row.
        unsafe {
            for first in (0..whole).step_by(STEP) {
                // A known number of blocks, for which the compiler leaves no loop.
                step::<Q4, M>(&row, inputs, &mut sums, first, STEP);
            }
            if whole < row.blocks {
                step::<Q4, M>(&row, inputs, &mut sums, whole, row.blocks - whole);
            }
        }
        for (out, [a, b]) in out.iter_mut().zip(sums) {
            *out = _mm512_reduce_add_ps(_mm512_add_ps(a, b));
        }
    }
}

/// Adds `count` blocks from `first` on, a multiple of [`STEP`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // several arrays side by side
unsafe fn step<const Q4: bool, const M: usize>(
    row: &Row<'_>,
    inputs: &[&Input; M],
    sums: &mut [[__m512; SUMS]; M],
    first: usize,
    count: usize,
) {
    let nibble = _mm256_set1_epi8(15);
    let mut factors = [[0.0f32; STEP]; M];
    // SAFETY: scales, minima and sums reach to the end of the step, numbers and values to that of
    // the blocks.
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
                sums[m][0] = _mm512_fmadd_ps(mins, input, sums[m][0]);
            }
        }
        for pair in (0..count.min(STEP)).step_by(SUMS) {
            // Sums by a known number, so that they stay in registers.
            for s in 0..SUMS {
                let i = pair + s;
                if i >= count {
                    break;
                }
                let block = first + i;
                let bytes = if Q4 {
                    let pairs = row.quants.as_ptr().add(block * BLOCK / 2).cast();
                    let pairs = _mm_loadu_si128(pairs);
                    let both = _mm256_set_m128i(_mm_srli_epi16(pairs, 4), pairs);
                    _mm256_and_si256(both, nibble)
                } else {
                    _mm256_loadu_si256(row.quants.as_ptr().add(block * BLOCK).cast())
                };
                let weights = _mm512_cvtepi8_epi16(bytes);
                for m in 0..M {
                    let x = inputs[m].values.as_ptr().add(block * BLOCK).cast();
                    let x = _mm512_loadu_si512(x);
                    let dot = _mm512_dpwssd_epi32(_mm512_setzero_si512(), weights, x);
                    let factor = _mm512_set1_ps(factors[m][i]);
                    let sum = &mut sums[m][s];
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, *sum);
                }
            }
        }
    }
}
