//! SEED-Bench: references and the upload.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::question::QuestionId;
use super::{Matched, ProblemKind, Problems, SubmissionFile, lines};
use crate::EvalError;

/// Name of the upload.
pub const UPLOAD: &str = "seed_upload.jsonl";

/// A question of `SEED-Bench.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Item {
    /// Its id.
    pub question_id: QuestionId,
    /// The right letter.
    pub answer: String,
    /// `image` or `video`.
    pub data_type: String,
    /// Number of its type.
    pub question_type_id: i64,
}

/// `SEED-Bench.json`.
#[derive(Debug, Clone, Default)]
pub struct References {
    /// The questions, in order.
    pub items: Vec<Item>,
    /// Name and number of each type.
    pub types: Vec<(String, i64)>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    question_type: Map<String, Value>,
    questions: Vec<Value>,
}

impl References {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read; single bad entries are added to `problems`.
    pub fn read(path: &Path, problems: &mut Problems) -> Result<Self, EvalError> {
        let raw: Raw = lines::read_json(path)?;
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

/// JSONL `{question_id, prediction}`.
pub(super) fn submission(matched: &Matched<'_>) -> Result<SubmissionFile, EvalError> {
    let mut bytes = Vec::new();
    for (question, answer) in matched.answered() {
        let row = json!({"question_id": question.id, "prediction": answer.text});
        bytes.extend(row.to_string().bytes());
        bytes.push(b'\n');
    }
    Ok(SubmissionFile {
        name: UPLOAD.into(),
        bytes,
    })
}
