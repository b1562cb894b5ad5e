//! The innermost product: a tile of the result in registers.

use std::arch::x86_64::*;

use super::pack::LANES;

/// Most rows of a tile. With 32 columns that is 28 sums, which leaves registers for two vectors of
/// B and a number of A: 28 multiply-adds for 16 loads.
pub(super) const ROWS: usize = 14;
/// Most vectors of columns of a tile.
pub(super) const VECTORS: usize = 2;
/// Most columns of a tile.
pub(super) const COLUMNS: usize = VECTORS * LANES;

/// Depths of a tile between two turns of asking for what comes next.
pub(super) const TURN: usize = 32;
/// Numbers in a line of the cache.
const LINE: usize = 16;

/// An operand of a tile: its lanes side by side, `step` elements from depth to depth.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    pub(super) at: *const f32,
    pub(super) step: usize,
}

/// What a tile is added to.
#[derive(Clone, Copy)]
pub(super) enum Base {
    Nothing,
    Out,
    /// One row for all.
    Row(*const f32),
}

/// Where a tile goes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: *mut f32,
    /// Elements from row to row.
    pub(super) row: usize,
    /// Columns of the last vector.
    pub(super) mask: __mmask16,
    pub(super) factor: f32,
    pub(super) base: Base,
}

/// Memory that is asked for while a tile is computed; where that lies outside a matrix nothing
/// happens.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Of B: `count` pairs of lines each turn, `hop` elements apart, and `step` from turn to turn.
    pub(super) right: *const f32,
    pub(super) count: usize,
    pub(super) hop: usize,
    pub(super) step: usize,
    /// Of A: `lines` lines each turn, one behind the other.
    pub(super) left: *const f32,
    pub(super) lines: usize,
}

impl Ahead {
    #[inline(always)]
    fn ask(&mut self) {
        let line = |at: *const f32| {
            // SAFETY: a request for memory that is not there is ignored.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
        };
        for pair in 0..self.count {
            let at = self.right.wrapping_add(pair * self.hop);
            line(at);
            line(at.wrapping_add(LINE));
        }
        self.right = self.right.wrapping_add(self.step);
        for _ in 0..self.lines {
            line(self.left);
            self.left = self.left.wrapping_add(LINE);
        }
    }
}

/// `place = base + factor · Σ_depth a b`.
///
/// # Safety
/// `depth` times the lanes of a tile can be read of `a` and `b`, and the tile written (and read, if
/// it is added to) at `place`, its last vector inside the mask; the machine has AVX-512 (F, VL, BW,
/// DQ).
pub(super) type Tile = unsafe fn(depth: usize, a: Lanes, b: Lanes, place: Place, ahead: Ahead);

/// A [`Tile`] of `R` rows and `V` vectors.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn tile<const R: usize, const V: usize>(
    depth: usize,
    mut a: Lanes,
    mut b: Lanes,
    place: Place,
    mut ahead: Ahead,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    // The result, which is written at the end.
    for r in 0..R {
        for v in 0..V {
            let at = place.at.wrapping_add(r * place.row + v * LANES);
            _mm_prefetch::<_MM_HINT_ET0>(at.cast());
        }
    }
    let mut left = depth;
    while left > 0 {
        let turn = left.min(TURN);
        left -= turn;
        ahead.ask();
        for _ in 0..turn {
            let mut right = [_mm512_setzero_ps(); V];
            // SAFETY: the caller's promise.
            unsafe {
                for (v, right) in right.iter_mut().enumerate() {
                    *right = _mm512_loadu_ps(b.at.add(v * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = _mm512_set1_ps(*a.at.add(r));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm512_fmadd_ps(left, right, *sum);
                    }
                }
            }
            a.at = a.at.wrapping_add(a.step);
            b.at = b.at.wrapping_add(b.step);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { write(sums, place) };
}

/// # Safety
/// As [`Tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn write<const R: usize, const V: usize>(sums: [[__m512; V]; R], place: Place) {
    let factor = _mm512_set1_ps(place.factor);
    for (r, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            let mask = if v + 1 == V { place.mask } else { !0 };
            // SAFETY: the caller's promise; lanes outside the mask are neither read nor written.
            unsafe {
                let at = place.at.add(r * place.row + v * LANES);
                let base = match place.base {
                    Base::Nothing => _mm512_setzero_ps(),
                    Base::Out => _mm512_maskz_loadu_ps(mask, at),
                    Base::Row(row) => _mm512_maskz_loadu_ps(mask, row.add(v * LANES)),
                };
                _mm512_mask_storeu_ps(at, mask, _mm512_fmadd_ps(sum, factor, base));
            }
        }
    }
}

macro_rules! tiles {
    ($($rows:literal)*) => {
        [[$(tile::<$rows, 1> as Tile),*], [$(tile::<$rows, 2> as Tile),*]]
    };
}

static TILES: [[Tile; ROWS]; VECTORS] = tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);

/// The tile of so many rows and vectors of columns.
#[inline(always)]
pub(super) fn of(rows: usize, vectors: usize) -> Tile {
    TILES[vectors - 1][rows - 1]
}
