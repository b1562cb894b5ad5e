//! GQA: questions, predictions for its evaluation script, and references.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::question::{ImageRef, Question, Questions, SHORT_ANSWER};
use super::{Matched, ProblemKind, Problems, SubmissionFile, lines};
use crate::EvalError;
use crate::reply::gqa::prediction;

/// Name of the predictions.
pub const PREDICTIONS: &str = "testdev_balanced_predictions.json";

#[derive(Deserialize)]
struct Item {
    question: String,
    #[serde(rename = "imageId")]
    image_id: String,
}

/// Questions from GQA's own `testdev_balanced_questions.json`.
pub(super) fn read_questions(path: &Path, questions: &mut Questions) -> Result<(), EvalError> {
    let items: Map<String, Value> = lines::read_json(path)?;
    for (position, (id, value)) in items.into_iter().enumerate() {
        match serde_json::from_value::<Item>(value) {
            Ok(item) => {
                let prompt = format!("{}\n{SHORT_ANSWER}", item.question);
                questions.push(Question {
                    position,
                    id: id.as_str().into(),
                    image: Some(ImageRef::File(format!("{}.jpg", item.image_id))),
                    text: prompt.clone(),
                    prompt,
                    category: None,
                    round: None,
                });
            }
            Err(error) => questions.problems.add(
                ProblemKind::MalformedQuestion,
                format!("question {id}"),
                error.to_string(),
            ),
        }
    }
    Ok(())
}

/// `[{questionId, prediction}]`, full stops at the end taken off, lower case.
pub(super) fn submission(matched: &Matched<'_>) -> Result<SubmissionFile, EvalError> {
    let rows: Vec<Value> = matched
        .answered()
        .map(|(question, answer)| {
            json!({"questionId": question.id, "prediction": prediction(&answer.text)})
        })
        .collect();
    SubmissionFile::json(PREDICTIONS, &rows)
}

/// The answer of each question id.
///
/// # Errors
/// If the file cannot be read; questions without an answer are added to `problems`.
pub fn references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<String, String>, EvalError> {
    let items: Map<String, Value> = lines::read_json(path)?;
    let mut found = HashMap::new();
    for (id, item) in items {
        match item.get("answer").and_then(Value::as_str) {
            Some(answer) => {
                found.insert(id, answer.to_owned());
            }
            None => problems.add(
                ProblemKind::BadReference,
                format!("question {id}"),
                "it has no \"answer\"",
            ),
        }
    }
    Ok(found)
}
