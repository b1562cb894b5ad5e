//! Benchmarks, one file each, behind one trait. [`crate::registry`] lists them.

pub mod captions;
pub(crate) mod generic;
pub mod gqa;
pub(crate) mod llava_bench;
pub(crate) mod mm_vet;
pub(crate) mod mmbench;
pub(crate) mod mme;
pub(crate) mod nocaps;
pub mod pope;
pub mod science_qa;
pub(crate) mod seed;
pub(crate) mod text_vqa;
pub(crate) mod vizwiz;
mod vqa;
pub(crate) mod vqav2;

use std::fmt;
use std::panic::RefUnwindSafe;
use std::path::Path;

use serde::Serialize;

use crate::EvalError;
use crate::answer::Answers;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::{ProblemKind, Problems};
use crate::protocol::Protocol;
use crate::question::{QuestionOptions, Questions};
use crate::report::Report;
use crate::submission::SubmissionFile;
use captions::Captioning;

/// A benchmark: how its files are read, its questions put, and its answers scored and submitted.
///
/// The defaults are LLaVA's usual: questions in JSONL with unique ids, scored against a file of
/// references, nothing to submit. The methods of `dyn Task` are the same for every benchmark.
pub trait Task: fmt::Debug + Sync + RefUnwindSafe {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Its name in tables.
    fn title(&self) -> &'static str;

    /// Most tokens of an answer in the published evaluation: 128 where LLaVA's batch loader asks,
    /// 1024 elsewhere.
    fn max_new_tokens(&self) -> usize {
        1024
    }

    /// Whether a protocol crops its pictures, as CLIP's processor does by default, instead of
    /// preparing them as the model was trained.
    fn crops(&self, _protocol: Protocol) -> bool {
        false
    }

    /// Where its files are under a folder, as in LLaVA's evaluation; `None` if each must be named.
    fn layout(&self) -> Option<Layout> {
        None
    }

    /// Looks for its files in `root` or its usual folder under it; `None` if its questions are not
    /// there.
    ///
    /// # Errors
    /// If a folder cannot be listed.
    fn find(&self, root: &Path) -> Result<Option<Files>, EvalError> {
        self.layout().map_or(Ok(None), |layout| layout.find(root))
    }

    /// Reads its question file.
    ///
    /// # Errors
    /// If it cannot be read or is not in the benchmark's format; single bad questions are added to
    /// [`Questions::problems`].
    fn read(&self, files: &Files, _options: &QuestionOptions) -> Result<Questions, EvalError> {
        read_jsonl(files)
    }

    /// The part of a prompt that identifies a question together with its id; `None` where ids are
    /// unique.
    fn identified_by(&self, _prompt: &str) -> Option<String> {
        None
    }

    /// Whether it is scored against references in files of their own.
    fn has_references(&self) -> bool {
        true
    }

    /// Adds its numbers to a report, the one that papers print first. `references` is their file
    /// or folder; the question file where it [has none](Self::has_references).
    ///
    /// # Errors
    /// If references cannot be read or belong to other questions; single bad ones are added to
    /// [`Report::problems`].
    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError>;

    /// What its server or script takes; empty where that is the answer file itself.
    ///
    /// # Errors
    /// If the benchmark demands an answer for every question and one is missing, or references
    /// cannot be read.
    fn submit(
        &self,
        _matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        Ok(vec![])
    }

    /// Its requests to a judge, if one scores it.
    fn judged(&self) -> Option<&dyn JudgedTask> {
        None
    }

    /// Where its reference captions come from, if its answers are captions.
    fn captioning(&self) -> Option<&dyn Captioning> {
        None
    }
}

/// A benchmark that a language model scores.
pub trait JudgedTask {
    /// Name of the annotations that requests are made of.
    fn annotations(&self) -> &'static str;

    /// One line of JSON for each answered question. `rubric` is the file with the judge's
    /// instructions.
    ///
    /// # Errors
    /// If a file cannot be read or has no entry for a question.
    fn requests(
        &self,
        matched: &Matched<'_>,
        rubric: &Path,
        annotations: &Path,
    ) -> Result<Vec<String>, EvalError>;
}

