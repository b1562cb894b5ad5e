//! What VQAv2, VizWiz and TextVQA share: answers of ten people, and the soft accuracy against them.

use std::collections::HashMap;
use std::hash::Hash;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::without_reference;
use crate::matched::Matched;
use crate::metric::soft_accuracy;
use crate::problem::{ProblemKind, Problems};
use crate::question::Question;
use crate::report::Report;

/// People that answered each question.
const PEOPLE: usize = 10;

/// An answer of a person, as VQAv2 and VizWiz have it.
#[derive(Debug, Deserialize)]
pub(super) struct PersonAnswer {
    pub(super) answer: String,
}

/// What people answered: a key and their answers from each annotation, as `read` gives them. An
/// annotation of another form is added to `problems`.
pub(super) fn people_answers<T: DeserializeOwned, K: Eq + Hash>(
    annotations: Vec<Value>,
    problems: &mut Problems,
    read: impl Fn(T) -> (K, Vec<String>),
) -> HashMap<K, Vec<String>> {
    let mut found = HashMap::new();
    for (index, annotation) in annotations.into_iter().enumerate() {
        match serde_json::from_value(annotation) {
            Ok(annotation) => {
                let (key, answers) = read(annotation);
                found.insert(key, answers);
            }
            Err(error) => problems.add(
                ProblemKind::BadReference,
                format!("annotation #{index}"),
                error.to_string(),
            ),
        }
    }
    found
}

/// Adds the accuracy to a report. `people` gives what ten people answered to a question; one of
/// which nothing is known is not scored, for the reason `unknown`.
pub(super) fn score<'p>(
    matched: &Matched<'_>,
    people: impl Fn(&Question) -> Option<&'p Vec<String>>,
    unknown: &str,
    report: &mut Report,
) {
    let (mut sum, mut count) = (0.0, 0);
    for (question, answer) in &matched.pairs {
        match people(question) {
            Some(people) if people.len() == PEOPLE => {
                sum += answer.map_or(0.0, |answer| soft_accuracy(&answer.text, people));
                count += 1;
            }
            Some(people) => {
                let reason = format!("{} answers of people in place of ten", people.len());
                without_reference(&question.id, &reason, &mut report.problems);
            }
            None => without_reference(&question.id, unknown, &mut report.problems),
        }
    }
    let accuracy = (count > 0).then(|| sum / f64::from(count));
    report.percent("accuracy", accuracy, count as usize);
}
