//! The loss of each data source.

use serde::{Deserialize, Serialize};

use crate::step::loss::LossSums;

/// Sums of the loss over the tokens of each source that is followed, by its place among them. Those
/// at the end that have no token may be missing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceSums(Vec<LossSums>);

impl SourceSums {
    /// Adds the losses of tokens: whether each belongs to an asked question, and its source.
    pub(crate) fn add(&mut self, losses: &[f32], asked: &[bool], sources: &[Option<usize>]) {
        for ((&loss, &asked), source) in losses.iter().zip(asked).zip(sources) {
            if let Some(source) = *source {
                self.at(source).add(loss, asked);
            }
        }
    }

    /// Adds the sums of another part of the same step.
    pub fn merge(&mut self, other: &Self) {
        for (source, sums) in other.0.iter().enumerate() {
            self.at(source).merge(sums);
        }
    }

    /// The sums of a source.
    pub fn of(&self, source: usize) -> LossSums {
        self.0.get(source).copied().unwrap_or_default()
    }

    fn at(&mut self, source: usize) -> &mut LossSums {
        if self.0.len() <= source {
            self.0.resize(source + 1, LossSums::default());
        }
        &mut self.0[source]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_counts_for_its_own_source() {
        let mut one = SourceSums::default();
        one.add(
            &[0.5, 1.0, 2.0, 4.0, 8.0],
            &[true, false, true, false, false],
            &[Some(2), Some(2), None, Some(0), Some(2)],
        );
        let sums = |question, question_tokens, answer, answer_tokens| LossSums {
            question,
            answer,
            question_tokens,
            answer_tokens,
        };
        assert_eq!(one.of(0), sums(0.0, 0, 4.0, 1));
        assert_eq!(one.of(1), LossSums::default());
        assert_eq!(one.of(2), sums(0.5, 1, 9.0, 2));
        assert_eq!(one.of(7), LossSums::default());
        let mut all = SourceSums::default();
        all.add(&[16.0], &[true], &[Some(0)]);
        all.merge(&one);
        assert_eq!(all.of(0), sums(16.0, 1, 4.0, 1));
        assert_eq!(all.of(2), one.of(2));
    }
}