impl fmt::Display for dyn Task + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl dyn Task + '_ {
    /// Its questions, those that can be asked.
    ///
    /// # Errors
    /// If the file cannot be read or holds no question that can be asked.
    pub fn questions(
        &self,
        files: &Files,
        options: &QuestionOptions,
    ) -> Result<Questions, EvalError> {
        let mut questions = self.read(files, options)?;
        questions.drop_duplicates(|prompt| self.identified_by(prompt).is_some());
        if questions.list.is_empty() {
            let first = questions.problems.lines().first();
            let reason = first.map_or_else(
                || "holds no question".to_owned(),
                |problem| format!("holds no question that can be asked; {problem}"),
            );
            return Err(EvalError::benchmark(&questions.path, reason));
        }
        Ok(questions)
    }

    /// Its questions with their answers, from which scores and submissions are made.
    pub fn matched<'a>(&self, questions: &'a Questions, answers: &'a Answers) -> Matched<'a> {
        Matched::new(questions, answers, |(id, round, prompt)| {
            match self.identified_by(prompt) {
                Some(asked) => format!("{id}\n{asked}"),
                None => format!("{round}\n{id}"),
            }
        })
    }

    /// A report without numbers.
    pub fn unscored(&self, matched: &Matched<'_>) -> Report {
        Report::new(self.name(), self.title(), matched)
    }

    /// Scores its answers.
    ///
    /// # Errors
    /// If references are needed and not given, cannot be read, or belong to other questions; if no
    /// question has an answer, or none could be scored.
    pub fn report(
        &self,
        matched: &Matched<'_>,
        references: Option<&Path>,
    ) -> Result<Report, EvalError> {
        matched.some_answered()?;
        let questions = matched.questions;
        let mut report = self.unscored(matched);
        let references = match references {
            Some(references) => references,
            None if self.has_references() => {
                let reason = format!(
                    "{} is scored against references: name their file or folder",
                    self.title()
                );
                return Err(EvalError::benchmark(&questions.path, reason));
            }
            None => &questions.path,
        };
        self.score(matched, references, &mut report)?;
        // A test split without answers says so in a note.
        if report.metrics.is_empty() && report.notes.is_empty() {
            let mut problems = report.problems.lines().iter();
            let why = problems
                .find(|problem| problem.kind == ProblemKind::BadReference)
                .map(|problem| format!("; the first: {problem}"));
            return Err(EvalError::benchmark(
                references,
                format!(
                    "nothing of {} could be scored: no reference fits any of its {} questions{}",
                    self.title(),
                    questions.list.len(),
                    why.unwrap_or_default()
                ),
            ));
        }
        Ok(report)
    }
}

/// Questions in LLaVA's JSONL.
fn read_jsonl(files: &Files) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    questions.read_jsonl(&files.questions, |text| text)?;
    Ok(questions)
}

/// Whether a question file is a benchmark's own: those are JSON, LLaVA's are JSONL.
fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "json")
}

/// Questions in a benchmark's `own` format, or in LLaVA's JSONL.
fn own_or_jsonl(
    files: &Files,
    own: impl Fn(&Files) -> Result<Questions, EvalError>,
) -> Result<Questions, EvalError> {
    match is_json(&files.questions) {
        true => own(files),
        false => read_jsonl(files),
    }
}

/// A question that the references lack; it is not scored.
fn without_reference(id: &impl fmt::Display, reason: &str, problems: &mut Problems) {
    problems.add(ProblemKind::BadReference, format!("question {id}"), reason);
}

/// Says why a judged benchmark has no numbers.
const SCORED_BY_JUDGE: &str = "scored by a judge";

/// A request to a judge as a line of JSON.
fn request_line(request: &impl Serialize) -> Result<String, EvalError> {
    serde_json::to_string(request).map_err(|source| EvalError::Json {
        path: "judge_requests.jsonl".into(),
        source,
    })
}

/// Why most questions without a reference are not scored.
const NOT_IN_REFERENCES: &str = "the references lack it; it is not scored";

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
