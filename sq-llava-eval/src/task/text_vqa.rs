//! TextVQA: questions with and without OCR tokens, and soft accuracy.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::vqa::{self, people_answers};
use super::{Task, is_json};
use crate::EvalError;
use crate::jsonl::read_json;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::Problems;
use crate::question::{Question, QuestionOptions, Questions, SHORT_ANSWER};
use crate::report::Report;

/// Begins the line of OCR tokens.
const OCR: &str = "Reference OCR token: ";

/// TextVQA validation.
#[derive(Debug)]
pub struct TextVqa;

impl Task for TextVqa {
    fn name(&self) -> &'static str {
        "textvqa"
    }

    fn title(&self) -> &'static str {
        "TextVQA"
    }

    fn max_new_tokens(&self) -> usize {
        128
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["textvqa"],
            questions: &[
                "llava_textvqa_val_v051_ocr.jsonl",
                "llava_textvqa*.jsonl",
                "TextVQA_0.5.1_val.json",
            ],
            images: &["train_images", "images"],
            annotations: &["TextVQA_0.5.1_val.json"],
        })
    }

    fn read(&self, files: &Files, options: &QuestionOptions) -> Result<Questions, EvalError> {
        if is_json(&files.questions) {
            return own_questions(files, options.ocr);
        }
        let mut questions = Questions::new(files);
        questions.read_jsonl(&files.questions, |text| match options.ocr {
            true => text,
            false => without_ocr(&text),
        })?;
        Ok(questions)
    }

    /// Its ids are pictures, each with several questions.
    fn identified_by(&self, prompt: &str) -> Option<String> {
        Some(question_of(prompt).unwrap_or_else(|| prompt.to_owned()))
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        let found = read_references(references, &mut report.problems)?;
        let people = |question: &Question| {
            let asked = question_of(&question.prompt)?;
            found.get(&(question.id.to_string(), asked))
        };
        let unknown = "no reference has this id, an image's, with this question; it is not scored";
        vqa::score(matched, people, unknown, report);
        Ok(())
    }
}

#[derive(Deserialize)]
struct File {
    data: Vec<Value>,
}

#[derive(Deserialize)]
struct Item {
    image_id: String,
    question: String,
    #[serde(default)]
    ocr_tokens: Vec<String>,
    #[serde(default)]
    answers: Vec<String>,
}

/// Questions from TextVQA's own JSON; a picture's name is the question's id, as in LLaVA's file.
fn own_questions(files: &Files, ocr: bool) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    let file: File = read_json(&files.questions)?;
    questions.push_each(file.data, |item: Item| {
        let mut prompt = item.question;
        if ocr && !item.ocr_tokens.is_empty() {
            prompt = format!("{prompt}\n{OCR}{}", item.ocr_tokens.join(", "));
        }
        let image = format!("{}.jpg", item.image_id);
        let id = item.image_id.as_str().into();
        (id, image, format!("{prompt}\n{SHORT_ANSWER}"))
    });
    Ok(questions)
}

/// A question without its line of OCR tokens.
fn without_ocr(text: &str) -> String {
    let lines: Vec<&str> = text
        .split('\n')
        .filter(|line| !line.starts_with(OCR.trim_end()))
        .collect();
    lines.join("\n")
}

/// The question in a prompt, in lower case: what answers are matched by, with the image's id.
/// `None` for a prompt of no known form.
fn question_of(prompt: &str) -> Option<String> {
    let lines: Vec<&str> = prompt.split('\n').collect();
    let question = if prompt.starts_with("OCR tokens: ") {
        let (_, rest) = prompt.split_once("Question: ")?;
        rest.split_once(" Short answer:")?.0
    } else if prompt.contains(OCR) && lines.len() == 3 {
        lines[usize::from(prompt.starts_with(OCR.trim_end()))]
    } else if lines.len() == 2 {
        lines[0]
    } else {
        return None;
    };
    Some(question.to_lowercase())
}

/// Ten answers of people for each (image id, question in lower case); single bad entries are added
/// to `problems`.
fn read_references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<(String, String), Vec<String>>, EvalError> {
    let file: File = read_json(path)?;
    Ok(people_answers(file.data, problems, |item: Item| {
        ((item.image_id, item.question.to_lowercase()), item.answers)
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::Fixture;

    #[test]
    fn text_vqa_is_matched_by_image_and_question() {
        let ten = |answer: &'static str| vec![answer; 10];
        let fixture = Fixture::new(&TextVqa, "q.jsonl")
            .lines(
                "q.jsonl",
                &[
                    json!({"question_id": "im1", "image": "im1.jpg",
                        "text": "What Brand?\nReference OCR token: Lumix, X\nAnswer."}),
                    json!({"question_id": "im1", "image": "im1.jpg",
                        "text": "What year?\nReference OCR token: \nAnswer."}),
                ],
            )
            .json(
                "refs.json",
                &json!({"data": [
                    {"image_id": "im1", "question": "What brand?", "answers": ten("lumix")},
                    {"image_id": "im1", "question": "what year?", "answers": ten("1999")},
                ]}),
            )
            .annotations("refs.json");
        for ocr in [true, false] {
            let options = QuestionOptions {
                ocr,
                ..QuestionOptions::default()
            };
            let questions = fixture.questions_with(&options);
            assert_eq!(questions.list.len(), 2);
            assert_eq!(questions.list[0].text.contains("Lumix"), ocr);
            let given = fixture.answers(&questions, |q| {
                Some(if q.position == 0 { "Lumix" } else { "2000" }.into())
            });
            let report = fixture.score(&questions, &given);
            assert_eq!(report.value("accuracy"), Some(50.0));
            assert_eq!(report.problems.total(), 0);
            // Answers to the other form of the question are found too.
            let other = fixture.questions();
            assert_eq!(fixture.score(&other, &given).value("accuracy"), Some(50.0));
        }
    }

    #[test]
    fn the_question_is_found_in_every_form_of_prompt() {
        for (prompt, question) in [
            (
                "What Brand?\nReference OCR token: A, B\nAnswer the question using a single word or phrase.",
                Some("what brand?"),
            ),
            ("Reference OCR token: A\nWhat?\nAnswer.", Some("what?")),
            ("What?\nAnswer.", Some("what?")),
            (
                "OCR tokens: A. Question: Who is\nit? Short answer:",
                Some("who is\nit?"),
            ),
            ("What?", None),
        ] {
            assert_eq!(question_of(prompt).as_deref(), question, "{prompt}");
        }
        assert_eq!(
            without_ocr("What?\nReference OCR token: A\nAnswer."),
            "What?\nAnswer."
        );
    }
}
