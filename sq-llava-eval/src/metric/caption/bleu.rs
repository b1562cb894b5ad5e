//! BLEU-1 to 4 of a corpus (Papineni et al., 2002), with the COCO toolkit's small constants and
//! the reference length nearest to the candidate's.

use std::collections::HashMap;

use super::Scored;
use super::ngrams::{MAX_N, count};

/// Keeps a caption without any match from being exactly zero.
const SMALL: f64 = 1e-9;

/// Keeps a division from failing.
const TINY: f64 = 1e-15;

/// BLEU of a corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct Bleu {
    /// BLEU-1 to 4 of all captions together.
    pub scores: [f64; MAX_N],
    /// BLEU-1 to 4 of each caption.
    pub each: Vec<[f64; MAX_N]>,
}

/// What one caption, or all, have in common with their references.
#[derive(Default)]
struct Overlap {
    length: usize,
    reference_length: usize,
    guessed: [usize; MAX_N],
    right: [usize; MAX_N],
}

/// BLEU of captions.
pub fn bleu(scored: &[Scored]) -> Bleu {
    let overlaps: Vec<Overlap> = scored.iter().map(Overlap::of).collect();
    let mut total = Overlap::default();
    for one in &overlaps {
        total.length += one.length;
        total.reference_length += one.reference_length;
        for n in 0..MAX_N {
            total.guessed[n] += one.guessed[n];
            total.right[n] += one.right[n];
        }
    }
    Bleu {
        scores: total.scores(),
        each: overlaps.iter().map(Overlap::scores).collect(),
    }
}

impl Overlap {
    fn of(scored: &Scored) -> Self {
        let (length, candidate) = count(&scored.candidate);
        let mut most: HashMap<Vec<&str>, usize> = HashMap::new();
        let mut nearest: Option<usize> = None;
        for reference in &scored.references {
            let (words, counts) = count(reference);
            for (gram, n) in counts {
                let known = most.entry(gram).or_default();
                *known = n.max(*known);
            }
            // The shorter one of two that are equally near.
            let distance = |words: usize| (words.abs_diff(length), words);
            if nearest.is_none_or(|best| distance(words) < distance(best)) {
                nearest = Some(words);
            }
        }
        let mut overlap = Self {
            length,
            reference_length: nearest.unwrap_or(0),
            ..Self::default()
        };
        for (n, guessed) in overlap.guessed.iter_mut().enumerate() {
            *guessed = length.saturating_sub(n);
        }
        for (gram, n) in candidate {
            let known = most.get(&gram).copied().unwrap_or(0);
            overlap.right[gram.len() - 1] += n.min(known);
        }
        overlap
    }

    /// Geometric means of the precisions, shortened captions punished.
    fn scores(&self) -> [f64; MAX_N] {
        let ratio = (self.length as f64 + TINY) / (self.reference_length as f64 + SMALL);
        let shortness = if ratio < 1.0 {
            (1.0 - 1.0 / ratio).exp()
        } else {
            1.0
        };
        let mut product = 1.0;
        let mut scores = [0.0; MAX_N];
        for (n, score) in scores.iter_mut().enumerate() {
            product *= (self.right[n] as f64 + TINY) / (self.guessed[n] as f64 + SMALL);
            *score = shortness * product.powf(1.0 / (n + 1) as f64);
        }
        scores
    }
}
