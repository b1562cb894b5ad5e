//! Keys that a token of a decoder sees, told by two numbers instead of a mask.

use std::ops::Range;

/// The keys up to each query, the last of which is as late as the last key, but for padding and
/// what lies before a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpan {
    /// Padding tokens at the left of each sample.
    pub padding: Vec<usize>,
    /// Keys that a query sees at most, its own included; at least 1.
    pub window: usize,
}

impl KeySpan {
    /// Keys that the token at a position sees.
    pub fn of(&self, sample: usize, position: usize) -> Range<usize> {
        let window = (position + 1).saturating_sub(self.window);
        // A padding token sees itself, so that its row of the softmax is not empty.
        let padding = self.padding[sample].min(position);
        window.max(padding)..position + 1
    }
}
