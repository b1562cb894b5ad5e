//! POPE: yes or no, and what follows from the four counts of each category.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::{Task, read_jsonl, without_reference};
use crate::EvalError;
use crate::answer::Answer;
use crate::jsonl;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::{ProblemKind, Problems};
use crate::question::{Question, QuestionId, QuestionOptions, Questions, SHORT_ANSWER};
use crate::report::{Report, share};

/// POPE on COCO.
#[derive(Debug)]
pub struct Pope;

impl Task for Pope {
    fn name(&self) -> &'static str {
        "pope"
    }

    fn title(&self) -> &'static str {
        "POPE"
    }

    fn max_new_tokens(&self) -> usize {
        128
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["pope"],
            questions: &["llava_pope_test.jsonl", "llava_pope*.jsonl", "coco"],
            images: &["val2014", "images"],
            annotations: &["coco"],
        })
    }

    fn read(&self, files: &Files, _options: &QuestionOptions) -> Result<Questions, EvalError> {
        match files.questions.is_dir() {
            true => own_questions(files),
            false => read_jsonl(files),
        }
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        let labels = read_labels(references, &mut report.problems)?;
        let mut by_category: BTreeMap<&str, Vec<(&Question, Option<&Answer>)>> = BTreeMap::new();
        for (question, answer) in &matched.pairs {
            match question.category.as_deref() {
                Some(category) if labels.contains_key(category) => by_category
                    .entry(category)
                    .or_default()
                    .push((question, *answer)),
                _ => without_reference(
                    &question.id,
                    "no coco_pope_<category>.json is of its category; it is not scored",
                    &mut report.problems,
                ),
            }
        }
        let mut rows = Vec::new();
        for (category, pairs) in &by_category {
            let labels = &labels[*category];
            if labels.len() != pairs.len() {
                return Err(EvalError::benchmark(
                    references.join(format!("coco_pope_{category}.json")),
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
                if let (Some(image), Some(asked)) = (&label.image, question.image_file())
                    && image != asked
                {
                    let reason =
                        format!("shows {asked}, but its label is of {image}; it is not scored");
                    without_reference(&question.id, &reason, &mut report.problems);
                    continue;
                }
                let is_yes = label.is_yes;
                // A missing answer is wrong for either label.
                let said_yes = answer.map_or(!is_yes, |answer| says_yes(&answer.text));
                counts.add(said_yes, is_yes);
            }
            rows.push((*category, counts));
        }
        add_rows(rows, report);
        Ok(())
    }
}

/// Adds the numbers of each category, their mean F1 first.
fn add_rows(rows: Vec<(&str, Counts)>, report: &mut Report) {
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
}

/// Whether an answer says yes: the first sentence has none of the words `No`, `not`, `no`.
pub fn says_yes(text: &str) -> bool {
    let sentence = text.split('.').next().unwrap_or_default().replace(',', "");
    !sentence
        .split(' ')
        .any(|word| matches!(word, "No" | "not" | "no"))
}

/// Answers compared with labels; positive is yes.
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

/// A line of `coco_pope_<category>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Label {
    /// Id within its category.
    question_id: QuestionId,
    /// Picture.
    #[serde(default)]
    image: Option<String>,
    /// Question.
    #[serde(default)]
    text: Option<String>,
    /// Whether yes is right: `yes` or `no` in the file, in any case.
    #[serde(rename = "label", deserialize_with = "yes_or_no")]
    is_yes: bool,
}

fn yes_or_no<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let label = String::deserialize(deserializer)?;
    match label.trim().to_lowercase().as_str() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(D::Error::custom(format!(
            "label {label:?} is neither yes nor no"
        ))),
    }
}

/// The labels of each category, in order: `random`, `popular` and `adversarial`. A line that is
/// no label keeps its place as `None`, because answers are matched by order;
/// it is added to `problems`.
fn read_labels(
    folder: &Path,
    problems: &mut Problems,
) -> Result<BTreeMap<String, Vec<Option<Label>>>, EvalError> {
    let io = |source| EvalError::io(folder, source);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let category = name
            .strip_prefix("coco_pope_")
            .and_then(|rest| rest.strip_suffix(".json"));
        let Some(category) = category else {
            continue;
        };
        let mut list = Vec::new();
        jsonl::for_each(&path, |number, bytes| {
            let label = serde_json::from_slice::<Label>(bytes);
            if let Err(error) = &label {
                let place = jsonl::place(&path, number);
                problems.add(ProblemKind::BadReference, place, error.to_string());
            }
            list.push(label.ok());
            Ok(())
        })?;
        found.insert(category.to_owned(), list);
    }
    if found.is_empty() {
        return Err(EvalError::benchmark(
            folder,
            "holds no coco_pope_<category>.json",
        ));
    }
    Ok(found)
}

