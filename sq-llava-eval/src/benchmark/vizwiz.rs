//! VizWiz: questions, the upload, and references.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::question::{ImageRef, Question, Questions, SHORT_ANSWER};
use super::vqav2::HumanAnswer;
use super::{Matched, Problems, SubmissionFile, lines};
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
    questions.push_each(items, |item: Item| {
        let prompt = format!("{}\n{MAY_REFUSE}\n{SHORT_ANSWER}", item.question);
        (item.image.as_str().into(), item.image, prompt)
    });
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
    Ok(lines::human_answers(items, problems, |item: Annotation| {
        let answers = item.answers.into_iter().map(|a| a.answer);
        (item.image, answers.collect())
    }))
}
