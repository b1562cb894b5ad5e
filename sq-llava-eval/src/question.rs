//! A benchmark's questions, ready to be asked.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::EvalError;
use crate::jsonl;
use crate::layout::Files;
use crate::problem::{ProblemKind, Problems};
use crate::table::Table;

/// Ends a question that wants a short answer.
pub const SHORT_ANSWER: &str = "Answer the question using a single word or phrase.";

/// Ends a question with options.
pub(crate) const LETTER_ANSWER: &str =
    "Answer with the option's letter from the given choices directly.";

/// Id of a question: a number or a text, and written as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QuestionId {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl fmt::Display for QuestionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<&str> for QuestionId {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for QuestionId {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// Where a question's picture is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// A file under the benchmark's image folder.
    File(String),
    /// A row of the question table, which holds it as base64.
    Row(usize),
}

/// One presentation of a multiple-choice question (MMBench).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Counted from 0; options move by one place in each.
    pub number: u32,
    /// The options in the order shown.
    pub options: Vec<String>,
    /// For each option shown, its letter in the table.
    pub option_char: Vec<String>,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Place among all questions of the file, from 0; the same in every shard.
    pub position: usize,
    /// Its id.
    pub id: QuestionId,
    /// Its picture; `None` for text alone.
    pub image: Option<ImageRef>,
    /// The prompt as it is recorded.
    pub prompt: String,
    /// What the model is asked: without the image placeholder.
    pub text: String,
    /// Kind of the question, where the file says.
    pub category: Option<String>,
    /// Which presentation, where a question has several (MMBench).
    pub round: Option<Round>,
}

impl Question {
    /// A question about a picture in a file, asked as it is recorded.
    pub(crate) fn about(position: usize, id: QuestionId, image: String, prompt: String) -> Self {
        Self {
            position,
            id,
            image: Some(ImageRef::File(image)),
            text: prompt.clone(),
            prompt,
            category: None,
            round: None,
        }
    }

    /// Name of its picture's file.
    pub(crate) fn image_file(&self) -> Option<&str> {
        match &self.image {
            Some(ImageRef::File(name)) => Some(name),
            _ => None,
        }
    }

    /// What no other question of its benchmark has: id, round and prompt.
    pub fn key(&self) -> (String, u32, &str) {
        let round = self.round.as_ref().map_or(0, |round| round.number);
        (self.id.to_string(), round, &self.prompt)
    }
}

/// How questions are put.
#[derive(Debug, Clone)]
pub struct QuestionOptions {
    /// ScienceQA and MMBench: ask for the option's letter alone.
    pub letter: bool,
    /// ScienceQA: only questions with a picture.
    pub images_only: bool,
    /// TextVQA: keep the line of OCR tokens.
    pub ocr: bool,
    /// MMBench: every question in as many rounds as it has options (circular evaluation).
    pub all_rounds: bool,
}

impl Default for QuestionOptions {
    /// As the published evaluation.
    fn default() -> Self {
        Self {
            letter: true,
            images_only: false,
            ocr: true,
            all_rounds: false,
        }
    }
}

/// A picture to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picture {
    /// A file.
    File(PathBuf),
    /// The bytes of an image file, and a name for messages.
    Bytes(Vec<u8>, String),
}

/// The questions of a benchmark.
#[derive(Debug)]
pub struct Questions {
    /// The question file.
    pub path: PathBuf,
    /// Those that can be asked, in the file's order.
    pub list: Vec<Question>,
    /// What was wrong with others.
    pub problems: Problems,
    images: Option<PathBuf>,
    table: Option<Table>,
}

/// A line of the generic JSONL.
#[derive(Debug, Deserialize)]
struct Line {
    question_id: QuestionId,
    #[serde(default)]
    image: Option<String>,
    text: String,
    #[serde(default)]
    category: Option<String>,
}

impl Questions {
    /// An empty list for the files of a benchmark.
    pub(crate) fn new(files: &Files) -> Self {
        Self {
            path: files.questions.clone(),
            list: Vec::new(),
            problems: Problems::default(),
            images: files.images.clone(),
            table: None,
        }
    }

    /// An empty list for a table that holds the pictures.
    pub(crate) fn of_table(files: &Files, table: Table) -> Self {
        Self {
            table: Some(table),
            ..Self::new(files)
        }
    }

