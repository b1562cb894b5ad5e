//! Soft accuracy of VQAv2, VizWiz and TextVQA.

use std::collections::HashMap;
use std::path::Path;

use super::Report;
use crate::EvalError;
use crate::benchmark::{Benchmark, Matched, ProblemKind, Question, text_vqa, vizwiz, vqav2};
use crate::reply::normalise;

/// People that answered each question.
const PEOPLE: usize = 10;

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

/// What ten people answered to a question; `None` where nothing is known of it.
type People = Box<dyn Fn(&Question) -> Option<Vec<String>>>;

/// VQAv2, VizWiz or TextVQA.
pub(super) fn score(
    benchmark: Benchmark,
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    let people: People = match benchmark {
        Benchmark::TextVqa => {
            let found = text_vqa::references(annotations, &mut report.problems)?;
            Box::new(move |question| {
                let asked = text_vqa::question_of(&question.prompt)?;
                found.get(&(question.id.to_string(), asked)).cloned()
            })
        }
        Benchmark::VizWiz => {
            let found: HashMap<_, _> = vizwiz::references(annotations, &mut report.problems)?;
            Box::new(move |question| found.get(vizwiz::image_of(question)?).cloned())
        }
        _ => {
            let found = vqav2::references(annotations, &mut report.problems)?;
            Box::new(move |question| found.get(&question.id.to_string()).cloned())
        }
    };
    let (mut sum, mut count) = (0.0, 0);
    for (question, answer) in &matched.pairs {
        let place = format!("question {}", question.id);
        match people(question) {
            Some(people) if people.len() == PEOPLE => {
                sum += answer.map_or(0.0, |answer| soft_accuracy(&answer.text, &people));
                count += 1;
            }
            Some(people) => {
                let reason = format!("{} answers of people in place of ten", people.len());
                report
                    .problems
                    .add(ProblemKind::BadReference, place, reason);
            }
            None => report.problems.add(
                ProblemKind::BadReference,
                place,
                match benchmark {
                    Benchmark::TextVqa => {
                        "no reference has this id, an image's, with this question; it is not scored"
                    }
                    _ => "the references lack it; it is not scored",
                },
            ),
        }
    }
    let accuracy = (count > 0).then(|| sum / f64::from(count));
    report.percent("accuracy", accuracy, count as usize);
    Ok(())
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
