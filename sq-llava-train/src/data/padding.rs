//! How much of a stage's batches is padding, with packing and without.

use crate::data::dataset::{Moment, StageData};
use crate::data::loader::Plan;
use crate::error::TrainError;

/// Tokens of some batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tokens {
    /// Those of samples.
    used: usize,
    /// Padding too.
    all: usize,
}

impl Tokens {
    /// Adds the batches of a step, whose samples have these lengths.
    fn add(&mut self, plan: &Plan, lengths: &[usize]) {
        self.used += lengths.iter().sum::<usize>();
        for batch in plan.batches(lengths) {
            let tokens = |row: &Vec<usize>| row.iter().map(|&place| lengths[place]).sum::<usize>();
            self.all += batch.len() * batch.iter().map(tokens).max().unwrap_or(0);
        }
    }

    fn padding(&self) -> f64 {
        (self.all - self.used) as f64 / self.all.max(1) as f64
    }
}

/// Parts of the tokens of the batches that are padding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PaddingShare {
    /// A row for each sample.
    pub padded: f64,
    /// Samples packed into rows.
    pub packed: f64,
    /// Whether every step of an epoch was looked at.
    pub exact: bool,
}

impl PaddingShare {
    /// Of the first epoch, from whole steps spread over it that have about `limit` samples. A row
    /// of packed samples has at most `row_tokens`.
    ///
    /// # Errors
    /// If a sample cannot be used.
    pub fn estimate(
        data: &StageData,
        plan: Plan,
        row_tokens: usize,
        limit: usize,
    ) -> Result<Self, TrainError> {
        let ways = [None, Some(row_tokens)].map(|row_tokens| Plan { row_tokens, ..plan });
        let steps = plan.steps_per_epoch();
        let looked_at = (limit / plan.samples_per_step).clamp(1, steps.max(1));
        let order = data.sampler.order(0);
        let at = Moment {
            epoch: 0,
            progress: 0.5,
            deltas: None,
        };
        let mut tokens = [Tokens::default(); 2];
        for number in 0..looked_at {
            let chosen = &order[plan.positions(number * steps / looked_at)];
            let mut lengths = Vec::with_capacity(chosen.len());
            for &draw in chosen.iter().take(limit) {
                lengths.extend(data.encode_whole(at, draw)?.map(|sample| sample.len()));
            }
            for (tokens, plan) in tokens.iter_mut().zip(&ways) {
                tokens.add(plan, &lengths);
            }
        }
        Ok(Self {
            padded: tokens[0].padding(),
            packed: tokens[1].padding(),
            exact: looked_at == steps && plan.samples_per_step <= limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_what_is_behind_the_samples() {
        let plan = |row_tokens| Plan {
            batch_size: 2,
            beside: 1,
            samples_per_step: 4,
            epochs: 1.0,
            samples: 4,
            row_tokens,
        };
        let of = |row_tokens| {
            let mut tokens = Tokens::default();
            tokens.add(&plan(row_tokens), &[10, 2, 3, 5]);
            tokens
        };
        // Two rows of 10, two of 5.
        assert_eq!(of(None), Tokens { used: 20, all: 30 });
        assert_eq!(of(Some(10)), Tokens { used: 20, all: 20 });
        // 10 with 2, and 5 with 3, in a batch each.
        assert_eq!(of(Some(12)), Tokens { used: 20, all: 20 });
        assert!((of(None).padding() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(Tokens::default().padding(), 0.0);
    }
}
