//! Choosing the next token from logits: greedy, temperature, top-k, top-p, repetition penalty.
//!
//! Order and meaning as in transformers' `generation/logits_process.py`.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 chooses the likeliest token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Only the k likeliest tokens; `None` or 0 is all of them.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities first sum to p.
    pub top_p: Option<f32>,
    /// Divides (multiplies, if negative) the logits of tokens that occurred; 1 is none.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }

    /// What the paper's demonstration asks questions with.
    pub fn asking(seed: u64) -> Self {
        Self {
            temperature: 1.2,
            top_k: Some(300),
            top_p: Some(0.95),
            repetition_penalty: 1.0,
            seed,
        }
    }

    /// Whether the likeliest token is chosen, whatever came before.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// # Errors
    /// If a value is impossible.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |what: &str| Err(ModelError::Argument(what.into()));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("the temperature must be 0 or more");
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return wrong("top-p must lie in (0, 1]");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return wrong("the repetition penalty must be above 0");
        }
        Ok(())
    }
}

/// Draws the tokens of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for the `stream`-th sequence: each has draws of its own, whatever else runs in
    /// the batch.
    pub fn new(sampling: Sampling, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(stream);
        Self { sampling, rng }
    }

    /// The next token; `None` if every logit is −∞, as when all tokens are suppressed. `seen` are
    /// the text tokens so far. No logit may be NaN or +∞.
    pub fn next(&mut self, logits: &[f32], seen: &[i64]) -> Option<i64> {
        let sampling = &self.sampling;
        if sampling.is_greedy() {
            return argmax(logits);
        }
        // In f64 a penalty or temperature at f32's limits still leaves the logits apart.
        let mut scores: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        penalise(&mut scores, seen, sampling.repetition_penalty.into());
        if sampling.temperature == 0.0 {
            return argmax(&scores);
        }
        self.draw(&scores)
    }

    fn draw(&mut self, scores: &[f64]) -> Option<i64> {
        let mut candidates: Vec<(usize, f64)> = scores
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, score)| *score > f64::NEG_INFINITY)
            .collect();
        let likeliest =
            |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self
            .sampling
            .top_k
            .filter(|&k| k > 0 && k < candidates.len())
        {
            candidates.select_nth_unstable_by(k - 1, likeliest);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(likeliest);
        let &(first, max) = candidates.first()?;
        let temperature = f64::from(self.sampling.temperature);
        let weights: Vec<f64> = candidates
            .iter()
            .map(|(_, score)| ((score - max) / temperature).exp())
            .collect();
        let mut kept = weights.len();
        let mut total: f64 = weights.iter().sum();
        if let Some(p) = self.sampling.top_p {
            let limit = f64::from(p) * total;
            let mut sum = 0.0;
            for (index, weight) in weights.iter().enumerate() {
                // A token stays while those before it have not reached p: the first always does.
                if index > 0 && sum >= limit {
                    kept = index;
                    break;
                }
                sum += weight;
            }
            total = weights[..kept].iter().sum();
        }
        let mut point = self.rng.random::<f64>() * total;
        for (weight, (id, _)) in weights[..kept].iter().zip(&candidates) {
            point -= weight;
            if point < 0.0 {
                return Some(*id as i64);
            }
        }
        // Rounding left the point at the very end.
        let last = candidates.get(kept.wrapping_sub(1));
        Some(last.map_or(first, |candidate| candidate.0) as i64)
    }
}

/// Makes tokens that occurred less likely; each once, however often it did.
fn penalise(scores: &mut [f64], seen: &[i64], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut tokens = seen.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for id in tokens {
        let Some(score) = usize::try_from(id).ok().and_then(|id| scores.get_mut(id)) else {
            continue;
        };
        *score = if *score > 0.0 {
            *score / penalty
        } else {
            *score * penalty
        };
    }
}

