//! The order in which the samples of an epoch are seen.
//!
//! An order is cut into optimizer steps of equal size, and a step into batches. It is a pure
//! function of (seed, epoch), so that every worker, every device and a resumed run find the same.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::lengths::LengthIndex;
use crate::source::Share;

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

/// A sample as it comes in a pass over the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Draw {
    /// Index of the sample.
    pub index: usize,
    /// Which time it is in this pass, from 0.
    pub time: usize,
}

/// Makes the orders of a data set.
#[derive(Debug, Clone)]
pub struct Sampler {
    shares: Vec<Share>,
    step: usize,
    seed: u64,
    grouping: Grouping,
    lengths: Option<LengthIndex>,
}

impl Sampler {
    /// Any order of the samples of `shares`.
    pub fn random(shares: Vec<Share>, seed: u64) -> Self {
        Self {
            shares,
            step: 1,
            seed,
            grouping: Grouping::Random,
            lengths: None,
        }
    }

    /// Orders whose steps of `step` samples are grouped by `lengths`, which are those of `shares`.
    pub fn grouped(
        grouping: Grouping,
        shares: Vec<Share>,
        lengths: LengthIndex,
        step: usize,
        seed: u64,
    ) -> Self {
        Self {
            shares,
            step: step.max(1),
            seed,
            grouping,
            lengths: Some(lengths),
        }
    }

    /// Number of samples in a pass.
    pub fn len(&self) -> usize {
        self.shares.iter().map(Share::in_a_pass).sum()
    }

    /// Whether a pass has no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A source of random numbers for an epoch and one purpose.
    fn rng(&self, epoch: usize, purpose: u64) -> ChaCha8Rng {
        let mut seed = [0u8; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&purpose.to_le_bytes());
        seed[16..24].copy_from_slice(&(epoch as u64).to_le_bytes());
        ChaCha8Rng::from_seed(seed)
    }

    /// The samples of an epoch, in the order of the sources: each as often as its source's `repeat`
    /// says. Which ones of a source make up a fraction, seed and epoch say.
    fn draws(&self, epoch: usize) -> Vec<Draw> {
        let mut draws = Vec::with_capacity(self.len());
        let mut start = 0;
        for (number, share) in self.shares.iter().enumerate() {
            let all = start..start + share.samples;
            for time in 0..share.whole() {
                draws.extend(all.clone().map(|index| Draw { index, time }));
            }
            let some = share.fraction();
            if some > 0 {
                let mut order: Vec<usize> = all.collect();
                let mut rng = self.rng(epoch, number as u64 + 1);
                let (chosen, _) = order.partial_shuffle(&mut rng, some);
                chosen.sort_unstable();
                let time = share.whole();
                draws.extend(chosen.iter().map(|&index| Draw { index, time }));
            }
            start += share.samples;
        }
        draws
    }

    /// The samples of an epoch by their indices: as they stand in the files, which is read fastest.
    pub fn in_file_order(&self, epoch: usize) -> Vec<Draw> {
        let mut draws = self.draws(epoch);
        draws.sort_unstable();
        draws
    }

    /// The samples of an epoch in their order.
    pub fn order(&self, epoch: usize) -> Vec<Draw> {
        let mut order = self.draws(epoch);
        let mut rng = self.rng(epoch, 0);
        order.shuffle(&mut rng);
        let Some(lengths) = &self.lengths else {
            return order;
        };
        // The sort is stable: samples of one length stay in random order.
        let longest_first = |step: &mut [Draw]| {
            step.sort_by_key(|draw| std::cmp::Reverse(lengths.tokens(draw.index)));
        };
        match self.grouping {
            Grouping::Random => {}
            Grouping::Length => order.chunks_mut(self.step).for_each(longest_first),
            Grouping::ModalityLength => {
                let (mut shown, mut text): (Vec<_>, Vec<_>) = order
                    .into_iter()
                    .partition(|draw| lengths.has_image(draw.index));
                let rest_of =
                    |kind: &mut Vec<Draw>| kind.split_off(kind.len() / self.step * self.step);
                let (mut shown_rest, mut text_rest) = (rest_of(&mut shown), rest_of(&mut text));
                let mut steps: Vec<&mut [Draw]> = shown
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

    fn indices(order: &[Draw]) -> Vec<usize> {
        order.iter().map(|draw| draw.index).collect()
    }

    fn sorted(order: &[Draw]) -> Vec<usize> {
        let mut order = indices(order);
        order.sort_unstable();
        order
    }

    /// Of one source, each once.
    fn grouped(grouping: Grouping, lengths: LengthIndex, step: usize, seed: u64) -> Sampler {
        let shares = vec![Share::once(lengths.len())];
        Sampler::grouped(grouping, shares, lengths, step, seed)
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
                    let sampler = grouped(grouping, lengths(shown, text), step, 7);
                    assert_eq!(sampler.len(), shown + text);
                    let order = sampler.order(0);
                    assert_eq!(order, sampler.order(0));
                    let all: Vec<usize> = (0..shown + text).collect();
                    assert_eq!(sorted(&order), all, "{grouping:?} {shown}+{text} by {step}");
                }
            }
        }
    }

    #[test]
    fn seed_and_epoch_make_the_order() {
        for grouping in [Grouping::Random, Grouping::Length, Grouping::ModalityLength] {
            let of = |seed, epoch| grouped(grouping, lengths(50, 30), 8, seed).order(epoch);
            assert_ne!(of(1, 0), of(1, 1));
            assert_ne!(of(1, 0), of(2, 0));
            assert_ne!(of(1, 2), of(2, 1));
        }
        let plain = Sampler::random(vec![Share::once(80)], 1);
        let grouped = grouped(Grouping::Random, lengths(50, 30), 8, 1);
        assert_eq!(plain.order(3), grouped.order(3));
    }

    #[test]
    fn steps_are_of_one_kind_and_longest_first() {
        let (shown, text, size) = (203, 101, 16);
        let index = lengths(shown, text);
        let sampler = grouped(Grouping::ModalityLength, index.clone(), size, 3);
        let order = indices(&sampler.order(0));
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
            let order = indices(&grouped(grouping, index.clone(), size, 5).order(0));
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

    #[test]
    fn sources_come_as_often_as_they_are_to() {
        let share = |samples, repeat| Share { samples, repeat };
        let shares = vec![
            share(10, 1.0),
            share(20, 2.25),
            share(40, 0.3),
            share(3, 0.0),
        ];
        let sampler = Sampler::random(shares, 5);
        assert_eq!(sampler.len(), 10 + 45 + 12);
        let mut fractions = Vec::new();
        for epoch in 0..2 {
            let order = sampler.order(epoch);
            assert_eq!(order.len(), sampler.len());
            let mut unique = order.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), order.len(), "a draw comes once");
            let of = |range: std::ops::Range<usize>, time| -> Vec<usize> {
                let found = unique
                    .iter()
                    .filter(|d| range.contains(&d.index) && d.time == time);
                found.map(|draw| draw.index).collect()
            };
            assert_eq!(of(0..10, 0).len(), 10);
            assert_eq!(
                [0, 1, 2, 3].map(|time| of(10..30, time).len()),
                [20, 20, 5, 0]
            );
            assert_eq!(of(30..70, 0).len(), 12);
            assert_eq!(of(70..73, 0).len(), 0);
            fractions.push((of(10..30, 2), of(30..70, 0)));
        }
        assert!(fractions[0].0 != fractions[1].0 && fractions[0].1 != fractions[1].1);
        assert_eq!(sampler.order(1), sampler.order(1));
    }
}
