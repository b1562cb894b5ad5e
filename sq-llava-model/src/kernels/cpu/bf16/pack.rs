//! Bringing matrices into tiles.

use half::bf16;

use super::super::level::vectorised;
use super::{DEPTH, SIDE, Tile};

/// Packs at most 16 rows of `width` f32 numbers, rounded to nearest even; what lacks is zero.
pub(super) fn left(rows: &[f32], width: usize, tiles: &mut [Tile]) {
    for (row, values) in rows.chunks_exact(width.max(1)).enumerate() {
        for (values, tile) in values.chunks(DEPTH).zip(tiles.iter_mut()) {
            let out = &mut tile.0[row * DEPTH..][..values.len()];
            round(values, out);
        }
    }
}

/// Packs at most 16 rows `[rows, width]` of a weight as columns; what lacks is zero.
pub(super) fn rows(weight: &[bf16], width: usize, tiles: &mut [Tile]) {
    let full = weight.len() == SIDE * width;
    for (t, tile) in tiles.iter_mut().enumerate() {
        let from = t * DEPTH;
        let depth = DEPTH.min(width - from);
        #[cfg(target_arch = "x86_64")]
        if full && depth == DEPTH && super::avx512::transposes() {
            // SAFETY: the machine has AVX-512, and all 16 rows have 32 numbers from here on.
            unsafe { super::avx512::transpose(weight.as_ptr().add(from), width, tile) };
            continue;
        }
        if !full || depth < DEPTH {
            *tile = Tile::ZERO;
        }
        for (column, row) in weight.chunks_exact(width).enumerate() {
            for (i, &value) in row[from..from + depth].iter().enumerate() {
                tile.0[i / 2 * 2 * SIDE + 2 * column + i % 2] = value;
            }
        }
    }
}

/// Packs 16 columns of a weight `[rows, width]` from `first` on; what lacks is zero.
pub(super) fn columns(weight: &[bf16], width: usize, first: usize, tiles: &mut [Tile]) {
    let count = SIDE.min(width - first);
    for (part, tile) in weight.chunks(DEPTH * width).zip(tiles) {
        if count < SIDE || part.len() < DEPTH * width {
            *tile = Tile::ZERO;
        }
        for (two, out) in part
            .chunks(2 * width)
            .zip(tile.0.chunks_exact_mut(2 * SIDE))
        {
            let (one, two) = two.split_at(width);
            let one = &one[first..first + count];
            match two.get(first..first + count) {
                Some(two) => pairs(one, two, out),
                None => {
                    for (&value, out) in one.iter().zip(out.chunks_exact_mut(2)) {
                        out[0] = value;
                    }
                }
            }
        }
    }
}

vectorised! {
    /// To bf16, to nearest, ties to even; what is not a number stays so.
    fn round<L>(from: &[f32], to: &mut [bf16]) {
        for (from, to) in from.iter().zip(to) {
            let bits = from.to_bits();
            let near = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            let kept = if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { near };
            *to = bf16::from_bits(kept as u16);
        }
    }

    /// Numbers of two rows in turn.
    fn pairs<L>(one: &[bf16], two: &[bf16], out: &mut [bf16]) {
        for ((one, two), out) in one.iter().zip(two).zip(out.chunks_exact_mut(2)) {
            out[0] = *one;
            out[1] = *two;
        }
    }
}
