//! MM-Vet: questions, predictions for its grader, and requests to a judge.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::question::{ImageRef, Question, QuestionId, Questions};
use super::{Matched, ProblemKind, SubmissionFile, lines};
use crate::EvalError;

/// Name of the predictions.
pub const PREDICTIONS: &str = "mm-vet_predictions.json";

/// One question of `mm-vet.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Item {
    /// File name of its picture.
    pub imagename: String,
    /// The question.
    pub question: String,
    /// What is right; `<AND>` and `<OR>` join parts.
    pub answer: String,
    /// What it takes: `rec`, `ocr`, `know`, `gen`, `spat`, `math`.
    #[serde(default)]
    pub capability: Vec<String>,
}

/// `mm-vet.json`: the questions in order, by id (`v1_0`).
///
/// # Errors
/// If it cannot be read or an entry is malformed.
pub fn items(path: &Path) -> Result<Vec<(String, Item)>, EvalError> {
    let raw: Map<String, Value> = lines::read_json(path)?;
    raw.into_iter()
        .map(|(id, value)| match serde_json::from_value(value) {
            Ok(item) => Ok((id, item)),
            Err(error) => Err(EvalError::benchmark(path, format!("{id}: {error}"))),
        })
        .collect()
}

/// Questions from MM-Vet's own file; `v1_7` becomes 7, as in LLaVA's.
pub(super) fn read_questions(path: &Path, questions: &mut Questions) -> Result<(), EvalError> {
    let raw: Map<String, Value> = lines::read_json(path)?;
    for (position, (id, value)) in raw.into_iter().enumerate() {
        match serde_json::from_value::<Item>(value) {
            Ok(item) => {
                let bare = id.strip_prefix("v1_").unwrap_or(&id);
                questions.push(Question {
                    position,
                    id: bare
                        .parse()
                        .map_or_else(|_| bare.into(), QuestionId::Number),
                    image: Some(ImageRef::File(item.imagename)),
                    prompt: item.question.clone(),
                    text: item.question,
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

/// `{"v1_<id>": text}`, indented by two.
pub(super) fn submission(matched: &Matched<'_>) -> Result<SubmissionFile, EvalError> {
    let texts: Map<String, Value> = matched
        .answered()
        .map(|(question, answer)| (graded_id(&question.id), answer.text.clone().into()))
        .collect();
    let bytes = serde_json::to_vec_pretty(&texts).map_err(|source| EvalError::Json {
        path: PREDICTIONS.into(),
        source,
    })?;
    Ok(SubmissionFile {
        name: PREDICTIONS.into(),
        bytes,
    })
}

/// The grader's name of a question.
pub fn graded_id(id: &QuestionId) -> String {
    let id = id.to_string();
    if id.starts_with("v1_") {
        id
    } else {
        format!("v1_{id}")
    }
}

/// One request to a judge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JudgeRequest {
    /// Id of the question (`v1_7`).
    pub id: String,
    /// What the question takes, for the sums.
    pub capability: Vec<String>,
    /// The whole message.
    pub content: String,
}

/// A request for each answered question: the rubric, then a row `question | truth | prediction |`
/// that the judge ends with a number from 0 to 1.
///
/// # Errors
/// If `mm-vet.json` cannot be read.
pub fn judge_requests(
    rubric: &str,
    items_file: &Path,
    matched: &Matched<'_>,
) -> Result<Vec<JudgeRequest>, EvalError> {
    let answers: std::collections::HashMap<String, &str> = matched
        .answered()
        .map(|(question, answer)| (graded_id(&question.id), answer.text.as_str()))
        .collect();
    let requests = items(items_file)?.into_iter().filter_map(|(id, item)| {
        let prediction = answers.get(&graded_id(&id.as_str().into()))?;
        let truth = item
            .answer
            .replace("<AND>", " <AND> ")
            .replace("<OR>", " <OR> ");
        let row = [&item.question, &truth, *prediction, ""].join(" | ");
        Some(JudgeRequest {
            id,
            capability: item.capability,
            content: format!("{rubric}\n{row}"),
        })
    });
    Ok(requests.collect())
}
