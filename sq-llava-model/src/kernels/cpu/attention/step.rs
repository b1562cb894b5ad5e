//! One query of each head against a cache: what a decoded token attends to. It costs what reading
//! keys and values costs, so they are read once for all heads that share them, in pieces that the
//! threads take; the pieces' sums are brought together in the order of the keys.

use std::ops::Range;

use burn::tensor::Element;

use super::super::level::vectorised;
use super::super::math::{exp_in_place, max};
use super::super::rows::Stored;
use super::super::team::share_each;
use super::super::view::Heads;
use super::Scores;
use super::softcap::limit;

/// Keys of a piece.
const KEYS: usize = 128;
/// Multiplications of the scores from which on others are asked to help.
const SHARED: usize = 1 << 15;

vectorised! {
    /// Exponentials of each row of scores less their maximum, in place; maxima and sums of them.
    fn exponentials<L>(scores: &mut [f32], keys: usize, maxima: &mut [f32], sums: &mut [f32]) {
        let outs = maxima.iter_mut().zip(sums);
        for (scores, (maximum, sum)) in scores.chunks_exact_mut(keys).zip(outs) {
            *maximum = max(scores);
            if *maximum == f32::NEG_INFINITY {
                // Nothing is seen.
                scores.fill(0.0);
                *sum = 0.0;
                continue;
            }
            *sum = exp_in_place::<L>(scores, *maximum);
        }
    }

    /// Brings the pieces of a head together: `Σ eᵐ v / Σ eᵐ s` of their maxima m less the largest,
    /// mixtures v and sums s.
    fn combine<L>(parts: &[Part<'_>], query: usize, out: &mut [f32]) {
        let largest = parts.iter().fold(f32::NEG_INFINITY, |m, part| m.max(part.maxima[query]));
        out.fill(0.0);
        if largest == f32::NEG_INFINITY {
            return;
        }
        let mut total = 0.0;
        for part in parts {
            let mut factor = [part.maxima[query]];
            exp_in_place::<L>(&mut factor, largest);
            total = L::fma(factor[0], part.sums[query], total);
            let mixed = &part.mixed[query * out.len()..][..out.len()];
            for (out, value) in out.iter_mut().zip(mixed) {
                *out = L::fma(factor[0], *value, *out);
            }
        }
        let inverse = 1.0 / total;
        for out in out {
            *out *= inverse;
        }
    }
}

/// Some keys of a head that several queries share.
struct Part<'a> {
    batch: usize,
    head: usize,
    keys: Range<usize>,
    /// Largest score of each query, and the sum of exponentials of its scores less that.
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
    /// Values by these exponentials. `[queries, dim]`
    mixed: &'a mut [f32],
    scores: &'a mut [f32],
}

/// Attention of one query for each head, where the mask is a span. `[batch, heads, dim]`
pub(in super::super) fn attend<T: Stored + Element + bytemuck::Pod>(
    q: &Heads<'_>,
    k: &Heads<'_, T>,
    v: &Heads<'_, T>,
    how: &Scores<'_>,
) -> Vec<f32> {
    let (dim, group) = (q.dim, q.heads / k.heads);
    let seen: Vec<Range<usize>> = (0..q.batch)
        .map(|batch| how.mask.visible(batch, [0, 1], k.tokens - 1, k.tokens))
        .collect();
    let count = |seen: &Range<usize>| seen.len().div_ceil(KEYS);
    let pieces = k.heads * seen.iter().map(count).sum::<usize>();
    let room = KEYS.min(k.tokens).max(1);
    let mut space = vec![0.0; pieces * group * (2 + dim + room)];
    let mut spaces = space.chunks_exact_mut(group * (2 + dim + room));
    let mut parts = Vec::with_capacity(pieces);
    for (batch, seen) in seen.iter().enumerate() {
        for head in 0..k.heads {
            for first in seen.clone().step_by(KEYS) {
                let Some(space) = spaces.next() else { break };
                let (maxima, space) = space.split_at_mut(group);
                let (sums, space) = space.split_at_mut(group);
                let (mixed, scores) = space.split_at_mut(group * dim);
                parts.push(Part {
                    batch,
                    head,
                    keys: first..(first + KEYS).min(seen.end),
                    maxima,
                    sums,
                    mixed,
                    scores,
                });
            }
        }
    }
    let queries = joined(q);
    let work = |part: &mut Part<'_>| {
        let at = (part.batch * q.heads + part.head * group) * dim;
        let queries = &queries[at..at + group * dim];
        let scores = &mut part.scores[..group * part.keys.len()];
        let key = k.head(part.batch, part.head, part.keys.start);
        T::scores(queries, dim, key, k.row_stride(), how.factor, scores);
        if let Some(cap) = how.softcap {
            limit(scores, cap);
        }
        exponentials(scores, part.keys.len(), part.maxima, part.sums);
        let value = v.head(part.batch, part.head, part.keys.start);
        T::mix(scores, part.keys.len(), value, v.row_stride(), part.mixed);
    };
    let keys: usize = seen.iter().map(Range::len).sum();
    match keys * q.heads * dim < SHARED {
        true => parts.iter_mut().for_each(work),
        false => share_each(&mut parts, work),
    }
    let mut out = vec![0.0; q.batch * q.heads * dim];
    let mut parts = &parts[..];
    let mut outs = out.chunks_exact_mut(group * dim);
    for seen in &seen {
        for out in outs.by_ref().take(k.heads) {
            let (these, others) = parts.split_at(count(seen));
            parts = others;
            for (query, out) in out.chunks_exact_mut(dim).enumerate() {
                combine(these, query, out);
            }
        }
    }
    out
}

/// Queries one behind the other. `[batch, heads, dim]`
fn joined(q: &Heads<'_>) -> Vec<f32> {
    let mut all = Vec::with_capacity(q.batch * q.heads * q.dim);
    for batch in 0..q.batch {
        for head in 0..q.heads {
            all.extend_from_slice(q.row(batch, head, 0));
        }
    }
    all
}
