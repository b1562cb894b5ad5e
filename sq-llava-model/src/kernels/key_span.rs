//! Keys that a token of a decoder sees, told by a few numbers instead of a mask.

use std::ops::Range;

/// The keys up to each query, the last of which is as late as the last key, but for padding, what
/// lies before a window, and the samples before its own in a packed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpan {
    /// Padding tokens at the left of each row.
    pub padding: Vec<usize>,
    /// Where the second, third … sample of each packed row starts, in ascending order; a query sees
    /// nothing before the start of its own. One list for each row, or none at all where no row is
    /// packed.
    pub starts: Vec<Vec<usize>>,
    /// Keys that a query sees at most, its own included; at least 1.
    pub window: usize,
}

impl KeySpan {
    /// Spans of rows in which samples of these lengths stand one behind the other; the
    /// padding behind the last is as a sample of its own.
    pub fn packed(lengths: &[Vec<usize>], window: usize) -> Self {
        let starts = lengths.iter().map(|lengths| {
            let ends = lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            ends.collect()
        });
        Self {
            padding: vec![0; lengths.len()],
            starts: starts.collect(),
            window,
        }
    }

    /// Keys that the token at a position of a row sees.
    pub fn of(&self, row: usize, position: usize) -> Range<usize> {
        let window = (position + 1).saturating_sub(self.window);
        // A padding token sees itself, so that its row of the softmax is not empty.
        let padding = self.padding[row].min(position);
        window.max(padding).max(self.start(row, position))..position + 1
    }

    /// Where the sample at a position of a row starts.
    fn start(&self, row: usize, position: usize) -> usize {
        let Some(starts) = self.starts.get(row) else {
            return 0;
        };
        let before = starts.partition_point(|&start| start <= position);
        before.checked_sub(1).map_or(0, |last| starts[last])
    }

    /// Whether it tells the spans of so many rows.
    pub(crate) fn fits(&self, rows: usize) -> bool {
        let packed = self.starts.is_empty() || self.starts.len() == rows;
        packed && self.padding.len() == rows && self.window > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_packed_row_sees_its_own_sample() {
        let span = KeySpan::packed(&[vec![3, 2], vec![6]], usize::MAX);
        let of = |row, position| span.of(row, position);
        assert_eq!([of(0, 0), of(0, 2)], [0..1, 0..3]);
        assert_eq!([of(0, 3), of(0, 4)], [3..4, 3..5]);
        // Two tokens of padding in the first row.
        assert_eq!([of(0, 5), of(0, 6)], [5..6, 5..7]);
        assert_eq!([of(1, 5), of(1, 6)], [0..6, 6..7]);
        let narrow = KeySpan::packed(&[vec![3, 4]], 2);
        assert_eq!([narrow.of(0, 2), narrow.of(0, 3)], [1..3, 3..4]);
        assert_eq!(narrow.of(0, 6), 5..7);
    }
}
