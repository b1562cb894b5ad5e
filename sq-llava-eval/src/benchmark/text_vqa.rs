//! TextVQA: questions with and without OCR tokens, and references.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::question::{QuestionOptions, Questions, SHORT_ANSWER};
use super::{Problems, lines};
use crate::EvalError;

/// Begins the line of OCR tokens.
const OCR: &str = "Reference OCR token: ";

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
pub(super) fn read_questions(
    path: &Path,
    options: &QuestionOptions,
    questions: &mut Questions,
) -> Result<(), EvalError> {
    let file: File = lines::read_json(path)?;
    questions.push_each(file.data, |item: Item| {
        let mut prompt = item.question;
        if options.ocr && !item.ocr_tokens.is_empty() {
            prompt = format!("{prompt}\n{OCR}{}", item.ocr_tokens.join(", "));
        }
        let image = format!("{}.jpg", item.image_id);
        let id = item.image_id.as_str().into();
        (id, image, format!("{prompt}\n{SHORT_ANSWER}"))
    });
    Ok(())
}

/// A question without its line of OCR tokens.
pub fn without_ocr(text: &str) -> String {
    let lines: Vec<&str> = text
        .split('\n')
        .filter(|line| !line.starts_with(OCR.trim_end()))
        .collect();
    lines.join("\n")
}

/// The question in a prompt, in lower case: what answers are matched by, beside the image's id.
/// `None` for a prompt of no known form.
pub fn question_of(prompt: &str) -> Option<String> {
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

/// Ten answers of people for each (image id, question in lower case).
///
/// # Errors
/// If the file cannot be read; single bad entries are added to `problems`.
pub fn references(
    path: &Path,
    problems: &mut Problems,
) -> Result<HashMap<(String, String), Vec<String>>, EvalError> {
    let file: File = lines::read_json(path)?;
    Ok(lines::human_answers(file.data, problems, |item: Item| {
        ((item.image_id, item.question.to_lowercase()), item.answers)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

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
