//! POPE: questions and labels.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::lines;
use super::question::{ImageRef, Question, QuestionId, Questions, SHORT_ANSWER};
use super::{ProblemKind, Problems};
use crate::EvalError;

/// A line of `coco_pope_<category>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Label {
    /// Id within its category.
    pub question_id: QuestionId,
    /// Picture.
    #[serde(default)]
    pub image: Option<String>,
    /// Question.
    #[serde(default)]
    pub text: Option<String>,
    /// Whether yes is right: `yes` or `no` in the file, in any case.
    #[serde(rename = "label", deserialize_with = "yes_or_no")]
    pub is_yes: bool,
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
/// no label keeps its place as `None`, because answers are matched by order.
///
/// # Errors
/// If the folder cannot be read or holds no such file; bad lines are added to `problems`.
pub fn labels(
    folder: &Path,
    problems: &mut Problems,
) -> Result<BTreeMap<String, Vec<Option<Label>>>, EvalError> {
    let io = |source| EvalError::Io {
        path: folder.to_path_buf(),
        source,
    };
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
        lines::for_each(&path, |number, bytes, _| {
            let label = serde_json::from_slice::<Label>(bytes);
            if let Err(error) = &label {
                let place = lines::place(&path, number);
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
pub(super) fn read_questions(folder: &Path, questions: &mut Questions) -> Result<(), EvalError> {
    let mut bad = Problems::default();
    let mut position = 0;
    for (category, list) in labels(folder, &mut bad)? {
        for label in list {
            let asked = label.and_then(|label| {
                let prompt = format!("{}\n{SHORT_ANSWER}", label.text?);
                Some(Question {
                    position,
                    id: format!("{category}/{}", label.question_id).as_str().into(),
                    image: Some(ImageRef::File(label.image?)),
                    text: prompt.clone(),
                    prompt,
                    category: Some(category.clone()),
                    round: None,
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
    Ok(())
}
