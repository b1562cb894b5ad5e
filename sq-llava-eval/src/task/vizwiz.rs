//! VizWiz: soft accuracy where there are annotations, and the upload.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::vqa::{self, PersonAnswer, people_answers};
use super::{NOT_IN_REFERENCES, Task, own_or_jsonl};
use crate::EvalError;
use crate::jsonl::read_json;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::metric::normalise;
use crate::problem::Problems;
use crate::question::{Question, QuestionOptions, Questions, SHORT_ANSWER};
use crate::report::Report;
use crate::submission::SubmissionFile;

/// What LLaVA adds so that the model may say that it cannot tell.
const MAY_REFUSE: &str =
    "When the provided information is insufficient, respond with 'Unanswerable'.";

/// VizWiz.
#[derive(Debug)]
pub struct VizWiz;

impl Task for VizWiz {
    fn name(&self) -> &'static str {
        "vizwiz"
    }

    fn title(&self) -> &'static str {
        "VizWiz"
    }

    fn max_new_tokens(&self) -> usize {
        128
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["vizwiz"],
            questions: &["llava_test.jsonl", "llava_*.jsonl", "test.json", "val.json"],
            images: &["test", "val", "images"],
            annotations: &["val.json", "test.json"],
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
        let found = read_references(references, &mut report.problems)?;
        let people = |question: &Question| found.get(question.image_file()?);
        vqa::score(matched, people, NOT_IN_REFERENCES, report);
        Ok(())
    }

    /// `[{image, answer}]` with normalised answers. The server refuses an incomplete file: a
    /// question without an answer or a picture is an error.
    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        let rows = matched
            .pairs
            .iter()
            .map(|(question, answer)| match (question.image_file(), answer) {
                (Some(image), Some(answer)) => {
                    Ok(json!({"image": image, "answer": normalise(&answer.text)}))
                }
                _ => Err(EvalError::benchmark(
                    &matched.questions.path,
                    format!(
                        "question {} has no answer or no picture, and VizWiz takes complete \
                         uploads only; answer it first",
                        question.id
                    ),
                )),
            })
            .collect::<Result<Vec<Value>, EvalError>>()?;
        SubmissionFile::json("vizwiz_upload.json", &rows)
    }
}

#[derive(Deserialize)]
struct Item {
    image: String,
    question: String,
}

/// Questions from VizWiz's own `val.json` or `test.json`; a picture's name is the question's id.
fn own_questions(files: &Files) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    let items: Vec<Value> = read_json(&files.questions)?;
    questions.push_each(items, |item: Item| {
        let prompt = format!("{}\n{MAY_REFUSE}\n{SHORT_ANSWER}", item.question);
        (item.image.as_str().into(), item.image, prompt)
    });
    Ok(questions)
}

#[derive(Deserialize)]
struct Annotation {
    image: String,
    answers: Vec<PersonAnswer>,
}

/// Ten answers of people for each picture; single bad entries (the test split has no answers) are
/// added to `problems`.
fn read_references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<String, Vec<String>>, EvalError> {
    let items: Vec<Value> = read_json(path)?;
    Ok(people_answers(items, problems, |item: Annotation| {
        let answers = item.answers.into_iter().map(|a| a.answer);
        (item.image, answers.collect())
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::answer::Answers;
    use crate::task::fixture::{Fixture, people, text_of};

    #[test]
    fn uploads_are_normalised_and_complete() {
        let fixture = Fixture::new(&VizWiz, "q.jsonl")
            .lines(
                "q.jsonl",
                &[json!({"question_id": 0, "image": "V_0.jpg", "text": "What?\nAnswer."})],
            )
            .json(
                "val.json",
                &json!([{"image": "V_0.jpg", "answers": people("unanswerable", 10)}]),
            )
            .annotations("val.json");
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |_| Some("Unanswerable".into()));
        assert_eq!(
            text_of(&fixture.submission(&questions, &given)),
            r#"[{"image":"V_0.jpg","answer":"unanswerable"}]"#
        );
        assert_eq!(
            fixture.score(&questions, &given).value("accuracy"),
            Some(100.0)
        );
        let none = Answers::default();
        let matched = fixture.task.matched(&questions, &none);
        let error = fixture.task.submit(&matched, None).unwrap_err();
        assert!(
            error.to_string().contains("question 0 has no answer"),
            "{error}"
        );
    }

    #[test]
    fn own_questions_are_put_as_llava_puts_them() {
        let short = "Answer the question using a single word or phrase.";
        let fixture = Fixture::new(&VizWiz, "val.json").json(
            "val.json",
            &json!([{"image": "V_1.jpg", "question": "Can you?"}]),
        );
        assert_eq!(
            fixture.questions().list[0].text,
            format!(
                "Can you?\nWhen the provided information is insufficient, respond with \
                 'Unanswerable'.\n{short}"
            )
        );
    }
}
