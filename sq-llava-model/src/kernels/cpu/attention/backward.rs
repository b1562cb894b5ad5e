//! The backward pass: scores again, block by block, and five products of each block.

use burn_flex::FlexTensor;

use super::super::gemm::{Matrix, Threads, product};
use super::super::level::vectorised;
use super::super::math::{dot, exp};
use super::super::pieces::Scattered;
use super::super::softmax::TINY;
use super::super::team::share;
use super::super::view::{Heads, elements, token_major};

use super::softcap::{limit, limit_back};
use super::{BLOCK, Saved, Scores};

vectorised! {
    /// `P = e^{S − log sum}` in place of a row of scores; weights that do not count are zero.
    fn weights_row<L>(scores: &mut [f32], log_sum: f32) {
        for score in scores {
            let weight = exp::<L>(*score - log_sum);
            *score = if weight < TINY { 0.0 } else { weight };
        }
    }

    /// `dS = P (dP − δ)` in place of dP.
    fn scores_back_row<L>(weights: &[f32], grads: &mut [f32], delta: f32) {
        for (grad, &weight) in grads.iter_mut().zip(weights) {
            *grad = weight * (*grad - delta);
        }
    }

    fn row_dot<L>(a: &[f32], b: &[f32]) -> f32 {
        dot::<L>(a, b)
    }
}

/// Gradients of one key head: its keys' and values' `[keys, dim]`, and its queries'
/// `[group, queries, dim]`.
struct HeadGrads {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

/// Gradients of queries, keys and values.
pub(super) fn attend_back(saved: &Saved, grad: FlexTensor, how: &Scores<'_>) -> [FlexTensor; 3] {
    let [q, k, v] = [&saved.query, &saved.key, &saved.value].map(Heads::<f32>::new);
    let inputs = Inputs {
        q,
        k,
        v,
        out: Heads::new(&saved.output),
        grad: Heads::new(&grad),
        log_sums: elements(&saved.log_sums),
        how,
    };
    let Inputs { q, k, .. } = &inputs;
    let (batch, kv_heads, dim) = (k.batch, k.heads, q.dim);
    let group = q.heads / kv_heads;
    let (queries, keys) = (q.tokens, k.tokens);
    // Together, with the tokens outside the heads.
    let lens = [q.heads * queries, kv_heads * keys, kv_heads * keys].map(|rows| batch * rows * dim);
    let [mut d_query, mut d_key, mut d_value] = lens.map(Vec::with_capacity);
    let query_out = Scattered::new(&mut d_query.spare_capacity_mut()[..lens[0]]);
    let key_out = Scattered::new(&mut d_key.spare_capacity_mut()[..lens[1]]);
    let value_out = Scattered::new(&mut d_value.spare_capacity_mut()[..lens[2]]);
    share(batch * kv_heads, &|index| {
        let at @ [b, kv_head] = [index / kv_heads, index % kv_heads];
        let part = head_back(&inputs, at);
        // SAFETY: this key head and the queries on it are this call's alone.
        unsafe {
            for (row, values) in part.query.chunks_exact(dim).enumerate() {
                let (head, token) = (kv_head * group + row / queries, row % queries);
                query_out.write(((b * queries + token) * q.heads + head) * dim, values);
            }
            for (from, to) in [(&part.key, &key_out), (&part.value, &value_out)] {
                for (token, values) in from.chunks_exact(dim).enumerate() {
                    to.write(((b * keys + token) * kv_heads + kv_head) * dim, values);
                }
            }
        }
    });
    // SAFETY: the key heads of all samples, and the queries on them, are all rows.
    unsafe {
        d_query.set_len(lens[0]);
        d_key.set_len(lens[1]);
        d_value.set_len(lens[2]);
    }
    let kv_shape = [batch, kv_heads, k.tokens, dim];
    [
        token_major(d_query, [batch, q.heads, q.tokens, dim]),
        token_major(d_key, kv_shape),
        token_major(d_value, kv_shape),
    ]
}

/// What the backward pass reads.
struct Inputs<'a> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    out: Heads<'a>,
    grad: Heads<'a>,
    log_sums: &'a [f32],
    how: &'a Scores<'a>,
}

/// Queries `from..from + rows` of a head, and the keys that any of them sees.
struct Block {
    batch: usize,
    head: usize,
    from: usize,
    rows: usize,
    first_key: usize,
    keys: usize,
    /// Keys before the first query.
    past: usize,
}

