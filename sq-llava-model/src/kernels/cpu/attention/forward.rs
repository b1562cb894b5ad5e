//! The forward pass.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::super::gemm::{Matrix, Threads, product};
use super::super::level::vectorised;
use super::super::math::{dot, exp_in_place, max};
use super::super::view::{Heads, token_major};

use super::{BLOCK, Mask};

vectorised! {
    /// Exponentials of a row of scores less their maximum, in place; the sum of them and the
    /// logarithm of the sum before the maximum was taken off.
    fn softmax_row<L>(scores: &mut [f32]) -> (f32, f32) {
        let largest = max(scores);
        if largest == f32::NEG_INFINITY {
            // No key is seen: all weights are zero, here and in the backward pass.
            scores.fill(0.0);
            return (1.0, f32::INFINITY);
        }
        let sum = exp_in_place::<L>(scores, largest);
        (sum, largest + sum.ln())
    }

    fn scale<L>(row: &mut [f32], factor: f32) {
        for value in row {
            *value *= factor;
        }
    }

    /// Scores of one query with keys `row` apart.
    fn score_row<L>(query: &[f32], keys: &[f32], row: usize, factor: f32, scores: &mut [f32]) {
        for (key, score) in scores.iter_mut().enumerate() {
            *score = factor * dot::<L>(query, &keys[key * row..][..query.len()]);
        }
    }

    /// Adds values `row` apart with these weights.
    fn mix_row<L>(weights: &[f32], values: &[f32], row: usize, out: &mut [f32]) {
        let n = out.len();
        for (key, &weight) in weights.iter().enumerate() {
            let value = &values[key * row..][..n];
            for (out, &value) in out.iter_mut().zip(value) {
                *out = L::fma(weight, value, *out);
            }
        }
    }
}

/// Multiplications of the scores from which on the pool is worth waking.
const POOLED: usize = 1 << 18;

/// Attention of all heads; `log_sums [batch, heads, queries]` are left for a backward pass.
pub(super) fn attend(
    q: &Heads<'_>,
    k: &Heads<'_>,
    v: &Heads<'_>,
    mask: &Mask<'_>,
    log_sums: Option<&mut [f32]>,
) -> FlexTensor {
    let (batch, heads, queries, dim) = (q.batch, q.heads, q.tokens, q.dim);
    let blocks = queries.div_ceil(BLOCK);
    // A block's output `[rows, dim]`, its log-sums, and where it belongs.
    let block = |index: usize, scores: &mut Vec<f32>| {
        let (b, rest) = (index / (heads * blocks), index % (heads * blocks));
        let (head, from) = (rest / blocks, rest % blocks * BLOCK);
        let to = (from + BLOCK).min(queries);
        attend_block(q, k, v, mask, [b, head, from, to], scores)
    };
    let pieces = 0..batch * heads * blocks;
    let work = batch * heads * queries * k.tokens * dim;
    let parts: Vec<(Vec<f32>, Vec<f32>)> = if work < POOLED {
        let mut scores = Vec::new();
        pieces.map(|index| block(index, &mut scores)).collect()
    } else {
        let pieces = pieces.into_par_iter();
        pieces
            .map_init(Vec::new, |scores, index| block(index, scores))
            .collect()
    };

    let mut out = vec![0.0; batch * queries * heads * dim];
    let mut sums = log_sums;
    for (index, (rows, logs)) in parts.into_iter().enumerate() {
        let (b, rest) = (index / (heads * blocks), index % (heads * blocks));
        let (head, from) = (rest / blocks, rest % blocks * BLOCK);
        for (row, values) in rows.chunks_exact(dim).enumerate() {
            let at = ((b * queries + from + row) * heads + head) * dim;
            out[at..at + dim].copy_from_slice(values);
        }
        if let Some(sums) = sums.as_deref_mut() {
            let at = (b * heads + head) * queries + from;
            sums[at..at + logs.len()].copy_from_slice(&logs);
        }
    }
    token_major(out, [batch, heads, queries, dim])
}

/// Queries `from..to` of one head.
fn attend_block(
    q: &Heads<'_>,
    k: &Heads<'_>,
    v: &Heads<'_>,
    mask: &Mask<'_>,
    [batch, head, from, to]: [usize; 4],
    scores: &mut Vec<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim) = (to - from, q.dim);
    let kv_head = head / (q.heads / k.heads);
    let keys = mask.visible(to, q.tokens, k.tokens);
    let factor = 1.0 / (dim as f32).sqrt();
    scores.clear();
    scores.resize(rows * keys, 0.0);
    let query = q.head(batch, head, from);
    let key = k.head(batch, kv_head, 0);
    let value = v.head(batch, kv_head, 0);
    let few = rows <= 2;
    if few {
        for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
            let query = &query[row * q.row_stride()..][..dim];
            score_row(query, key, k.row_stride(), factor, scores);
        }
    } else {
        let a = Matrix::rows(query, q.row_stride());
        let b = Matrix::rows(key, k.row_stride()).transposed();
        product(
            [rows, keys, dim],
            factor,
            a,
            b,
            scores,
            keys,
            false,
            Threads::One,
        );
    }
    let mut sums = Vec::with_capacity(rows);
    let mut logs = Vec::with_capacity(rows);
    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
        let seen = mask.hide([batch, head, from + row], q.tokens, k.tokens, scores);
        let (seen, unseen) = scores.split_at_mut(seen);
        unseen.fill(0.0);
        let (sum, log) = softmax_row(seen);
        sums.push(sum);
        logs.push(log);
    }
    let mut out = vec![0.0; rows * dim];
    if few {
        for (weights, out) in scores.chunks_exact(keys).zip(out.chunks_exact_mut(dim)) {
            mix_row(weights, value, v.row_stride(), out);
        }
    } else {
        let a = Matrix::rows(scores, keys);
        let b = Matrix::rows(value, v.row_stride());
        product(
            [rows, dim, keys],
            1.0,
            a,
            b,
            &mut out,
            dim,
            false,
            Threads::One,
        );
    }
    for (sum, out) in sums.iter().zip(out.chunks_exact_mut(dim)) {
        scale(out, 1.0 / sum);
    }
    (out, logs)
}
