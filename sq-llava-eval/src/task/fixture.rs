//! Files of a benchmark in a folder of their own, for tests.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::Task;
use crate::answer::{Answer, Answers};
use crate::layout::Files;
use crate::question::{Question, QuestionOptions, Questions};
use crate::report::Report;
use crate::submission::SubmissionFile;

/// A benchmark with its files.
pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) files: Files,
    pub(crate) task: &'static dyn Task,
}

impl Fixture {
    pub(crate) fn new(task: &'static dyn Task, questions: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            questions: folder.path().join(questions),
            images: Some(folder.path().join("images")),
            annotations: None,
        };
        Self {
            folder,
            files,
            task,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    pub(crate) fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, &value.to_string())
    }

    pub(crate) fn lines(self, name: &str, values: &[Value]) -> Self {
        let lines: Vec<String> = values.iter().map(Value::to_string).collect();
        self.file(name, &lines.join("\n"))
    }

    pub(crate) fn annotations(mut self, name: &str) -> Self {
        self.files.annotations = Some(self.path(name));
        self
    }

    pub(crate) fn questions_with(&self, options: &QuestionOptions) -> Questions {
        self.task.questions(&self.files, options).unwrap()
    }

    pub(crate) fn questions(&self) -> Questions {
        self.questions_with(&QuestionOptions::default())
    }

    /// The answers that a function gives; `None` leaves a question out.
    pub(crate) fn answers(
        &self,
        questions: &Questions,
        text: impl Fn(&Question) -> Option<String>,
    ) -> Answers {
        let list = questions.list.iter().filter_map(|question| {
            let text = text(question)?;
            Some(Answer::new(self.task.name(), question, &text, "tiny"))
        });
        Answers::from_list(list.collect())
    }

    pub(crate) fn score(&self, questions: &Questions, answers: &Answers) -> Report {
        let matched = self.task.matched(questions, answers);
        let references = self.files.annotations.as_deref();
        self.task.report(&matched, references).unwrap()
    }

    /// The error of scoring, which must be one.
    pub(crate) fn refused(&self, questions: &Questions, answers: &Answers) -> String {
        let matched = self.task.matched(questions, answers);
        let references = self.files.annotations.as_deref();
        let scored = self.task.report(&matched, references);
        scored.unwrap_err().to_string()
    }

    pub(crate) fn submission(
        &self,
        questions: &Questions,
        answers: &Answers,
    ) -> Vec<SubmissionFile> {
        let matched = self.task.matched(questions, answers);
        let references = self.files.annotations.as_deref();
        let made = self.task.submit(&matched, references).unwrap();
        let again = self.task.submit(&matched, references).unwrap();
        assert_eq!(made, again, "the same bytes every time");
        made
    }
}

pub(crate) fn text_of(files: &[SubmissionFile]) -> String {
    String::from_utf8(files[0].bytes.clone()).unwrap()
}

/// Ten people, of whom the first `n` give an answer.
pub(crate) fn people(answer: &str, n: usize) -> Vec<Value> {
    (0..10)
        .map(|i| json!({"answer": if i < n { answer } else { "other" }, "answer_id": i + 1}))
        .collect()
}