/// Index of the largest score, the first of equals; `None` if all are −∞.
fn argmax<T: PartialOrd + Copy + From<f32>>(scores: &[T]) -> Option<i64> {
    let mut best = (None, T::from(f32::NEG_INFINITY));
    for (id, &score) in scores.iter().enumerate() {
        if score > best.1 {
            best = (Some(id as i64), score);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32) -> Sampling {
        Sampling {
            temperature,
            ..Sampling::greedy()
        }
    }

    fn frequencies(sampling: &Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling.clone(), 0);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            let id = sampler.next(logits, &[]).unwrap();
            counts[id as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (found, logit) in frequencies(&sampling(1.0), &logits).iter().zip(logits) {
            assert!((found - f64::from(logit).exp() / total).abs() < 0.02);
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_rest_out() {
        let logits = [3.0, 1.0, 2.0, 0.0];
        let top_k = Sampling {
            top_k: Some(2),
            ..sampling(1.0)
        };
        let found = frequencies(&top_k, &logits);
        assert!(found[1] == 0.0 && found[3] == 0.0 && found[2] > 0.2);
        // p(0) = 0.64, p(2) = 0.24: 0.7 needs both, 0.6 the first alone.
        for (p, second) in [(0.7, true), (0.6, false)] {
            let top_p = Sampling {
                top_p: Some(p),
                ..sampling(1.0)
            };
            let found = frequencies(&top_p, &logits);
            assert_eq!(found[2] > 0.0, second, "{p}");
            assert_eq!(found[1] + found[3], 0.0);
        }
    }

    #[test]
    fn the_penalty_turns_the_choice_away_from_what_occurred() {
        let penalty = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::greedy()
        };
        let mut sampler = Sampler::new(penalty, 0);
        assert_eq!(sampler.next(&[3.0, 2.0, -1.0], &[]), Some(0));
        assert_eq!(sampler.next(&[3.0, 2.0, -1.0], &[0]), Some(1));
        assert_eq!(sampler.next(&[-1.0, -1.5, -9.0], &[0, 0]), Some(1));
    }

    #[test]
    fn fault_17_extreme_settings_keep_the_order_of_the_logits() {
        let logits = [-3.0, 4.0, 25.0, 11.0];
        let rare = f32::from_bits(1);
        for temperature in [1e-30, 1e-38, rare] {
            let cold = sampling(temperature);
            for top in [None, Some(2), Some(300)] {
                let cold = Sampling {
                    top_k: top,
                    top_p: Some(rare),
                    ..cold.clone()
                };
                let mut sampler = Sampler::new(cold, 0);
                assert_eq!(sampler.next(&logits, &[]), Some(2), "{temperature}");
            }
            let mut sampler = Sampler::new(cold, 0);
            assert_eq!(sampler.next(&logits, &[]), Some(2), "{temperature}");
            let negative = [-30.0, -20.0, -25.0];
            assert_eq!(sampler.next(&negative, &[]), Some(1), "{temperature}");
        }
        // At the other end all are equally likely.
        for found in frequencies(&sampling(f32::MAX), &logits) {
            assert!((found - 0.25).abs() < 0.02, "{found}");
        }
        // Penalties beyond which an f32 has no number.
        for (penalty, expected) in [(f32::MAX, 3), (1e-38, 2), (rare, 2)] {
            for temperature in [0.0, 1.0] {
                let penalty = Sampling {
                    repetition_penalty: penalty,
                    ..sampling(temperature)
                };
                let mut sampler = Sampler::new(penalty, 0);
                assert_eq!(sampler.next(&logits, &[2, 2]), Some(expected));
            }
        }
    }

    #[test]
    fn fault_17_nothing_is_chosen_where_every_token_is_suppressed() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(sampling(temperature), 0);
            assert_eq!(sampler.next(&[f32::NEG_INFINITY; 3], &[]), None);
        }
    }

    #[test]
    fn seeds_repeat_and_streams_differ() {
        let logits = vec![0.0; 1000];
        let draw = |seed, stream| {
            let sampling = Sampling {
                seed,
                ..sampling(1.0)
            };
            let mut sampler = Sampler::new(sampling, stream);
            (0..8)
                .map(|_| sampler.next(&logits, &[]))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }
}
