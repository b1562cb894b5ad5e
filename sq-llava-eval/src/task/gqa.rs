//! GQA: exact match, and predictions for its evaluation script.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{NOT_IN_REFERENCES, Task, own_or_jsonl, without_reference};
use crate::EvalError;
use crate::jsonl::read_json;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::{ProblemKind, Problems};
use crate::question::{Question, QuestionOptions, Questions, SHORT_ANSWER};
use crate::report::{Report, share};
use crate::submission::SubmissionFile;

/// GQA test-dev balanced.
#[derive(Debug)]
pub struct Gqa;

impl Task for Gqa {
    fn name(&self) -> &'static str {
        "gqa"
    }

    fn title(&self) -> &'static str {
        "GQA"
    }

    fn max_new_tokens(&self) -> usize {
        128
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["gqa"],
            questions: &[
                "llava_gqa_testdev_balanced.jsonl",
                "llava_gqa*.jsonl",
                "data/testdev_balanced_questions.json",
                "testdev_balanced_questions.json",
            ],
            images: &["data/images", "images"],
            annotations: &[
                "data/testdev_balanced_questions.json",
                "testdev_balanced_questions.json",
            ],
        })
    }

    fn read(&self, files: &Files, _options: &QuestionOptions) -> Result<Questions, EvalError> {
        own_or_jsonl(files, own_questions)
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        let references = read_references(references, &mut report.problems)?;
        let (mut right, mut count) = (0, 0);
        for (question, answer) in &matched.pairs {
            let Some(reference) = references.get(&question.id.to_string()) else {
                without_reference(&question.id, NOT_IN_REFERENCES, &mut report.problems);
                continue;
            };
            count += 1;
            right += usize::from(answer.is_some_and(|a| is_right(&a.text, reference)));
        }
        report.percent("accuracy", share(right, count), count);
        Ok(())
    }

    /// `[{questionId, prediction}]`.
    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        let rows: Vec<Value> = matched
            .answered()
            .map(|(question, answer)| {
                json!({"questionId": question.id, "prediction": prediction(&answer.text)})
            })
            .collect();
        SubmissionFile::json("testdev_balanced_predictions.json", &rows)
    }
}

#[derive(Deserialize)]
struct Item {
    question: String,
    #[serde(rename = "imageId")]
    image_id: String,
}

/// Questions from GQA's own `testdev_balanced_questions.json`.
fn own_questions(files: &Files) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    let items: Map<String, Value> = read_json(&files.questions)?;
    for (position, (id, value)) in items.into_iter().enumerate() {
        match serde_json::from_value::<Item>(value) {
            Ok(item) => {
                let prompt = format!("{}\n{SHORT_ANSWER}", item.question);
                let image = format!("{}.jpg", item.image_id);
                questions.push(Question::about(position, id.as_str().into(), image, prompt));
            }
            Err(error) => questions.problems.add(
                ProblemKind::MalformedQuestion,
                format!("question {id}"),
                error.to_string(),
            ),
        }
    }
    Ok(questions)
}

/// The right answer by question id; questions without one are added to `problems`.
fn read_references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<String, String>, EvalError> {
    let items: Map<String, Value> = read_json(path)?;
    let mut found = HashMap::new();
    for (id, item) in items {
        match item.get("answer").and_then(Value::as_str) {
            Some(answer) => {
                found.insert(id, answer.to_owned());
            }
            None => without_reference(&id, "it has no \"answer\"", problems),
        }
    }
    Ok(found)
}

/// What is compared: the text without full stops at its end, in lower case.
fn prediction(text: &str) -> String {
    text.trim_end_matches('.').to_lowercase()
}

/// Whether an answer is the reference.
pub fn is_right(text: &str, reference: &str) -> bool {
    prediction(text) == reference
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::{Fixture, text_of};

    #[test]
    fn predictions_are_compared_exactly() {
        let fixture = Fixture::new(&Gqa, "own.json")
            .json(
                "own.json",
                &json!({
                    "201": {"question": "Is it?", "imageId": "n1", "answer": "yes"},
                    "202": {"question": "Where?", "imageId": "n2", "answer": "left"},
                }),
            )
            .annotations("own.json");
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |q| {
            Some(if q.position == 0 { "Yes." } else { "left " }.into())
        });
        assert_eq!(
            text_of(&fixture.submission(&questions, &given)),
            r#"[{"questionId":"201","prediction":"yes"},{"questionId":"202","prediction":"left "}]"#
        );
        assert_eq!(
            fixture.score(&questions, &given).value("accuracy"),
            Some(50.0)
        );
    }
}
