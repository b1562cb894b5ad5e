//! The order in which the samples of an epoch are seen.
//!
//! An order is cut into optimizer steps of equal size, and a step into batches. It is a pure
//! function of (seed, epoch), so that every worker, every device and a resumed run find the same.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::lengths::LengthIndex;

/// Which samples come together in an optimizer step, and in which order there.
///
/// Whatever the choice, a step is a random draw of the samples (of its kind), so the lengths of a
/// batch say nothing about when it comes; only inside a step samples stand by length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Any samples in any order.
    #[default]
    Random,
    /// The longest of a step first, so that a batch is padded little.
    Length,
    /// As `length`, and a step has samples with an image or samples without, as LLaVA's
    /// `group_by_modality_length` makes them. What fills no step of one kind comes at the end of
    /// the epoch, those with an image first.
    ModalityLength,
}

/// Makes the orders of a data set.
#[derive(Debug, Clone)]
pub struct Sampler {
    samples: usize,
    step: usize,
    seed: u64,
    grouping: Grouping,
    lengths: Option<LengthIndex>,
}

impl Sampler {
    /// Any order of `samples` samples.
    pub fn random(samples: usize, seed: u64) -> Self {
        Self {
            samples,
            step: samples.max(1),
            seed,
            grouping: Grouping::Random,
            lengths: None,
        }
    }

    /// Orders whose steps of `step` samples are grouped by `lengths`.
    pub fn grouped(grouping: Grouping, lengths: LengthIndex, step: usize, seed: u64) -> Self {
        Self {
            samples: lengths.len(),
            step: step.max(1),
            seed,
            grouping,
            lengths: Some(lengths),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The samples of an epoch in their order, each once.
    pub fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.samples).collect();
        // Two words of the seed are the run's, two the epoch's.
        let mut seed = [0u8; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[16..24].copy_from_slice(&(epoch as u64).to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(seed);
        order.shuffle(&mut rng);
        let Some(lengths) = &self.lengths else {
            return order;
        };
        // The sort is stable: samples of one length stay in random order.
        let longest_first = |step: &mut [usize]| {
            step.sort_by_key(|&index| std::cmp::Reverse(lengths.tokens(index)));
        };
        match self.grouping {
            Grouping::Random => {}
            Grouping::Length => order.chunks_mut(self.step).for_each(longest_first),
            Grouping::ModalityLength => {
                let (mut shown, mut text): (Vec<_>, Vec<_>) = order
                    .into_iter()
                    .partition(|&index| lengths.has_image(index));
                let rest_of =
                    |kind: &mut Vec<usize>| kind.split_off(kind.len() / self.step * self.step);
                let (mut shown_rest, mut text_rest) = (rest_of(&mut shown), rest_of(&mut text));
                let mut steps: Vec<&mut [usize]> = shown
                    .chunks_mut(self.step)
                    .chain(text.chunks_mut(self.step))
                    .collect();
                steps.shuffle(&mut rng);
                for step in &mut steps {
                    longest_first(step);
                }
                longest_first(&mut shown_rest);
                longest_first(&mut text_rest);
                order = steps.concat();
                order.append(&mut shown_rest);
                order.append(&mut text_rest);
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `shown` samples with an image, then `text` without; lengths from 1 to 97.
    fn lengths(shown: usize, text: usize) -> LengthIndex {
        LengthIndex::known((0..shown + text).map(|i| (1 + i * 31 % 97, i < shown)))
    }

    fn sorted(mut order: Vec<usize>) -> Vec<usize> {
        order.sort_unstable();
        order
    }

    #[test]
    fn every_order_holds_every_sample_once() {
        for grouping in [Grouping::Random, Grouping::Length, Grouping::ModalityLength] {
            for (shown, text) in [
                (0, 0),
                (0, 25),
                (25, 0),
                (1, 1),
                (37, 22),
                (40, 24),
                (3, 90),
            ] {
                for step in [1, 4, 8, 100] {
                    let sampler = Sampler::grouped(grouping, lengths(shown, text), step, 7);
                    assert_eq!(sampler.len(), shown + text);
                    let order = sampler.order(0);
                    assert_eq!(order, sampler.order(0));
                    let all: Vec<usize> = (0..shown + text).collect();
                    assert_eq!(sorted(order), all, "{grouping:?} {shown}+{text} by {step}");
                }
            }
        }
    }

    #[test]
    fn seed_and_epoch_make_the_order() {
        for grouping in [Grouping::Random, Grouping::Length, Grouping::ModalityLength] {
            let of =
                |seed, epoch| Sampler::grouped(grouping, lengths(50, 30), 8, seed).order(epoch);
            assert_ne!(of(1, 0), of(1, 1));
            assert_ne!(of(1, 0), of(2, 0));
            assert_ne!(of(1, 2), of(2, 1));
        }
        let plain = Sampler::random(80, 1);
        let grouped = Sampler::grouped(Grouping::Random, lengths(50, 30), 8, 1);
        assert_eq!(plain.order(3), grouped.order(3));
    }

    #[test]
    fn steps_are_of_one_kind_and_longest_first() {
        let (shown, text, size) = (203, 101, 16);
        let index = lengths(shown, text);
        let sampler = Sampler::grouped(Grouping::ModalityLength, index.clone(), size, 3);
        let order = sampler.order(0);
        let whole = shown / size + text / size;
        let mut kinds = Vec::new();
        for step in order.chunks(size).take(whole) {
            let kind = index.has_image(step[0]);
            assert!(step.iter().all(|&i| index.has_image(i) == kind));
            assert!(step.is_sorted_by_key(|&i| std::cmp::Reverse(index.tokens(i))));
            kinds.push(kind);
        }
        assert_eq!(kinds.iter().filter(|kind| **kind).count(), shown / size);
        assert!(!kinds.is_sorted() && !kinds.is_sorted_by(|a, b| a >= b));
        // The rest of both kinds: one boundary between them.
        let rest = &order[whole * size..];
        assert_eq!(rest.len(), shown % size + text % size);
        assert!(rest.is_sorted_by_key(|&i| !index.has_image(i)));
    }

    #[test]
    fn grouping_by_length_pads_less() {
        let (size, batch) = (32, 4);
        let index = lengths(640, 0);
        let padded = |grouping| -> usize {
            let order = Sampler::grouped(grouping, index.clone(), size, 5).order(0);
            let batches = order.chunks(batch);
            batches
                .map(|b| b.len() * b.iter().map(|&i| index.tokens(i)).max().unwrap_or(0))
                .sum()
        };
        let tokens: usize = (0..640).map(|i| index.tokens(i)).sum();
        let (random, by_length) = (padded(Grouping::Random), padded(Grouping::Length));
        assert!(
            by_length - tokens < (random - tokens) / 3,
            "{tokens} {by_length} {random}"
        );
        assert_eq!(padded(Grouping::ModalityLength), by_length);
    }
}
