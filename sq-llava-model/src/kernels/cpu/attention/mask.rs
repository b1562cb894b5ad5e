//! Which keys a query sees, read row by row.

use std::ops::Range;

use super::Hidden;
use crate::kernels::key_span::KeySpan;

/// A mask that can be read row by row.
pub(super) enum Mask<'a> {
    Nothing,
    Later,
    Outside(&'a KeySpan),
    Marked {
        data: &'a [u8],
        start: usize,
        strides: [usize; 4],
        /// 1 where all heads share a mask.
        heads: usize,
    },
}

impl<'a> Mask<'a> {
    pub(super) fn new(hidden: &'a Hidden) -> Self {
        match hidden {
            Hidden::Nothing => Self::Nothing,
            Hidden::Later => Self::Later,
            Hidden::Outside(span) => Self::Outside(span),
            Hidden::Marked(mask) => {
                let layout = mask.layout();
                let strides = layout.strides();
                Self::Marked {
                    data: mask.bytes(),
                    start: layout.start_offset(),
                    strides: [0, 1, 2, 3].map(|i| strides[i] as usize),
                    heads: layout.shape()[1],
                }
            }
        }
    }

    /// Keys that a query sees at most, of `keys`.
    pub(super) fn most(&self, keys: usize) -> usize {
        match self {
            Self::Outside(span) => keys.min(span.window),
            _ => keys,
        }
    }

    /// Whether a query sees all keys of [`Self::visible`].
    pub(super) fn is_span(&self) -> bool {
        !matches!(self, Self::Marked { .. })
    }

    /// Keys that the queries `from..to` of a sample may see; `past` keys stand before the first
    /// query of all.
    pub(super) fn visible(
        &self,
        batch: usize,
        [from, to]: [usize; 2],
        past: usize,
        keys: usize,
    ) -> Range<usize> {
        match self {
            Self::Later => 0..to + past,
            Self::Outside(span) => {
                // The first query sees the earliest key.
                span.of(batch, from + past).start..to + past
            }
            Self::Nothing | Self::Marked { .. } => 0..keys,
        }
    }

    /// Sets the scores of hidden keys to −∞ and returns the places of those that can be seen at
    /// all; `scores` are those of the keys from `first` on.
    pub(super) fn hide(
        &self,
        [batch, head, query]: [usize; 3],
        past: usize,
        first: usize,
        scores: &mut [f32],
    ) -> Range<usize> {
        match self {
            Self::Nothing => 0..scores.len(),
            Self::Later => 0..query + 1 + past,
            Self::Outside(span) => {
                let seen = span.of(batch, query + past);
                seen.start - first..seen.end - first
            }
            Self::Marked {
                data,
                start,
                strides,
                heads,
            } => {
                let head = if *heads == 1 { 0 } else { head };
                let row = start + batch * strides[0] + head * strides[1] + query * strides[2];
                if strides[3] == 1 {
                    for (score, &hidden) in scores.iter_mut().zip(&data[row..]) {
                        *score = if hidden == 0 {
                            *score
                        } else {
                            f32::NEG_INFINITY
                        };
                    }
                } else {
                    for (key, score) in scores.iter_mut().enumerate() {
                        if data[row + key * strides[3]] != 0 {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
                0..scores.len()
            }
        }
    }
}
