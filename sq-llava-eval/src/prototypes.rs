//! How well prototypes are regions of pictures: the clusters of tokens by their first prototype,
//! against masks (Manning, Raghavan and Schütze, Introduction to Information Retrieval, 16.3).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How the prototypes of a picture's tokens and its masks agree. Each number goes from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Part of the tokens that belong to the most frequent mask of their prototype: 1 if no
    /// prototype is of two masks.
    pub purity: f64,
    /// Part of the tokens that have the most frequent prototype of their mask: 1 if no mask has two
    /// prototypes.
    pub inverse_purity: f64,
    /// Mutual information of prototypes and masks, by the mean of both entropies; `None` where there is
    /// one mask and one prototype alone.
    pub nmi: Option<f64>,
}

/// Tokens by prototype and mask.
type Counts = BTreeMap<(u32, u32), usize>;

impl Agreement {
    /// Of a picture's tokens, each with its prototype and its mask; tokens of mask 0, none, are left
    /// out. `None` if no token is left.
    pub fn of(tokens: impl IntoIterator<Item = (u32, u32)>) -> Option<Self> {
        let mut counts = Counts::new();
        for token in tokens.into_iter().filter(|(_, mask)| *mask != 0) {
            *counts.entry(token).or_default() += 1;
        }
        let all: usize = counts.values().sum();
        if all == 0 {
            return None;
        }
        let by = |part: fn(&(u32, u32)) -> u32| {
            let mut groups: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
            for (token, count) in &counts {
                let (sum, most) = groups.entry(part(token)).or_default();
                *sum += count;
                *most = (*most).max(*count);
            }
            groups
        };
        let prototypes = by(|(prototype, _)| *prototype);
        let masks = by(|(_, mask)| *mask);
        let share = |count: usize| count as f64 / all as f64;
        let mostly = |groups: &BTreeMap<u32, (usize, usize)>| {
            share(groups.values().map(|(_, most)| most).sum())
        };
        let entropy = |groups: &BTreeMap<u32, (usize, usize)>| {
            let parts = groups.values().map(|(sum, _)| share(*sum));
            parts.map(|part| -part * part.ln()).sum::<f64>()
        };
        let information: f64 = counts
            .iter()
            .map(|((prototype, mask), count)| {
                let together = share(prototypes[prototype].0) * share(masks[mask].0);
                share(*count) * (share(*count) / together).ln()
            })
            .sum();
        let entropies = entropy(&prototypes) + entropy(&masks);
        Some(Self {
            purity: mostly(&prototypes),
            inverse_purity: mostly(&masks),
            nmi: (entropies > 0.0).then(|| (2.0 * information / entropies).clamp(0.0, 1.0)),
        })
    }

    /// The mean over pictures; `None` without any.
    pub fn mean(pictures: &[Self]) -> Option<Self> {
        let mean = |values: Vec<f64>| {
            let sum: f64 = values.iter().sum();
            (!values.is_empty()).then(|| sum / values.len() as f64)
        };
        Some(Self {
            purity: mean(pictures.iter().map(|one| one.purity).collect())?,
            inverse_purity: mean(pictures.iter().map(|one| one.inverse_purity).collect())?,
            nmi: mean(pictures.iter().filter_map(|one| one.nmi).collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seventeen things in three clusters, of the classes x, o and ◇: figure 16.4 of the book, whose
    /// purity is 0.71 and whose mutual information 0.36.
    #[test]
    fn the_example_of_the_book() {
        let counts = [
            (0, 1, 5),
            (0, 2, 1),
            (1, 1, 1),
            (1, 2, 4),
            (1, 3, 1),
            (2, 1, 2),
            (2, 3, 3),
        ];
        let tokens = counts
            .into_iter()
            .flat_map(|(prototype, mask, count)| vec![(prototype, mask); count]);
        // What has no mask does not count.
        let found = Agreement::of(tokens.chain([(0, 0), (7, 0)])).unwrap();
        assert!((found.purity - 12.0 / 17.0).abs() < 1e-12, "{found:?}");
        assert!((found.inverse_purity - 12.0 / 17.0).abs() < 1e-12);
        assert!((found.nmi.unwrap() - 0.36).abs() < 0.005, "{found:?}");
    }

    #[test]
    fn the_ends_of_the_scale() {
        assert!(Agreement::of([(3, 0)]).is_none() && Agreement::mean(&[]).is_none());
        let same = Agreement::of([(1, 1), (1, 1), (2, 5)]).unwrap();
        assert_eq!(
            (same.purity, same.inverse_purity, same.nmi),
            (1.0, 1.0, Some(1.0))
        );
        // A prototype for each token is pure, and no region.
        let each = Agreement::of([(1, 1), (2, 1), (3, 2), (4, 2)]).unwrap();
        assert_eq!((each.purity, each.inverse_purity), (1.0, 0.5));
        assert!((each.nmi.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        let one = Agreement::of([(1, 1), (1, 2)]).unwrap();
        assert_eq!(
            (one.purity, one.inverse_purity, one.nmi),
            (0.5, 1.0, Some(0.0))
        );
        let alone = Agreement::of([(1, 1), (1, 1)]).unwrap();
        assert_eq!(alone.nmi, None);
        let mean = Agreement::mean(&[same, one, alone]).unwrap();
        assert_eq!((mean.purity, mean.nmi), (2.5 / 3.0, Some(0.5)));
    }
}
