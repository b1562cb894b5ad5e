//! The forward pass.

use burn::tensor::Element;
use burn_flex::FlexTensor;

use super::super::gemm::{Matrix, Threads, new_product, product};
use super::super::level::vectorised;
use super::super::math::{exp_in_place, max};
use super::super::pieces::Scattered;
use super::super::rows::Stored;
use super::super::team::share_with;
use super::super::view::{Heads, token_major};

use super::softcap::limit;
use super::{BLOCK, Scores, step};

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
}

/// Multiplications of the scores from which on it is worth sharing.
const POOLED: usize = 1 << 18;

/// Attention of all heads; `log_sums [batch, heads, queries]` are left for a backward pass.
pub(super) fn attend<T: Stored + Element + bytemuck::Pod>(
    q: &Heads<'_>,
    k: &Heads<'_, T>,
    v: &Heads<'_, T>,
    how: &Scores<'_>,
    log_sums: Option<&mut Vec<f32>>,
) -> FlexTensor {
    let (batch, heads, queries, dim) = (q.batch, q.heads, q.tokens, q.dim);
    if queries == 1 && log_sums.is_none() && how.mask.is_span() {
        return token_major(step::attend(q, k, v, how), [batch, heads, 1, dim]);
    }
    let blocks = queries.div_ceil(BLOCK);
    let (out_len, logs_len) = (batch * queries * heads * dim, batch * heads * queries);
    let (mut out, mut logs) = (Vec::with_capacity(out_len), Vec::with_capacity(logs_len));
    let rows_out = Scattered::new(&mut out.spare_capacity_mut()[..out_len]);
    let logs_out = Scattered::new(&mut logs.spare_capacity_mut()[..logs_len]);
    let block = |space: &mut Space, index: usize| {
        let (b, rest) = (index / (heads * blocks), index % (heads * blocks));
        let (head, from) = (rest / blocks, rest % blocks * BLOCK);
        let to = (from + BLOCK).min(queries);
        let (rows, logs) = attend_block(q, k, v, how, [b, head, from, to], space);
        // SAFETY: these queries of this head are this call's alone.
        unsafe {
            for (row, values) in rows.chunks_exact(dim).enumerate() {
                let at = ((b * queries + from + row) * heads + head) * dim;
                rows_out.write(at, values);
            }
            logs_out.write((b * heads + head) * queries + from, &logs);
        }
    };
    let pieces = batch * heads * blocks;
    let work = batch * heads * queries * how.mask.most(k.tokens) * dim;
    if work < POOLED {
        let mut space = Space::default();
        (0..pieces).for_each(|index| block(&mut space, index));
    } else {
        share_with(pieces, Space::default, block);
    }
    // SAFETY: the blocks are all queries of all heads, and each wrote its rows and logarithms.
    unsafe {
        out.set_len(out_len);
        logs.set_len(logs_len);
    }
    if let Some(sums) = log_sums {
        *sums = logs;
    }
    token_major(out, [batch, heads, queries, dim])
}

/// What a thread writes on its way.
#[derive(Default)]
struct Space {
    scores: Vec<f32>,
    /// Keys or values in f32, where they are stored otherwise.
    wide: Vec<f32>,
}

/// Queries `from..to` of one head.
fn attend_block<T: Stored + Element + bytemuck::Pod>(
    q: &Heads<'_>,
    k: &Heads<'_, T>,
    v: &Heads<'_, T>,
    how: &Scores<'_>,
    [batch, head, from, to]: [usize; 4],
    space: &mut Space,
) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim, past) = (to - from, q.dim, k.tokens.saturating_sub(q.tokens));
    let kv_head = head / (q.heads / k.heads);
    let visible = how.mask.visible(batch, [from, to], past, k.tokens);
    let (first, keys) = (visible.start, visible.len());
    let Space { scores, wide } = space;
    scores.clear();
    scores.resize(rows * keys, 0.0);
    let query = q.head(batch, head, from);
    let key = k.head(batch, kv_head, first);
    let value = v.head(batch, kv_head, first);
    let few = rows <= 2;
    if few {
        for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
            let query = &query[row * q.row_stride()..][..dim];
            T::scores(query, dim, key, k.row_stride(), how.factor, scores);
        }
    } else {
        let a = Matrix::rows(query, q.row_stride());
        let (key, stride) = T::dense(key, k.row_stride(), [keys, dim], wide);
        let b = Matrix::rows(key, stride).transposed();
        product(
            [rows, keys, dim],
            how.factor,
            a,
            b,
            scores,
            keys,
            false,
            Threads::One,
        );
    }
    let (sums, logs) = softmax(how, [batch, head, from], past, first, scores, keys);
    let mut out;
    if few {
        out = vec![0.0; rows * dim];
        for (weights, out) in scores.chunks_exact(keys).zip(out.chunks_exact_mut(dim)) {
            T::mix(weights, keys, value, v.row_stride(), out);
        }
    } else {
        let a = Matrix::rows(scores, keys);
        let (value, stride) = T::dense(value, v.row_stride(), [keys, dim], wide);
        let b = Matrix::rows(value, stride);
        out = new_product([rows, dim, keys], 1.0, a, b, Threads::One);
    }
    for (sum, out) in sums.iter().zip(out.chunks_exact_mut(dim)) {
        scale(out, 1.0 / sum);
    }
    (out, logs)
}

/// The softmax of each row of a block's scores, not divided by its sum; the sums and their
/// logarithms. `at` is the first query, `first` the first key.
#[inline]
fn softmax(
    how: &Scores<'_>,
    [batch, head, from]: [usize; 3],
    past: usize,
    first: usize,
    scores: &mut [f32],
    keys: usize,
) -> (Vec<f32>, Vec<f32>) {
    let rows = scores.len() / keys;
    let mut sums = Vec::with_capacity(rows);
    let mut logs = Vec::with_capacity(rows);
    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
        if let Some(cap) = how.softcap {
            limit(scores, cap);
        }
        let at = [batch, head, from + row];
        let seen = how.mask.hide(at, past, first, scores);
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let (sum, log) = softmax_row(&mut scores[seen]);
        sums.push(sum);
        logs.push(log);
    }
    (sums, logs)
}
