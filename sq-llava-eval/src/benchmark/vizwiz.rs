//! VizWiz: questions, the upload, and references.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::question::{ImageRef, Question, Questions, SHORT_ANSWER};
use super::vqav2::HumanAnswer;
use super::{Matched, ProblemKind, Problems, SubmissionFile, lines};
use crate::EvalError;
use crate::reply::normalise;

/// Name of the upload.
pub const UPLOAD: &str = "vizwiz_upload.json";

/// What LLaVA adds so that the model may say that it cannot tell.
const MAY_REFUSE: &str =
    "When the provided information is insufficient, respond with 'Unanswerable'.";

#[derive(Deserialize)]
struct Item {
    image: String,
    question: String,
}

/// Questions from VizWiz's own `val.json` or `test.json`; a picture's name is the question's id.
pub(super) fn read_questions(path: &Path, questions: &mut Questions) -> Result<(), EvalError> {
    let items: Vec<Value> = lines::read_json(path)?;
    for (position, value) in items.into_iter().enumerate() {
        match serde_json::from_value::<Item>(value) {
            Ok(item) => {
                let prompt = format!("{}\n{MAY_REFUSE}\n{SHORT_ANSWER}", item.question);
                questions.push(Question {
                    position,
                    id: item.image.as_str().into(),
                    image: Some(ImageRef::File(item.image)),
                    text: prompt.clone(),
                    prompt,
                    category: None,
                    round: None,
                });
            }
            Err(error) => questions.problems.add(
                ProblemKind::MalformedQuestion,
                format!("question #{position}"),
                error.to_string(),
            ),
        }
    }
    Ok(())
}

/// Name of a question's picture.
pub fn image_of(question: &Question) -> Option<&str> {
    match &question.image {
        Some(ImageRef::File(name)) => Some(name),
        _ => None,
    }
}

/// `[{image, answer}]` with normalised answers.
///
/// # Errors
/// If a question has no answer or no picture: the server refuses an incomplete file.
pub(super) fn submission(
    questions: &Questions,
    matched: &Matched<'_>,
) -> Result<SubmissionFile, EvalError> {
    let rows = matched
        .pairs
        .iter()
        .map(|(question, answer)| match (image_of(question), answer) {
            (Some(image), Some(answer)) => {
                Ok(json!({"image": image, "answer": normalise(&answer.text)}))
            }
            _ => Err(EvalError::benchmark(
                &questions.path,
                format!(
                    "question {} has no answer or no picture, and VizWiz takes complete uploads \
                     only; answer it first",
                    question.id
                ),
            )),
        })
        .collect::<Result<Vec<Value>, EvalError>>()?;
    SubmissionFile::json(UPLOAD, &rows)
}

#[derive(Deserialize)]
struct Annotation {
    image: String,
    answers: Vec<HumanAnswer>,
}

/// Ten answers of people for each picture.
///
/// # Errors
/// If the file cannot be read; single bad entries (the test split has no answers) are added to
/// `problems`.
pub fn references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<String, Vec<String>>, EvalError> {
    let items: Vec<Value> = lines::read_json(path)?;
    let mut found = HashMap::new();
    for (index, value) in items.into_iter().enumerate() {
        match serde_json::from_value::<Annotation>(value) {
            Ok(item) => {
                let answers = item.answers.into_iter().map(|a| a.answer).collect();
                found.insert(item.image, answers);
            }
            Err(error) => problems.add(
                ProblemKind::BadReference,
                format!("annotation #{index}"),
                error.to_string(),
            ),
        }
    }
    Ok(found)
}