fn head_back(inputs: &Inputs<'_>, [batch, kv_head]: [usize; 2]) -> HeadGrads {
    let Inputs { q, k, v, how, .. } = inputs;
    let (dim, queries, group) = (q.dim, q.tokens, q.heads / k.heads);
    let past = k.tokens.saturating_sub(queries);
    let mut found = HeadGrads {
        query: vec![0.0; group * queries * dim],
        key: vec![0.0; k.tokens * dim],
        value: vec![0.0; k.tokens * dim],
    };
    let (mut weights, mut grads, mut limited) = (Vec::new(), Vec::new(), Vec::new());
    for member in 0..group {
        let head = kv_head * group + member;
        for from in (0..queries).step_by(BLOCK) {
            let to = (from + BLOCK).min(queries);
            let visible = how.mask.visible(batch, [from, to], past, k.tokens);
            let (rows, first, keys) = (to - from, visible.start, visible.len());
            let key = Matrix::rows(k.head(batch, kv_head, first), k.row_stride());
            let value = Matrix::rows(v.head(batch, kv_head, first), v.row_stride());
            let query = Matrix::rows(q.head(batch, head, from), q.row_stride());
            let d_out = Matrix::rows(
                inputs.grad.head(batch, head, from),
                inputs.grad.row_stride(),
            );
            for buffer in [&mut weights, &mut grads] {
                buffer.clear();
                buffer.resize(rows * keys, 0.0);
            }
            let (s, d) = (&mut weights[..], &mut grads[..]);
            let sizes = [rows, keys, dim];
            multiply(sizes, how.factor, query, key.transposed(), s, false);
            multiply(sizes, 1.0, d_out, value.transposed(), d, false);
            let block = Block {
                batch,
                head,
                from,
                rows,
                first_key: first,
                keys,
                past,
            };
            softmax_back(inputs, &block, s, d, &mut limited);
            // dV += Pᵀ dO, dK += dSᵀ Q · scale, dQ = dS K · scale.
            let p = Matrix::rows(s, keys).transposed();
            let ds = Matrix::rows(d, keys);
            let sizes = [keys, dim, rows];
            multiply(sizes, 1.0, p, d_out, &mut found.value[first * dim..], true);
            let d_key = &mut found.key[first * dim..];
            multiply(sizes, how.factor, ds.transposed(), query, d_key, true);
            let d_query = &mut found.query[(member * queries + from) * dim..][..rows * dim];
            multiply([rows, dim, keys], how.factor, ds, key, d_query, false);
        }
    }
    found
}

/// A product of one block: rows of the output follow each other.
#[inline]
fn multiply(
    sizes: [usize; 3],
    factor: f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
    out: &mut [f32],
    add: bool,
) {
    product(sizes, factor, left, right, out, sizes[1], add, Threads::One);
}

/// From the scores S of a block and dP, in their places, to P and dS. `limited` keeps a row of
/// scores on the way.
#[inline]
fn softmax_back(
    inputs: &Inputs<'_>,
    block: &Block,
    scores: &mut [f32],
    grads: &mut [f32],
    limited: &mut Vec<f32>,
) {
    let Inputs {
        q, out, grad, how, ..
    } = inputs;
    let &Block {
        batch, head, keys, ..
    } = block;
    for row in 0..block.rows {
        let token = block.from + row;
        let s = &mut scores[row * keys..][..keys];
        let d = &mut grads[row * keys..][..keys];
        if let Some(cap) = how.softcap {
            limit(s, cap);
            limited.clear();
            limited.extend_from_slice(s);
        }
        let at = [batch, head, token];
        let seen = how.mask.hide(at, block.past, block.first_key, s);
        for unseen in [0..seen.start, seen.end..keys] {
            s[unseen.clone()].fill(0.0);
            d[unseen].fill(0.0);
        }
        let log_sum = inputs.log_sums[(batch * q.heads + head) * q.tokens + token];
        weights_row(&mut s[seen.clone()], log_sum);
        let delta = row_dot(grad.row(batch, head, token), out.row(batch, head, token));
        scores_back_row(&s[seen.clone()], &mut d[seen.clone()], delta);
        if let Some(cap) = how.softcap {
            limit_back(&limited[seen.clone()], &mut d[seen], cap);
        }
    }
}
