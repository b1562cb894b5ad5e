//! Cutting work into pieces of a fixed size for the thread pool that flex uses too.

use rayon::prelude::*;

/// Elements of a piece: large against the cost of handing it to a thread, small against a cache.
const PIECE: usize = 16 * 1024;

/// Rows of width `width` that make a piece.
fn rows_of(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Runs `f(first row, rows)` on pieces of one output.
pub(super) fn rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_of(width);
    if out.len() <= rows * width {
        return f(0, out);
    }
    out.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(piece, out)| f(piece * rows, out));
}

/// As [`rows`], with two outputs of the same shape.
pub(super) fn rows2(
    a: &mut [f32],
    b: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let rows = rows_of(width);
    if a.len() <= rows * width {
        return f(0, a, b);
    }
    a.par_chunks_mut(rows * width)
        .zip(b.par_chunks_mut(rows * width))
        .enumerate()
        .for_each(|(piece, (a, b))| f(piece * rows, a, b));
}

/// Sum over pieces of `total` rows of what `f(first row, end row, sums)` adds to `size` sums.
pub(super) fn sums(
    total: usize,
    width: usize,
    size: usize,
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let rows = rows_of(width);
    let parts: Vec<Vec<f32>> = (0..total.div_ceil(rows))
        .into_par_iter()
        .map(|piece| {
            let mut part = vec![0.0; size];
            f(piece * rows, ((piece + 1) * rows).min(total), &mut part);
            part
        })
        .collect();
    let mut all = vec![0.0; size];
    for part in parts {
        for (sum, value) in all.iter_mut().zip(part) {
            *sum += value;
        }
    }
    all
}
