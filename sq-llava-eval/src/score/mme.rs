//! MME: accuracy and accuracy+ (both questions of a picture right), summed over subtasks.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Report, share};
use crate::EvalError;
use crate::benchmark::mme::{References, category_and_file};
use crate::benchmark::{Matched, ProblemKind};

/// Subtasks of perception.
pub const PERCEPTION: [&str; 10] = [
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
];

/// Subtasks of cognition.
pub const COGNITION: [&str; 4] = [
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
];

/// `yes` or `no` if it stands in the first four characters, in any case.
pub fn said(text: &str) -> Option<&'static str> {
    let start: String = text.to_lowercase().chars().take(4).collect();
    ["yes", "no"].into_iter().find(|word| start.contains(word))
}

/// Questions of one subtask.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subtask {
    /// For each picture, how many questions, and how many were answered rightly.
    pub pictures: BTreeMap<String, (usize, usize)>,
}

impl Subtask {
    /// Counts one answer.
    pub fn add(&mut self, picture: &str, right: bool) {
        let (count, hits) = self.pictures.entry(picture.to_owned()).or_default();
        *count += 1;
        *hits += usize::from(right);
    }

    /// Share of questions answered rightly.
    pub fn accuracy(&self) -> Option<f64> {
        let hits = self.pictures.values().map(|(_, hits)| hits).sum();
        share(hits, self.questions())
    }

    /// Share of pictures with both questions answered rightly.
    pub fn accuracy_plus(&self) -> Option<f64> {
        let both = self
            .pictures
            .values()
            .filter(|(count, hits)| *count == 2 && *hits == 2);
        share(both.count(), self.pictures.len())
    }

    /// Accuracy and accuracy+ in percent, summed: at most 200. `None` without a question.
    pub fn points(&self) -> Option<f64> {
        Some(100.0 * self.accuracy()? + 100.0 * self.accuracy_plus()?)
    }

    /// Questions.
    pub fn questions(&self) -> usize {
        self.pictures.values().map(|(count, _)| count).sum()
    }
}

pub(super) fn score(
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    let references = References::read(annotations)?;
    for (place, reason) in &references.malformed {
        report
            .problems
            .add(ProblemKind::BadReference, place.clone(), reason.clone());
    }
    let mut subtasks: BTreeMap<String, Subtask> = BTreeMap::new();
    for (question, answer) in &matched.pairs {
        let id = question.id.to_string();
        let (Some((category, file)), Some(truth)) =
            (category_and_file(&id), references.truth(question))
        else {
            report.problems.add(
                ProblemKind::BadReference,
                format!("question {id}"),
                "the release has no such question; it is not scored",
            );
            continue;
        };
        let said = answer.map(|answer| said(&answer.text));
        if said == Some(None) {
            let reason = "neither yes nor no; it counts as wrong";
            report
                .problems
                .add(ProblemKind::UnclearAnswer, format!("question {id}"), reason);
        }
        let right = said.flatten() == Some(truth.answer.to_lowercase().as_str());
        let subtask = subtasks.entry(category.to_owned()).or_default();
        subtask.add(file, right);
    }
    for (category, subtask) in &subtasks {
        for (file, (count, _)) in &subtask.pictures {
            if *count != 2 {
                report.problems.add(
                    ProblemKind::MissingAnswer,
                    format!("{category}/{file}"),
                    format!("{count} question in place of two; its accuracy+ counts as wrong"),
                );
            }
        }
    }
    for (name, group) in [
        ("perception", &PERCEPTION[..]),
        ("cognition", &COGNITION[..]),
    ] {
        let found: Vec<&Subtask> = group.iter().filter_map(|s| subtasks.get(*s)).collect();
        let points: Vec<f64> = found.iter().filter_map(|s| s.points()).collect();
        let sum = (!points.is_empty()).then(|| points.iter().sum());
        let count = found.iter().map(|subtask| subtask.questions()).sum();
        report.points(name, sum, count);
    }
    for (category, subtask) in &subtasks {
        report.points(category, subtask.points(), subtask.questions());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_accuracy_and_pairs() {
        let mut subtask = Subtask::default();
        for (picture, right) in [("a", true), ("a", true), ("b", true), ("b", false)] {
            subtask.add(picture, right);
        }
        assert_eq!(Subtask::default().points(), None);
        assert_eq!(subtask.points(), Some(75.0 + 50.0));
        // A picture with one question can never have both.
        subtask.add("c", true);
        assert!((subtask.points().unwrap() - (80.0 + 100.0 / 3.0)).abs() < 1e-9);
        assert_eq!(said("Yes, it is"), Some("yes"));
        assert_eq!(said("NO"), Some("no"));
        assert_eq!(said("It is not"), None);
        assert_eq!(said(""), None);
    }
}
