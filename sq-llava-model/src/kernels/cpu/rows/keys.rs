//! Keys times queries and values by weights, read where they lie in the cache: a key once for all
//! queries that share it.

use super::super::level::{Level, prefetch};
use super::super::math::{LANES, total};
use super::{LINE, Number, blocks_of_a_line};

/// Queries that share a pass over keys or values.
const SHARED: usize = 4;
/// Keys that are read at once.
const KEYS: usize = 2;
/// Products whose lanes are added up together.
const SUMS: usize = 8;
/// Vectors of a value that stay in registers while all keys pass.
const VECTORS: usize = 2;
/// How many rows ahead are asked for.
const AHEAD: usize = 8;

/// Calls a function with the number of rows as a constant.
macro_rules! by_number {
    ($number:expr, $function:ident::<$($type:ty),*>$arguments:tt) => {
        match $number {
            1 => $function::<$($type,)* 1>$arguments,
            2 => $function::<$($type,)* 2>$arguments,
            3 => $function::<$($type,)* 3>$arguments,
            _ => $function::<$($type,)* SHARED>$arguments,
        }
    };
}

#[inline(always)]
pub(super) fn scores<L: Level, T: Number>(
    queries: &[f32],
    dim: usize,
    keys: &[T],
    stride: usize,
    factor: f32,
    out: &mut [f32],
) {
    // Known sizes, for which the compiler leaves no loops.
    match dim {
        64 => scores_of::<L, T>(queries, 64, keys, stride, factor, out),
        128 => scores_of::<L, T>(queries, 128, keys, stride, factor, out),
        _ => scores_of::<L, T>(queries, dim, keys, stride, factor, out),
    }
}