/// Questions from the labels themselves; ids are `<category>/<id>`.
fn own_questions(files: &Files) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    let mut bad = Problems::default();
    let mut position = 0;
    for (category, list) in read_labels(&files.questions, &mut bad)? {
        for label in list {
            let asked = label.and_then(|label| {
                let prompt = format!("{}\n{SHORT_ANSWER}", label.text?);
                let id = format!("{category}/{}", label.question_id);
                Some(Question {
                    category: Some(category.clone()),
                    ..Question::about(position, id.as_str().into(), label.image?, prompt)
                })
            });
            match asked {
                Some(question) => questions.push(question),
                None => questions.problems.add(
                    ProblemKind::MalformedQuestion,
                    format!("coco_pope_{category}.json question #{position}"),
                    "it lacks a label, an image or a text",
                ),
            }
            position += 1;
        }
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::task::fixture::Fixture;

    fn labelled(labels: &[&str]) -> Fixture {
        let lines: Vec<Value> = labels
            .iter()
            .enumerate()
            .map(|(id, label)| json!({"question_id": id, "image": "a.jpg", "label": label}))
            .collect();
        let questions: Vec<Value> = (0..labels.len())
            .map(|id| json!({"question_id": id, "image": "a.jpg", "text": "Is it?", "category": "random"}))
            .collect();
        Fixture::new(&Pope, "q.jsonl")
            .lines("q.jsonl", &questions)
            .lines("coco/coco_pope_random.json", &lines)
            .annotations("coco")
    }

    #[test]
    fn pope_by_category_and_order() {
        let label = |id: i64, image: &str, label: &str| json!({"question_id": id, "image": image, "text": "Is there a dog?", "label": label});
        let fixture = Fixture::new(&Pope, "q.jsonl")
            .lines(
                "q.jsonl",
                &[
                    json!({"question_id": 1, "image": "a.jpg", "text": "Is there?\nA.", "category": "random"}),
                    json!({"question_id": 2, "image": "b.jpg", "text": "Is there?\nA.", "category": "random"}),
                    json!({"question_id": 3, "image": "a.jpg", "text": "Is there?\nA.", "category": "popular"}),
                ],
            )
            .lines("coco/coco_pope_random.json", &[label(1, "a.jpg", "yes"), label(2, "b.jpg", "no")])
            .lines("coco/coco_pope_popular.json", &[label(1, "a.jpg", "yes")])
            .annotations("coco");
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |q| (q.position < 2).then(|| "Yes".into()));
        let report = fixture.score(&questions, &given);
        assert_eq!(report.value("random accuracy"), Some(50.0));
        assert!((report.value("random F1").unwrap() - 200.0 / 3.0).abs() < 1e-9);
        // The missing answer is wrong, and does not move the others.
        assert_eq!(report.value("popular accuracy"), Some(0.0));
        assert!((report.value("mean F1").unwrap() - 100.0 / 3.0).abs() < 1e-9);
        // A label of another picture belongs to another release.
        let fixture = fixture.lines(
            "coco/coco_pope_random.json",
            &[label(1, "a.jpg", "yes"), label(2, "z.jpg", "no")],
        );
        let report = fixture.score(&questions, &given);
        assert_eq!(report.problems.count(ProblemKind::BadReference), 1);
        let fixture = fixture.lines("coco/coco_pope_random.json", &[label(1, "a.jpg", "yes")]);
        let error = fixture.refused(&questions, &given);
        assert!(error.contains("1 labels for 2 questions"), "{error}");
        // The labels are questions themselves.
        let own = Fixture::new(&Pope, "coco")
            .lines(
                "coco/coco_pope_random.json",
                &[label(1, "a.jpg", "yes"), json!({"label": "yes"})],
            )
            .annotations("coco");
        let questions = own.questions();
        assert_eq!(questions.list[0].id, "random/1".into());
        assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
    }

    #[test]
    fn fault_20_pope_takes_labels_in_any_case() {
        let fixture = labelled(&["Yes", "NO", " yes ", "no"]);
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |q| {
            Some(["Yes", "Yes", "Yes", "No"][q.position].into())
        });
        let report = fixture.score(&questions, &given);
        assert_eq!(report.problems.total(), 0);
        assert_eq!(report.value("random accuracy"), Some(75.0));
        assert_eq!(report.metrics[0].count, 4);
    }

    #[test]
    fn fault_20_a_share_of_nothing_is_no_number() {
        // Without an answer yes there is no precision; recall and F1 are 0.
        let fixture = labelled(&["yes", "no"]);
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |_| Some("No.".into()));
        let report = fixture.score(&questions, &given);
        assert_eq!(report.value("random precision"), None);
        assert_eq!(report.value("random recall"), Some(0.0));
        assert_eq!(report.value("mean F1"), Some(0.0));
        let json = serde_json::to_value(&report).unwrap();
        let metrics = json["metrics"].as_array().unwrap();
        assert!(metrics.iter().all(|m| m["count"] != 0), "{json}");
        let fixture = labelled(&["maybe", ""]);
        let error = fixture.refused(&fixture.questions(), &given);
        assert!(error.contains("neither yes nor no"), "{error}");
    }
}
