//! Counts of word sequences.

use std::collections::BTreeMap;

/// Longest sequence that is counted.
pub(super) const MAX_N: usize = 4;

/// Sequences of one to four words with their counts, and the number of words. Their order is
/// fixed, so that sums over them have the same bits in every run.
pub(super) fn count(text: &str) -> (usize, BTreeMap<Vec<&str>, usize>) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut counts = BTreeMap::new();
    for n in 1..=MAX_N {
        for gram in words.windows(n) {
            *counts.entry(gram.to_vec()).or_default() += 1;
        }
    }
    (words.len(), counts)
}
