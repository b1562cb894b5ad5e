//! POPE: yes or no, and what follows from the four counts.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Report, share};
use crate::EvalError;
use crate::benchmark::{Answer, Matched, ProblemKind, Question, pope, vizwiz};

/// Whether an answer says yes: the first sentence has none of the words `No`, `not`, `no`.
pub fn says_yes(text: &str) -> bool {
    let sentence = text.split('.').next().unwrap_or_default().replace(',', "");
    !sentence
        .split(' ')
        .any(|word| matches!(word, "No" | "not" | "no"))
}

/// Answers beside labels; positive is yes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Yes where yes is right.
    pub true_positive: usize,
    /// Yes where no is right.
    pub false_positive: usize,
    /// No where no is right.
    pub true_negative: usize,
    /// No where yes is right.
    pub false_negative: usize,
}

impl Counts {
    /// Counts one answer.
    pub fn add(&mut self, said_yes: bool, is_yes: bool) {
        *match (said_yes, is_yes) {
            (true, true) => &mut self.true_positive,
            (true, false) => &mut self.false_positive,
            (false, false) => &mut self.true_negative,
            (false, true) => &mut self.false_negative,
        } += 1;
    }

    /// Answers in all.
    pub fn total(&self) -> usize {
        self.true_positive + self.false_positive + self.true_negative + self.false_negative
    }

    /// Share of right answers.
    pub fn accuracy(&self) -> Option<f64> {
        share(self.true_positive + self.true_negative, self.total())
    }

    /// Share of right ones among the answers yes.
    pub fn precision(&self) -> Option<f64> {
        share(self.true_positive, self.true_positive + self.false_positive)
    }

    /// Share of questions with yes that were answered so.
    pub fn recall(&self) -> Option<f64> {
        share(self.true_positive, self.true_positive + self.false_negative)
    }

    /// Harmonic mean of precision and recall; `None` if yes is neither said nor right anywhere.
    pub fn f1(&self) -> Option<f64> {
        let right = 2 * self.true_positive;
        share(right, right + self.false_positive + self.false_negative)
    }

    /// Share of the answers yes.
    pub fn yes_ratio(&self) -> Option<f64> {
        share(self.true_positive + self.false_positive, self.total())
    }
}

pub(super) fn score(
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    let labels = pope::labels(annotations, &mut report.problems)?;
    let mut by_category: BTreeMap<&str, Vec<(&Question, Option<&Answer>)>> = BTreeMap::new();
    for (question, answer) in &matched.pairs {
        match question.category.as_deref() {
            Some(category) if labels.contains_key(category) => by_category
                .entry(category)
                .or_default()
                .push((question, *answer)),
            _ => report.problems.add(
                ProblemKind::BadReference,
                format!("question {}", question.id),
                "no coco_pope_<category>.json is of its category; it is not scored",
            ),
        }
    }
    let mut rows = Vec::new();
    for (category, pairs) in &by_category {
        let labels = &labels[*category];
        if labels.len() != pairs.len() {
            return Err(EvalError::benchmark(
                annotations.join(format!("coco_pope_{category}.json")),
                format!(
                    "{} labels for {} questions, and they are matched by order; \
                     is this the POPE release of the question file?",
                    labels.len(),
                    pairs.len()
                ),
            ));
        }
        let mut counts = Counts::default();
        for ((question, answer), label) in pairs.iter().zip(labels) {
            let Some(label) = label else {
                continue;
            };
            if let (Some(image), Some(asked)) = (&label.image, vizwiz::image_of(question))
                && image != asked
            {
                report.problems.add(
                    ProblemKind::BadReference,
                    format!("question {}", question.id),
                    format!("shows {asked}, but its label is of {image}; it is not scored"),
                );
                continue;
            }
            let is_yes = label.is_yes;
            // A missing answer is wrong, whatever the label.
            let said_yes = answer.map_or(!is_yes, |answer| says_yes(&answer.text));
            counts.add(said_yes, is_yes);
        }
        rows.push((*category, counts));
    }
    let count: usize = rows.iter().map(|(_, counts)| counts.total()).sum();
    let f1: Vec<f64> = rows.iter().filter_map(|(_, counts)| counts.f1()).collect();
    let mean = (!f1.is_empty()).then(|| f1.iter().sum::<f64>() / f1.len() as f64);
    report.percent("mean F1", mean, count);
    for (category, counts) in rows {
        let total = counts.total();
        report.percent(format!("{category} accuracy"), counts.accuracy(), total);
        report.percent(format!("{category} precision"), counts.precision(), total);
        report.percent(format!("{category} recall"), counts.recall(), total);
        report.percent(format!("{category} F1"), counts.f1(), total);
        report.percent(format!("{category} yes ratio"), counts.yes_ratio(), total);
    }
    Ok(())
}
