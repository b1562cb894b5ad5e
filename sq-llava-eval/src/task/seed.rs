//! SEED-Bench: the exact letter, by type of question, and the upload.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{NOT_IN_REFERENCES, Task, without_reference};
use crate::EvalError;
use crate::jsonl::read_json;
use crate::layout::Layout;
use crate::matched::Matched;
use crate::problem::{ProblemKind, Problems};
use crate::question::QuestionId;
use crate::report::{Report, share};
use crate::submission::SubmissionFile;

/// SEED-Bench.
#[derive(Debug)]
pub struct Seed;

impl Task for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn title(&self) -> &'static str {
        "SEED-Bench"
    }

    fn max_new_tokens(&self) -> usize {
        128
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["seed_bench", "seed"],
            questions: &["llava-seed-bench.jsonl", "*seed-bench.jsonl"],
            images: &[""],
            annotations: &["SEED-Bench.json"],
        })
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        let references = References::read(references, &mut report.problems)?;
        score(&references, matched, report);
        Ok(())
    }

    /// JSONL `{question_id, prediction}`.
    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        let mut bytes = Vec::new();
        for (question, answer) in matched.answered() {
            let row = json!({"question_id": question.id, "prediction": answer.text});
            bytes.extend(row.to_string().bytes());
            bytes.push(b'\n');
        }
        Ok(SubmissionFile::one("seed_upload.jsonl", bytes))
    }
}

/// A question of `SEED-Bench.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Item {
    /// Its id.
    question_id: QuestionId,
    /// The right letter.
    answer: String,
    /// `image` or `video`.
    data_type: String,
    /// Number of its type.
    question_type_id: i64,
}

/// `SEED-Bench.json`.
#[derive(Debug, Clone, Default)]
struct References {
    /// The questions, in order.
    items: Vec<Item>,
    /// Name and number of each type.
    types: Vec<(String, i64)>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    question_type: Map<String, Value>,
    questions: Vec<Value>,
}

impl References {
    /// Reads the file; single bad entries are added to `problems`.
    fn read(path: &Path, problems: &mut Problems) -> Result<Self, EvalError> {
        let raw: Raw = read_json(path)?;
        let mut found = Self {
            types: raw
                .question_type
                .into_iter()
                .filter_map(|(name, number)| Some((name, number.as_i64()?)))
                .collect(),
            ..Self::default()
        };
        for (index, value) in raw.questions.into_iter().enumerate() {
            match serde_json::from_value::<Item>(value) {
                Ok(item) => found.items.push(item),
                Err(error) => problems.add(
                    ProblemKind::BadReference,
                    format!("annotation #{index}"),
                    error.to_string(),
                ),
            }
        }
        Ok(found)
    }
}

fn score(references: &References, matched: &Matched<'_>, report: &mut Report) {
    let asked: BTreeMap<String, Option<&str>> = matched
        .pairs
        .iter()
        .map(|(question, answer)| {
            (
                question.id.to_string(),
                answer.map(|answer| answer.text.as_str()),
            )
        })
        .collect();
    let known: HashSet<String> = references
        .items
        .iter()
        .map(|item| item.question_id.to_string())
        .collect();
    for id in asked.keys().filter(|id| !known.contains(*id)) {
        without_reference(id, NOT_IN_REFERENCES, &mut report.problems);
    }
    if !known.iter().any(|id| asked.contains_key(id)) {
        return;
    }
    let names: HashMap<i64, &str> = references
        .types
        .iter()
        .map(|(name, number)| (*number, name.as_str()))
        .collect();
    // (right, count), by media and by type.
    let mut total = (0, 0);
    let mut by_media: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut by_type: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    for item in &references.items {
        let id = item.question_id.to_string();
        let answer = asked.get(&id).copied();
        if answer.is_none() {
            let reason = "the question file lacks this question; it counts as wrong";
            report
                .problems
                .add(ProblemKind::MissingAnswer, format!("question {id}"), reason);
        }
        let right = answer.flatten() == Some(item.answer.as_str());
        for (hits, count) in [
            &mut total,
            by_media.entry(&item.data_type).or_default(),
            by_type.entry(item.question_type_id).or_default(),
        ] {
            *hits += usize::from(right);
            *count += 1;
        }
    }
    report.percent("total accuracy", share(total.0, total.1), total.1);
    for (media, (right, count)) in by_media {
        report.percent(format!("{media} accuracy"), share(right, count), count);
    }
    for (number, (right, count)) in by_type {
        let name = names.get(&number).copied();
        let name = name.map_or_else(|| format!("type {number}"), str::to_owned);
        report.percent(name, share(right, count), count);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::{Fixture, text_of};

    #[test]
    fn seed_by_type() {
        let fixture = Fixture::new(&Seed, "q.jsonl")
            .lines(
                "q.jsonl",
                &[
                    json!({"question_id": 11, "image": "a.jpg", "text": "Q?"}),
                    json!({"question_id": 12, "image": "a.jpg", "text": "Q?"}),
                    json!({"question_id": 99, "image": "a.jpg", "text": "Q?"}),
                ],
            )
            .json(
                "SEED-Bench.json",
                &json!({"question_type": {"Scene Understanding": 1, "Action": 10}, "questions": [
                    {"question_id": "11", "answer": "A", "data_type": "image", "question_type_id": 1},
                    {"question_id": "12", "answer": "B", "data_type": "video", "question_type_id": 10},
                ]}),
            )
            .annotations("SEED-Bench.json");
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |q| (q.position != 2).then(|| "A".into()));
        let report = fixture.score(&questions, &given);
        for (name, value) in [
            ("total accuracy", 50.0),
            ("image accuracy", 100.0),
            ("video accuracy", 0.0),
            ("Scene Understanding", 100.0),
            ("Action", 0.0),
        ] {
            assert_eq!(report.value(name), Some(value), "{name}");
        }
        assert_eq!(report.problems.count(ProblemKind::BadReference), 1);
        assert_eq!(
            text_of(&fixture.submission(&questions, &given)),
            "{\"question_id\":11,\"prediction\":\"A\"}\n{\"question_id\":12,\"prediction\":\"A\"}\n"
        );
    }
}
