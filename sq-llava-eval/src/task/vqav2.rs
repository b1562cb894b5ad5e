//! VQAv2: soft accuracy where there are annotations, and the upload for EvalAI.

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
use crate::question::{Question, QuestionId, QuestionOptions, Questions, SHORT_ANSWER};
use crate::report::Report;
use crate::submission::SubmissionFile;

/// VQAv2 test-dev.
#[derive(Debug)]
pub struct VqaV2;

impl Task for VqaV2 {
    fn name(&self) -> &'static str {
        "vqav2"
    }

    fn title(&self) -> &'static str {
        "VQAv2"
    }

    fn max_new_tokens(&self) -> usize {
        128
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["vqav2"],
            questions: &[
                "llava_vqav2_mscoco_test-dev2015.jsonl",
                "llava_vqav2*.jsonl",
                "v2_OpenEnded*questions.json",
            ],
            images: &["test2015", "val2014", "images"],
            annotations: &["v2_mscoco*annotations.json"],
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
        let people = |question: &Question| found.get(&question.id.to_string());
        vqa::score(matched, people, NOT_IN_REFERENCES, report);
        Ok(())
    }

    /// `[{question_id, answer}]` with normalised answers; a missing one is empty, as the server
    /// wants every question.
    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        let rows: Vec<Value> = matched
            .pairs
            .iter()
            .map(|(question, answer)| {
                let text = answer.map_or_else(String::new, |answer| normalise(&answer.text));
                json!({"question_id": question.id, "answer": text})
            })
            .collect();
        SubmissionFile::json("vqav2_upload.json", &rows)
    }
}

#[derive(Deserialize)]
struct Official {
    #[serde(default)]
    data_subtype: String,
    questions: Vec<Value>,
}

#[derive(Deserialize)]
struct OfficialQuestion {
    question_id: QuestionId,
    image_id: u64,
    question: String,
}

/// Questions from `v2_OpenEnded_mscoco_*_questions.json`.
fn own_questions(files: &Files) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    let official: Official = read_json(&files.questions)?;
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
    Ok(questions)
}

#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<Value>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: QuestionId,
    answers: Vec<PersonAnswer>,
}

/// Ten answers of people for each question id, from `v2_mscoco_*_annotations.json`; single bad
/// entries are added to `problems`.
fn read_references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<String, Vec<String>>, EvalError> {
    let file: Annotations = read_json(path)?;
    Ok(people_answers(
        file.annotations,
        problems,
        |item: Annotation| {
            let answers = item.answers.into_iter().map(|a| a.answer);
            (item.question_id.to_string(), answers.collect())
        },
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::problem::ProblemKind;
    use crate::question::ImageRef;
    use crate::task::fixture::{Fixture, people, text_of};

    #[test]
    fn vqav2_uploads_every_question_normalised() {
        let fixture = Fixture::new(&VqaV2, "q.jsonl")
            .lines(
                "q.jsonl",
                &[
                    json!({"question_id": 7, "image": "a.jpg", "text": "What?\nAnswer.", "category": "default"}),
                    json!({"question_id": 8, "image": "a.jpg", "text": "Who?\nAnswer."}),
                    json!({"question_id": 7, "image": "b.jpg", "text": "Again?\nAnswer."}),
                    json!({"image": "b.jpg", "text": "No id"}),
                ],
            )
            .json(
                "refs.json",
                &json!({"annotations": [
                    {"question_id": 7, "answers": people("cat", 3)},
                    {"question_id": 8, "answers": people("dog", 10)},
                ]}),
            )
            .annotations("refs.json");
        let questions = fixture.questions();
        assert_eq!(questions.list.len(), 2);
        assert_eq!(questions.problems.count(ProblemKind::DuplicateQuestion), 1);
        let bad = questions.problems.lines()[0].to_string();
        assert!(
            bad.starts_with("malformed question: q.jsonl line 4: missing field"),
            "{bad}"
        );
        let given = fixture.answers(&questions, |q| {
            (q.position == 0).then(|| "A Cat.".to_owned())
        });
        assert_eq!(
            text_of(&fixture.submission(&questions, &given)),
            r#"[{"question_id":7,"answer":"cat"},{"question_id":8,"answer":""}]"#
        );
        let report = fixture.score(&questions, &given);
        assert!((report.value("accuracy").unwrap() - 45.0).abs() < 1e-9);
        assert_eq!(report.problems.count(ProblemKind::MissingAnswer), 1);
        assert_eq!((report.questions, report.answered), (2, 1));
    }

    #[test]
    fn own_questions_are_put_as_llava_puts_them() {
        let short = "Answer the question using a single word or phrase.";
        let vqa = Fixture::new(&VqaV2, "own.json").json(
            "own.json",
            &json!({"data_subtype": "val2014", "questions":
                [{"question_id": 1, "image_id": 42, "question": "What?"}, {"image_id": 1}]}),
        );
        let questions = vqa.questions();
        assert_eq!(questions.list[0].text, format!("What?\n{short}"));
        assert_eq!(
            questions.list[0].image,
            Some(ImageRef::File("COCO_val2014_000000000042.jpg".into()))
        );
        assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
    }
}
