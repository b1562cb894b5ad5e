//! Means of scores that come in groups, with a confidence interval and a histogram.

use serde::Serialize;

/// Quantile of the normal distribution for an interval of 95 %.
const Z95: f64 = 1.959_963_984_540_054;

/// Collects scores. Scores of one group (questions about one picture, say) depend on each other:
/// the interval counts groups, not scores, as independent. Memory does not grow with the scores.
#[derive(Debug, Clone)]
pub struct ScoreCollector {
    low: f64,
    width: f64,
    bins: Vec<u64>,
    groups: u64,
    /// Σ n, Σ s, Σ s², and over groups Σ n_g², Σ n_g·s_g, Σ s_g².
    count: u64,
    sum: f64,
    squares: f64,
    group_counts: f64,
    group_products: f64,
    group_sums: f64,
    min: f64,
    max: f64,
}

/// What a [`ScoreCollector`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreSummary {
    /// Scores.
    pub scores: u64,
    /// Groups with a score.
    pub groups: u64,
    /// Mean of the scores.
    pub mean: f64,
    /// Their standard deviation (divisor n − 1); `None` for one score.
    pub deviation: Option<f64>,
    /// 95 % interval of the mean by the normal approximation, with groups as the units (the
    /// linearised variance of a ratio of sums); `None` for one group.
    pub interval_95: Option<[f64; 2]>,
    /// Lowest score.
    pub min: f64,
    /// Highest score.
    pub max: f64,
    /// Lower edge of the first bin of the histogram.
    pub low: f64,
    /// Width of a bin.
    pub width: f64,
    /// Scores in each bin; those beyond the ends are counted in the outermost.
    pub histogram: Vec<u64>,
}

impl ScoreCollector {
    /// For scores between `low` and `low + bins · width`.
    pub fn new(low: f64, width: f64, bins: usize) -> Self {
        Self {
            low,
            width,
            bins: vec![0; bins.max(1)],
            groups: 0,
            count: 0,
            sum: 0.0,
            squares: 0.0,
            group_counts: 0.0,
            group_products: 0.0,
            group_sums: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }

    /// Adds the scores of one group; an empty one counts for nothing.
    pub fn add(&mut self, scores: &[f64]) {
        if scores.is_empty() {
            return;
        }
        let last = self.bins.len() - 1;
        for &score in scores {
            // A negative quotient becomes 0 in the cast.
            let bin = ((score - self.low) / self.width).floor() as usize;
            self.bins[bin.min(last)] += 1;
            self.squares += score * score;
            self.min = self.min.min(score);
            self.max = self.max.max(score);
        }
        let (n, s) = (scores.len() as f64, scores.iter().sum::<f64>());
        self.groups += 1;
        self.count += scores.len() as u64;
        self.sum += s;
        self.group_counts += n * n;
        self.group_products += n * s;
        self.group_sums += s * s;
    }

    /// The summary; `None` if there was no score.
    pub fn summary(&self) -> Option<ScoreSummary> {
        if self.count == 0 {
            return None;
        }
        let (n, groups) = (self.count as f64, self.groups as f64);
        let mean = self.sum / n;
        let variance = (self.squares - n * mean * mean).max(0.0) / (n - 1.0);
        // Σ (s_g − mean · n_g)²
        let residuals =
            self.group_sums - 2.0 * mean * self.group_products + mean * mean * self.group_counts;
        let error = (groups / (groups - 1.0) * residuals.max(0.0)).sqrt() / n;
        Some(ScoreSummary {
            scores: self.count,
            groups: self.groups,
            mean,
            deviation: (self.count > 1).then(|| variance.sqrt()),
            interval_95: (self.groups > 1).then_some([mean - Z95 * error, mean + Z95 * error]),
            min: self.min,
            max: self.max,
            low: self.low,
            width: self.width,
            histogram: self.bins.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(groups: &[&[f64]]) -> ScoreSummary {
        let mut collector = ScoreCollector::new(0.0, 1.0, 4);
        for group in groups {
            collector.add(group);
        }
        collector.summary().unwrap()
    }

    #[test]
    fn groups_of_one_give_the_usual_interval() {
        let found = summary(&[&[1.0], &[2.0], &[3.0], &[], &[6.0]]);
        assert_eq!((found.scores, found.groups, found.mean), (4, 4, 3.0));
        // Deviation √(14/3), standard error of the mean √(14/12).
        assert!((found.deviation.unwrap() - (14.0f64 / 3.0).sqrt()).abs() < 1e-12);
        let half = found.interval_95.unwrap()[1] - 3.0;
        assert!(
            (half - Z95 * (14.0f64 / 12.0).sqrt()).abs() < 1e-12,
            "{half}"
        );
        assert_eq!((found.min, found.max), (1.0, 6.0));
        // 6 lies beyond the last bin.
        assert_eq!(found.histogram, [0, 1, 1, 2]);
    }

    #[test]
    fn equal_scores_in_a_group_are_one_observation() {
        // Two pictures, each score twice: the interval is that of two observations.
        let twice = summary(&[&[1.0, 1.0], &[3.0, 3.0]]);
        let once = summary(&[&[1.0], &[3.0]]);
        assert_eq!(twice.mean, once.mean);
        let width = |s: &ScoreSummary| s.interval_95.unwrap()[1] - s.mean;
        assert!((width(&twice) - width(&once)).abs() < 1e-12);
        assert!((width(&once) - Z95).abs() < 1e-12);
    }

    #[test]
    fn one_group_has_no_interval() {
        assert_eq!(summary(&[&[1.0, 2.0]]).interval_95, None);
        assert_eq!(summary(&[&[-5.0]]).histogram, [1, 0, 0, 0]);
        assert_eq!(ScoreCollector::new(0.0, 1.0, 1).summary(), None);
    }
}