#[inline(always)]
fn scores_of<L: Level, T: Number>(
    queries: &[f32],
    dim: usize,
    keys: &[T],
    stride: usize,
    factor: f32,
    out: &mut [f32],
) {
    let count = out.len() * dim / queries.len();
    let shared = out.chunks_mut(SHARED * count);
    for (queries, out) in queries.chunks(SHARED * dim).zip(shared) {
        by_number!(
            queries.len() / dim,
            some_scores::<L, T>(queries, dim, keys, stride, factor, out)
        );
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // several arrays side by side
fn some_scores<L: Level, T: Number, const G: usize>(
    queries: &[f32],
    dim: usize,
    keys: &[T],
    stride: usize,
    factor: f32,
    out: &mut [f32],
) {
    let count = out.len() / G;
    let mut parts: [&[f32]; G] = [&[]; G];
    for (g, part) in parts.iter_mut().enumerate() {
        *part = &queries[g * dim..(g + 1) * dim];
    }
    let key = |i: usize| &keys[i * stride..][..dim];
    let whole = count / SUMS * SUMS;
    for first in (0..whole).step_by(SUMS) {
        let mut lanes = [[[0.0f32; LANES]; SUMS]; G];
        for pair in (0..SUMS).step_by(KEYS) {
            let at = first + pair;
            let found = dots::<L, T, KEYS, G>([key(at), key(at + 1)], parts, dim, AHEAD * stride);
            for r in 0..KEYS {
                for g in 0..G {
                    lanes[g][pair + r] = found[r][g];
                }
            }
        }
        for g in 0..G {
            let out = &mut out[g * count + first..][..SUMS];
            for (out, sum) in out.iter_mut().zip(L::totals(&lanes[g])) {
                *out = factor * sum;
            }
        }
    }
    for i in whole..count {
        let [found] = dots::<L, T, 1, G>([key(i)], parts, dim, AHEAD * stride);
        for (g, lanes) in found.into_iter().enumerate() {
            out[g * count + i] = factor * total(lanes);
        }
    }
}

/// Products of `R` rows with `G` queries, lane by lane; their totals are as
/// [`dot`](super::super::math::dot), in the same order. Numbers `ahead` of the rows are asked for.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // several arrays side by side
fn dots<L: Level, T: Number, const R: usize, const G: usize>(
    rows: [&[T]; R],
    queries: [&[f32]; G],
    dim: usize,
    ahead: usize,
) -> [[[f32; LANES]; G]; R] {
    let whole = dim / LANES;
    let mut blocks: [&[[T; LANES]]; R] = [&[]; R];
    for r in 0..R {
        blocks[r] = &rows[r].as_chunks().0[..whole];
    }
    let mut parts: [&[[f32; LANES]]; G] = [&[]; G];
    for g in 0..G {
        parts[g] = &queries[g].as_chunks().0[..whole];
    }
    let mut lanes = [[[0.0f32; LANES]; G]; R];
    for i in 0..whole {
        for r in 0..R {
            if i % blocks_of_a_line::<T>() == 0 {
                prefetch(blocks[r][i].as_ptr().wrapping_add(ahead));
            }
            let wide = T::widen::<L>(&blocks[r][i]);
            for g in 0..G {
                for lane in 0..LANES {
                    lanes[r][g][lane] = L::fma(wide[lane], parts[g][i][lane], lanes[r][g][lane]);
                }
            }
        }
    }
    for i in whole * LANES..dim {
        for r in 0..R {
            for g in 0..G {
                let lane = &mut lanes[r][g][i - whole * LANES];
                *lane = L::fma(rows[r][i].full(), queries[g][i], *lane);
            }
        }
    }
    lanes
}

#[inline(always)]
pub(super) fn mix<L: Level, T: Number>(
    weights: &[f32],
    keys: usize,
    values: &[T],
    stride: usize,
    out: &mut [f32],
) {
    let dim = out.len() * keys / weights.len();
    let shared = out.chunks_mut(SHARED * dim);
    for (weights, out) in weights.chunks(SHARED * keys).zip(shared) {
        by_number!(
            weights.len() / keys,
            some_mixed::<L, T>(weights, keys, values, stride, out)
        );
    }
}

/// Every number of the result is summed in the order of the keys.
#[inline(always)]
fn some_mixed<L: Level, T: Number, const G: usize>(
    weights: &[f32],
    keys: usize,
    values: &[T],
    stride: usize,
    out: &mut [f32],
) {
    const WIDTH: usize = VECTORS * LANES;
    let dim = out.len() / G;
    let mut rows: [&[f32]; G] = [&[]; G];
    for (g, row) in rows.iter_mut().enumerate() {
        *row = &weights[g * keys..(g + 1) * keys];
    }
    let whole = dim / WIDTH * WIDTH;
    for start in (0..whole).step_by(WIDTH) {
        let mut sums = [[[0.0f32; LANES]; VECTORS]; G];
        for key in 0..keys {
            let value = &values[key * stride + start..][..WIDTH];
            for line in (0..WIDTH * size_of::<T>()).step_by(LINE) {
                let at = AHEAD * stride + line / size_of::<T>();
                prefetch(value.as_ptr().wrapping_add(at));
            }
            for (v, value) in value.as_chunks::<LANES>().0.iter().enumerate() {
                let wide = T::widen::<L>(value);
                for g in 0..G {
                    let weight = rows[g][key];
                    for lane in 0..LANES {
                        sums[g][v][lane] = L::fma(weight, wide[lane], sums[g][v][lane]);
                    }
                }
            }
        }
        for (g, sums) in sums.iter().enumerate() {
            let out = &mut out[g * dim + start..][..WIDTH];
            for (out, sum) in out.iter_mut().zip(sums.as_flattened()) {
                *out += sum;
            }
        }
    }
    for i in whole..dim {
        for g in 0..G {
            let mut sum = 0.0;
            for (key, &weight) in rows[g].iter().enumerate() {
                sum = L::fma(weight, values[key * stride + i].full(), sum);
            }
            out[g * dim + i] += sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{bf16, f16};

    use super::super::Stored;

    /// Scores and mixtures of keys and values that stand apart, for any number of queries, in
    /// whatever they are stored in.
    #[test]
    fn keys_and_values_are_read_where_they_lie() {
        for (dim, stride) in [(64, 64), (40, 72), (16, 16), (7, 9)] {
            for (keys, queries) in [(1, 1), (4, 2), (7, 3), (65, 4), (65, 7)] {
                check(dim, stride, keys, queries);
            }
        }
    }

    fn check(dim: usize, stride: usize, keys: usize, queries: usize) {
        let number = |i: usize| (i * 29 % 97) as f32 / 64.0 - 0.7;
        let stored: Vec<f32> = (0..keys * stride)
            .map(|i| bf16::from_f32(number(i)).to_f32())
            .collect();
        let query: Vec<f32> = (0..queries * dim).map(|i| number(i + 3)).collect();
        let weights: Vec<f32> = (0..queries * keys).map(|i| number(i + 9)).collect();
        let (mut scores, mut mixed) = (vec![0.0; queries * keys], vec![1.0; queries * dim]);
        f32::scores(&query, dim, &stored, stride, 0.5, &mut scores);
        f32::mix(&weights, keys, &stored, stride, &mut mixed);
        let row = |key: usize| &stored[key * stride..][..dim];
        for q in 0..queries {
            for key in 0..keys {
                let products = row(key).iter().zip(&query[q * dim..]);
                let exact: f64 = products.map(|(k, q)| f64::from(k * q)).sum();
                let score = f64::from(scores[q * keys + key]);
                assert!((score - 0.5 * exact).abs() < 1e-4, "{q} {key}");
            }
            for i in 0..dim {
                let exact: f64 = (0..keys)
                    .map(|key| f64::from(weights[q * keys + key]) * f64::from(row(key)[i]))
                    .sum();
                let value = f64::from(mixed[q * dim + i]);
                assert!((value - 1.0 - exact).abs() < 1e-4, "{q} {i}");
            }
        }
        // 16 bits that hold the numbers exactly give the same.
        let half: Vec<f16> = stored.iter().map(|v| f16::from_f32(*v)).collect();
        let brain: Vec<bf16> = stored.iter().map(|v| bf16::from_f32(*v)).collect();
        let (mut found, mut mixture) = (vec![0.0; queries * keys], vec![1.0; queries * dim]);
        f16::scores(&query, dim, &half, stride, 0.5, &mut found);
        f16::mix(&weights, keys, &half, stride, &mut mixture);
        assert_eq!((&found, &mixture), (&scores, &mixed), "{dim} {keys}");
        found.fill(0.0);
        mixture.fill(1.0);
        bf16::scores(&query, dim, &brain, stride, 0.5, &mut found);
        bf16::mix(&weights, keys, &brain, stride, &mut mixture);
        assert_eq!((&found, &mixture), (&scores, &mixed), "{dim} {keys}");
    }
}
