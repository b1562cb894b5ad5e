//! Tiles with AVX-512.

use std::arch::x86_64::*;

use half::bf16;

use super::super::level::{Found, found};
use super::{BLOCK, DEPTH, SIDE, Sums, Tile};

/// Rows whose sums stand in registers, by two vectors of columns.
const ROWS: usize = 8;

/// `sums = Σ left · right`.
///
/// # Safety
/// The machine has the features, and all rows of tiles are equally long.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn block(left: [&[Tile]; 2], right: [&[Tile]; 2], sums: &mut Sums) {
    for half in 0..BLOCK / ROWS {
        let (band, first) = (left[half * ROWS / SIDE], half * ROWS % SIDE);
        let mut found = [[_mm512_setzero_ps(); 2]; ROWS];
        for ((left, one), two) in band.iter().zip(right[0]).zip(right[1]) {
            for pair in 0..DEPTH / 2 {
                // SAFETY: a row of pairs of a tile is one vector of 64 bytes, a pair of the left
                // tile 4.
                unsafe {
                    let one = _mm512_load_si512(one.0.as_ptr().add(pair * 2 * SIDE).cast());
                    let two = _mm512_load_si512(two.0.as_ptr().add(pair * 2 * SIDE).cast());
                    for (row, found) in found.iter_mut().enumerate() {
                        let at = (first + row) * DEPTH + 2 * pair;
                        let value = *left.0.as_ptr().add(at).cast::<i32>();
                        let value = _mm512_set1_epi32(value);
                        found[0] = dot(found[0], value, one);
                        found[1] = dot(found[1], value, two);
                    }
                }
            }
        }
        for (row, found) in found.iter().enumerate() {
            let at = (half * ROWS + row) * BLOCK;
            // SAFETY: a row of sums is two vectors.
            unsafe {
                _mm512_store_ps(sums.0.as_mut_ptr().add(at), found[0]);
                _mm512_store_ps(sums.0.as_mut_ptr().add(at + SIDE), found[1]);
            }
        }
    }
}

/// `sum + a · b` of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: vectors of 64 bytes, whatever is in them.
    unsafe {
        let a = std::mem::transmute::<__m512i, __m512bh>(a);
        let b = std::mem::transmute::<__m512i, __m512bh>(b);
        _mm512_dpbf16_ps(sum, a, b)
    }
}

/// Whether [`transpose`] runs here.
pub(super) fn transposes() -> bool {
    found() == Found::Avx512
}

/// 16 rows of 16 pairs as 16 columns.
///
/// # Safety
/// The machine has AVX-512, and from `first` on there are 32 numbers in each of 16 rows, which
/// stand `width` apart.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(first: *const bf16, width: usize, tile: &mut Tile) {
    let mut v = [_mm512_setzero_si512(); 16];
    for (row, v) in v.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *v = unsafe { _mm512_loadu_si512(first.add(row * width).cast()) };
    }
    let mut w = v;
    for i in (0..16).step_by(2) {
        w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    // Columns c, c + 4, c + 8 and c + 12 of four rows each, in v[4 group + c].
    for i in (0..16).step_by(4) {
        v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
    }
    for c in 0..4 {
        let [a, b, d, e] = [v[c], v[4 + c], v[8 + c], v[12 + c]];
        let low = _mm512_shuffle_i32x4::<0x88>(a, b);
        let high = _mm512_shuffle_i32x4::<0x88>(d, e);
        let low_odd = _mm512_shuffle_i32x4::<0xdd>(a, b);
        let high_odd = _mm512_shuffle_i32x4::<0xdd>(d, e);
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(low, high),
            _mm512_shuffle_i32x4::<0x88>(low_odd, high_odd),
            _mm512_shuffle_i32x4::<0xdd>(low, high),
            _mm512_shuffle_i32x4::<0xdd>(low_odd, high_odd),
        ];
        for (i, column) in columns.into_iter().enumerate() {
            let at = (4 * i + c) * 2 * SIDE;
            // SAFETY: one of the tile's 16 vectors.
            unsafe { _mm512_store_si512(tile.0.as_mut_ptr().add(at).cast(), column) };
        }
    }
}