    /// Adds the questions of LLaVA's JSONL, each text as `edit` makes it.
    ///
    /// # Errors
    /// If the file cannot be read; single bad lines are added to [`problems`](Self::problems).
    pub(crate) fn read_jsonl(
        &mut self,
        path: &Path,
        edit: impl Fn(String) -> String,
    ) -> Result<(), EvalError> {
        let mut position = 0;
        jsonl::for_each(path, |number, bytes| {
            match serde_json::from_slice::<Line>(bytes) {
                Ok(line) => {
                    let text = edit(line.text);
                    // Other tools keep the placeholder; the conversation adds its own.
                    let asked = text
                        .replace(sq_llava_data::IMAGE_TOKEN, "")
                        .trim()
                        .to_owned();
                    self.push(Question {
                        position,
                        id: line.question_id,
                        image: line.image.map(ImageRef::File),
                        prompt: text,
                        text: asked,
                        category: line.category,
                        round: None,
                    });
                }
                Err(error) => self.problems.add(
                    ProblemKind::MalformedQuestion,
                    jsonl::place(path, number),
                    error.to_string(),
                ),
            }
            position += 1;
            Ok(())
        })
    }

    /// Adds a question, unless nothing is asked.
    pub(crate) fn push(&mut self, question: Question) {
        if question.text.is_empty() {
            let place = format!("question {}", question.id);
            self.problems
                .add(ProblemKind::MalformedQuestion, place, "it has no text");
        } else {
            self.list.push(question);
        }
    }

    /// Adds a question for each entry of a benchmark's own file: `read` gives its id, the file of
    /// its picture and its prompt. An entry of another form is a problem.
    pub(crate) fn push_each<T: DeserializeOwned>(
        &mut self,
        entries: Vec<Value>,
        read: impl Fn(T) -> (QuestionId, String, String),
    ) {
        for (position, entry) in entries.into_iter().enumerate() {
            match serde_json::from_value(entry) {
                Ok(entry) => {
                    let (id, image, prompt) = read(entry);
                    self.push(Question::about(position, id, image, prompt));
                }
                Err(error) => self.problems.add(
                    ProblemKind::MalformedQuestion,
                    format!("question #{position}"),
                    error.to_string(),
                ),
            }
        }
    }

    /// Keeps the first of several questions with the same id and round. `by_prompt` says whether a
    /// prompt is part of what identifies a question.
    pub(crate) fn drop_duplicates(&mut self, by_prompt: impl Fn(&str) -> bool) {
        let mut seen = HashSet::new();
        let problems = &mut self.problems;
        self.list.retain(|question| {
            let (id, round, prompt) = question.key();
            let prompt = by_prompt(prompt).then(|| prompt.to_owned());
            let new = seen.insert((id, round, prompt));
            if !new {
                problems.add(
                    ProblemKind::DuplicateQuestion,
                    format!("question {}", question.id),
                    "its id came before; the first one is asked",
                );
            }
            new
        });
    }

    /// Removes the questions whose picture is not there, with a problem for each.
    pub fn drop_without_image(&mut self) {
        let Self {
            list,
            problems,
            images,
            ..
        } = self;
        let folder = images.as_deref();
        list.retain(|question| {
            let Some(ImageRef::File(name)) = &question.image else {
                return true;
            };
            let path = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
            let found = path.is_file();
            if !found {
                problems.add(
                    ProblemKind::MissingImage,
                    format!("question {}", question.id),
                    format!("{} is no file", path.display()),
                );
            }
            found
        });
    }

    /// Where the picture of a question is.
    ///
    /// # Errors
    /// If a row of the table cannot be read, or its image is not base64.
    pub fn picture(&self, question: &Question) -> Result<Option<Picture>, EvalError> {
        match (&question.image, &self.table) {
            (None, _) => Ok(None),
            (Some(ImageRef::File(name)), _) => {
                let folder = self.images.as_deref();
                let path = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
                Ok(Some(Picture::File(path)))
            }
            (Some(ImageRef::Row(row)), Some(table)) => {
                let name = format!("of question {}", question.id);
                Ok(Some(Picture::Bytes(table.image(*row)?, name)))
            }
            (Some(ImageRef::Row(row)), None) => Err(EvalError::benchmark(
                &self.path,
                format!("row {row} has no table"),
            )),
        }
    }

    /// The table that the questions are rows of, where they come from one.
    pub(crate) fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }
}
