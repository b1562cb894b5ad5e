//! ScienceQA: questions, `problems.json` with its splits, and the result file.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::question::{ImageRef, LETTER_ANSWER, Question, QuestionId, QuestionOptions, Questions};
use super::{Matched, ProblemKind, SubmissionFile, lines};
use crate::EvalError;
use crate::reply::science_qa::{choice, is_right};
use sq_llava_data::IMAGE_TOKEN;

/// Name of the result file.
pub const RESULT: &str = "scienceqa_result.json";

/// The split that is evaluated.
const SPLIT: &str = "test";

#[derive(Deserialize)]
struct Item {
    id: QuestionId,
    #[serde(default)]
    image: Option<String>,
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

/// Questions from LLaVA's array (`llava_test_CQM-A.json`). The recorded prompt keeps the image's
/// mark: the scorer tells by it which questions had a picture.
pub(super) fn read(
    path: &Path,
    options: &QuestionOptions,
    questions: &mut Questions,
) -> Result<(), EvalError> {
    let items: Vec<Value> = lines::read_json(path)?;
    for (position, value) in items.into_iter().enumerate() {
        let item = match serde_json::from_value::<Item>(value) {
            Ok(item) => item,
            Err(error) => {
                let place = format!("question #{position}");
                questions
                    .problems
                    .add(ProblemKind::MalformedQuestion, place, error.to_string());
                continue;
            }
        };
        let Some(first) = item.conversations.first() else {
            let place = format!("question {}", item.id);
            questions
                .problems
                .add(ProblemKind::MalformedQuestion, place, "no conversation");
            continue;
        };
        if options.images_only && item.image.is_none() {
            continue;
        }
        let mut text = first.value.replace(IMAGE_TOKEN, "").trim().to_owned();
        if options.letter && !text.is_empty() {
            text = format!("{text}\n{LETTER_ANSWER}");
        }
        let prompt = match &item.image {
            Some(_) => format!("{IMAGE_TOKEN}\n{text}"),
            None => text.clone(),
        };
        questions.push(Question {
            position,
            id: item.id,
            image: item.image.map(ImageRef::File),
            prompt,
            text,
            category: None,
            round: None,
        });
    }
    Ok(())
}

/// One problem of `problems.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Exercise {
    /// The options.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
    /// Text to go with it; may be empty.
    #[serde(default)]
    pub hint: Option<String>,
    /// File name of its picture.
    #[serde(default)]
    pub image: Option<String>,
}

/// The problems of the test split.
#[derive(Debug, Clone, Default)]
pub struct References {
    /// By question id.
    pub exercises: HashMap<String, Exercise>,
    /// Ids of the split, in order.
    pub split: Vec<String>,
    /// Lines about malformed problems.
    pub malformed: Vec<(String, String)>,
}

impl References {
    /// Reads `problems.json` (or the folder that holds it) and the `pid_splits.json` beside it.
    ///
    /// # Errors
    /// If one is missing or no such file, or the split names a problem that is not there.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let folder = if path.is_dir() {
            path
        } else {
            path.parent().unwrap_or(path)
        };
        let file = folder.join("problems.json");
        let problems: Map<String, Value> = lines::read_json(&file)?;
        let splits: HashMap<String, Vec<String>> =
            lines::read_json(&folder.join("pid_splits.json"))?;
        let split = splits.get(SPLIT).cloned().ok_or_else(|| {
            let reason = format!("has no split \"{SPLIT}\"");
            EvalError::benchmark(folder.join("pid_splits.json"), reason)
        })?;
        let mut found = Self {
            split,
            ..Self::default()
        };
        for id in &found.split {
            let Some(value) = problems.get(id) else {
                let reason = format!("has no problem {id}, which pid_splits.json lists");
                return Err(EvalError::benchmark(&file, reason));
            };
            match Exercise::deserialize(value) {
                Ok(exercise) if exercise.answer < exercise.choices.len() => {
                    found.exercises.insert(id.clone(), exercise);
                }
                Ok(_) => found
                    .malformed
                    .push((id.clone(), "\"answer\" is none of the choices".into())),
                Err(error) => found.malformed.push((id.clone(), error.to_string())),
            }
        }
        Ok(found)
    }
}

/// `{acc, correct, count, results: {id: index or −1}, outputs: {id: text}}`, as the script's
/// `--output-result`.
pub(super) fn submission(
    references: &References,
    matched: &Matched<'_>,
) -> Result<SubmissionFile, EvalError> {
    let answers: HashMap<String, &str> = matched
        .answered()
        .map(|(question, answer)| (question.id.to_string(), answer.text.as_str()))
        .collect();
    let (mut results, mut outputs) = (Map::new(), Map::new());
    let mut correct = 0usize;
    for id in &references.split {
        let Some(exercise) = references.exercises.get(id) else {
            continue;
        };
        let text = answers.get(id).copied().unwrap_or("FAILED");
        let index = choice(text, exercise.choices.len());
        correct += usize::from(is_right(index, exercise.answer));
        results.insert(id.clone(), index.map_or(json!(-1), |index| json!(index)));
        outputs.insert(id.clone(), text.into());
    }
    let count = results.len();
    let accuracy = (count > 0).then(|| 100.0 * correct as f64 / count as f64);
    SubmissionFile::json(
        RESULT,
        &json!({
            "acc": accuracy,
            "correct": correct,
            "count": count,
            "results": results,
            "outputs": outputs,
        }),
    )
}
