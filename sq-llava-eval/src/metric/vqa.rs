//! Soft accuracy, as VQAv2, VizWiz and TextVQA are scored.

use super::normalise;

/// Answers that must agree with one for the full score.
const AGREEING: f64 = 3.0;

/// Accuracy of an answer against those of people: for each of them, whether at least three (or
/// what share of three) of the others agree; averaged. Both sides are normalised.
pub fn soft_accuracy<T: AsRef<str>>(answer: &str, people: &[T]) -> f64 {
    let answer = normalise(answer);
    let same: Vec<bool> = people
        .iter()
        .map(|person| normalise(person.as_ref()) == answer)
        .collect();
    let agreeing = same.iter().filter(|same| **same).count();
    let scores = same.iter().map(|same| {
        let others = agreeing - usize::from(*same);
        (others as f64 / AGREEING).min(1.0)
    });
    if people.is_empty() {
        return 0.0;
    }
    scores.sum::<f64>() / people.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_person_of_ten_is_left_out_in_turn() {
        let people = |n: usize| -> Vec<&str> {
            (0..10)
                .map(|i| if i < n { "A dog." } else { "cat" })
                .collect()
        };
        for (n, expected) in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)] {
            let found = soft_accuracy("dog", &people(n));
            assert!((found - expected).abs() < 1e-12, "{n}: {found}");
        }
    }
}
