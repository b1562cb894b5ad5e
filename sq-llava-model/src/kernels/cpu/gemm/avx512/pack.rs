//! Rows and columns brought into the order in which a tile reads them.

use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Numbers of a vector.
pub(super) const LANES: usize = 16;

/// A matrix as what lies side by side in a tile and what is summed over: lane `l` at depth `d` is
/// `lane · l + step · d` elements behind the first.
#[derive(Clone, Copy)]
pub(in super::super) struct Strip<'a> {
    pub(super) at: *const f32,
    pub(super) lane: usize,
    pub(super) step: usize,
    data: PhantomData<&'a [f32]>,
}

// SAFETY: it only reads, as the slice that it stands for.
unsafe impl Sync for Strip<'_> {}

impl<'a> Strip<'a> {
    pub(in super::super) fn new(data: &'a [f32], lane: usize, step: usize) -> Self {
        Self {
            at: data.as_ptr(),
            lane,
            step,
            data: PhantomData,
        }
    }

    /// The strip from a lane and a depth on, for reading only where that lies in the matrix.
    #[inline(always)]
    pub(super) fn from(self, lane: usize, depth: usize) -> Self {
        let at = self.at.wrapping_add(lane * self.lane + depth * self.step);
        Self { at, ..self }
    }
}

/// Writes `lanes` lanes (1 to 16) of `depth` elements to `to`: the lanes of a depth side by side,
/// two depths `row` apart. With `whole` 16 lanes are written for each depth, those behind the last
/// with any number.
///
/// # Safety
/// All of the strip can be read and all of that written; the machine has AVX-512 (F, VL, BW, DQ).
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
pub(super) unsafe fn pack(
    from: Strip<'_>,
    lanes: usize,
    depth: usize,
    to: *mut f32,
    row: usize,
    whole: bool,
) {
    let mask = first(lanes);
    let write = if whole { !0 } else { mask };
    // SAFETY: the caller's promise; lanes outside a mask are neither read nor written.
    unsafe {
        if from.lane == 1 {
            for d in 0..depth {
                let values = _mm512_maskz_loadu_ps(mask, from.at.add(d * from.step));
                _mm512_mask_storeu_ps(to.add(d * row), write, values);
            }
        } else if from.step == 1 {
            // The last lane stands in for those that are not there.
            let mut starts = [from.at; LANES];
            for (lane, start) in starts.iter_mut().enumerate() {
                *start = from.at.add(lane.min(lanes - 1) * from.lane);
            }
            // Whole lines: rows whose distance is a power of two share so few places of the
            // innermost cache that a line would be gone before its second quarter is read.
            for d in (0..depth).step_by(LANES) {
                let some = (depth - d).min(LANES);
                let mut rows = [_mm512_setzero_ps(); LANES];
                for (row, start) in rows.iter_mut().zip(starts) {
                    *row = _mm512_maskz_loadu_ps(first(some), start.add(d));
                }
                for (i, values) in turned(rows).into_iter().enumerate().take(some) {
                    _mm512_mask_storeu_ps(to.add((d + i) * row), write, values);
                }
            }
        } else {
            for d in 0..depth {
                let mut values = [0.0; LANES];
                for (lane, value) in values[..lanes].iter_mut().enumerate() {
                    *value = *from.at.add(lane * from.lane + d * from.step);
                }
                let values = _mm512_loadu_ps(values.as_ptr());
                _mm512_mask_storeu_ps(to.add(d * row), write, values);
            }
        }
    }
}

/// A mask of the first `count` lanes, at most 16.
#[inline(always)]
pub(super) fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// 16 rows of 16 numbers as 16 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn turned(rows: [__m512; LANES]) -> [__m512; LANES] {
    let zero = _mm512_setzero_ps();
    // Blocks of 4×4 in each quarter of the vectors.
    let mut blocks = [zero; LANES];
    for four in 0..4 {
        let at = 4 * four;
        let (a, b, c, d) = (rows[at], rows[at + 1], rows[at + 2], rows[at + 3]);
        let low = |a, b| _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
        let high = |a, b| _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        let (ab, cd) = (low(a, b), low(c, d));
        let (ab_high, cd_high) = (high(a, b), high(c, d));
        blocks[4 * four] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        blocks[4 * four + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        blocks[4 * four + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
        blocks[4 * four + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
    }
    // Then the quarters themselves: quarter q of the vectors i, 4 + i, 8 + i and 12 + i is column
    // 4 q + i.
    let mut columns = [zero; LANES];
    for i in 0..4 {
        let (a, b, c, d) = (blocks[i], blocks[4 + i], blocks[8 + i], blocks[12 + i]);
        let ab = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let cd = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
        columns[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
        columns[8 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
        let ab = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        let cd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
        columns[4 + i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
        columns[12 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
    }
    columns
}
