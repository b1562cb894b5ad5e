//! VQAv2: questions, the upload for EvalAI, and references.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::question::{QuestionId, Questions, SHORT_ANSWER};
use super::{Matched, Problems, SubmissionFile, lines};
use crate::EvalError;
use crate::reply::normalise;

/// Name of the upload.
pub const UPLOAD: &str = "vqav2_upload.json";

#[derive(Deserialize)]
struct Official {
    #[serde(default)]
    data_subtype: String,
    questions: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct OfficialQuestion {
    question_id: QuestionId,
    image_id: u64,
    question: String,
}

/// Questions from `v2_OpenEnded_mscoco_*_questions.json`.
pub(super) fn read_questions(path: &Path, questions: &mut Questions) -> Result<(), EvalError> {
    let official: Official = lines::read_json(path)?;
    // Test-dev is a part of test2015 and shares its pictures.
    let images = match official.data_subtype.as_str() {
        "" | "test-dev2015" => "test2015",
        subtype => subtype,
    };
    questions.push_each(official.questions, |item: OfficialQuestion| {
        let image = format!("COCO_{images}_{:012}.jpg", item.image_id);
        (
            item.question_id,
            image,
            format!("{}\n{SHORT_ANSWER}", item.question),
        )
    });
    Ok(())
}

/// `[{question_id, answer}]` with normalised answers; a missing one is empty, as the server wants
/// every question.
pub(super) fn submission(matched: &Matched<'_>) -> Result<SubmissionFile, EvalError> {
    let rows: Vec<_> = matched
        .pairs
        .iter()
        .map(|(question, answer)| {
            let text = answer.map_or_else(String::new, |answer| normalise(&answer.text));
            json!({"question_id": question.id, "answer": text})
        })
        .collect();
    SubmissionFile::json(UPLOAD, &rows)
}

#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: QuestionId,
    answers: Vec<HumanAnswer>,
}

/// An answer of a person, as VQAv2 and VizWiz have it.
#[derive(Debug, Deserialize)]
pub(super) struct HumanAnswer {
    pub(super) answer: String,
}

/// Ten answers of people for each question id, from `v2_mscoco_*_annotations.json`.
///
/// # Errors
/// If the file cannot be read; single bad entries are added to `problems`.
pub fn references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<String, Vec<String>>, EvalError> {
    let file: Annotations = lines::read_json(path)?;
    Ok(lines::human_answers(
        file.annotations,
        problems,
        |item: Annotation| {
            let answers = item.answers.into_iter().map(|a| a.answer);
            (item.question_id.to_string(), answers.collect())
        },
    ))
}
