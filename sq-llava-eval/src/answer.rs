//! Answers: LLaVA's JSONL, appended as they come.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::EvalError;
use crate::jsonl;
use crate::problem::{ProblemKind, Problems};
use crate::question::{Question, QuestionId};
use sq_llava_data::files;

/// One answer, in the order of LLaVA's keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Id of the question.
    pub question_id: QuestionId,
    /// MMBench: which presentation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_id: Option<u32>,
    /// The question as it was recorded.
    #[serde(default)]
    pub prompt: String,
    /// What the model said.
    pub text: String,
    /// MMBench: the options in the order shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
    /// MMBench: for each option shown, its letter in the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option_char: Option<Vec<String>>,
    /// Id of the answer.
    #[serde(default)]
    pub answer_id: Value,
    /// Who answered.
    #[serde(default)]
    pub model_id: String,
    /// Anything else.
    #[serde(default)]
    pub metadata: Map<String, Value>,
}

impl Answer {
    /// An answer to a question of a benchmark. Its id is made of the benchmark's name and the
    /// question's position, so that the same run writes the same bytes.
    pub(crate) fn new(benchmark: &str, question: &Question, text: &str, model_id: &str) -> Self {
        let round = question.round.as_ref();
        let mut answer_id = format!("{benchmark}-{:06}", question.position);
        if let Some(round) = round {
            answer_id = format!("{answer_id}-{}", round.number);
        }
        Self {
            question_id: question.id.clone(),
            round_id: round.map(|round| round.number),
            prompt: question.prompt.clone(),
            text: text.to_owned(),
            options: round.map(|round| round.options.clone()),
            option_char: round.map(|round| round.option_char.clone()),
            answer_id: answer_id.into(),
            model_id: model_id.to_owned(),
            metadata: Map::new(),
        }
    }

    /// What identifies its question, as [`Question::key`].
    pub fn key(&self) -> (String, u32, &str) {
        let round = self.round_id.unwrap_or(0);
        (self.question_id.to_string(), round, &self.prompt)
    }
}

/// The answers of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers {
    /// In the file's order; of several to one question only the last, in the place of the first.
    pub list: Vec<Answer>,
    /// What was wrong with others.
    pub problems: Problems,
}

impl Answers {
    /// Reads an answer file.
    ///
    /// # Errors
    /// If it cannot be read; single bad lines are [`problems`](Self::problems).
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let mut answers = Self::default();
        let mut seen = HashMap::new();
        jsonl::for_each(path, |number, bytes| {
            let place = || jsonl::place(path, number);
            match serde_json::from_slice::<Answer>(bytes) {
                Ok(answer) => answers.push(answer, place(), &mut seen),
                Err(error) => {
                    let reason = error.to_string();
                    answers
                        .problems
                        .add(ProblemKind::MalformedAnswer, place(), reason);
                }
            }
            Ok(())
        })?;
        Ok(answers)
    }

    /// Answers that are in memory.
    #[cfg(test)]
    pub(crate) fn from_list(list: Vec<Answer>) -> Self {
        let mut answers = Self::default();
        let mut seen = HashMap::new();
        for answer in list {
            let place = format!("question {}", answer.question_id);
            answers.push(answer, place, &mut seen);
        }
        answers
    }

    fn push(
        &mut self,
        answer: Answer,
        place: String,
        seen: &mut HashMap<(String, u32, String), usize>,
    ) {
        if answer.text.trim().is_empty() {
            let reason = format!("question {}", answer.question_id);
            self.problems
                .add(ProblemKind::EmptyAnswer, place.clone(), reason);
        }
        let (id, round, prompt) = answer.key();
        let key = (id, round, prompt.to_owned());
        if let Some(&index) = seen.get(&key) {
            let reason = format!(
                "question {} was answered before; the last answer counts",
                answer.question_id
            );
            self.problems
                .add(ProblemKind::DuplicateAnswer, place, reason);
            self.list[index] = answer;
        } else {
            seen.insert(key, self.list.len());
            self.list.push(answer);
        }
    }
}

/// A file that answers are appended to, by one process at a time. Half a line at its end, which a
/// killed process left behind, is cut off when the file is opened again.
#[derive(Debug)]
pub struct AnswerFile {
    path: PathBuf,
    file: File,
}

impl AnswerFile {
    /// Opens or makes the file, with its folders; also gives what it holds already.
    ///
    /// # Errors
    /// If it cannot be opened, read or repaired, or another process has it open.
    pub fn open(path: &Path) -> Result<(Self, Answers), EvalError> {
        let io = |source| EvalError::Io {
            path: path.to_path_buf(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        if path.exists() {
            // Another kind of file, such as a pipe, is refused.
            files::open(path)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let reason = "another run is writing into it; wait for it, or choose another file";
            return Err(EvalError::benchmark(path, reason));
        }
        if !repair(&mut file).map_err(io)? {
            tracing::warn!(
                "{}: the last line was cut short; its question is asked again",
                path.display()
            );
        }
        let answers = Answers::read(path)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let opened = Self {
            path: path.to_path_buf(),
            file,
        };
        Ok((opened, answers))
    }

    /// Appends answers with one write, so that a killed process leaves at most one line torn.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&mut self, answers: &[Answer]) -> Result<(), EvalError> {
        let mut bytes = Vec::new();
        for answer in answers {
            serde_json::to_writer(&mut bytes, answer).map_err(|source| EvalError::Json {
                path: self.path.clone(),
                source,
            })?;
            bytes.push(b'\n');
        }
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.flush())
            .map_err(|source| EvalError::Io {
                path: self.path.clone(),
                source,
            })
    }
}

/// Ends a last line that is whole, and cuts one that is not; `false` if something was cut.
fn repair(file: &mut File) -> std::io::Result<bool> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut tail = Vec::new();
    let mut start = length;
    // Backwards to the last line break.
    loop {
        let step = start.min(1 << 16);
        if step == 0 {
            break;
        }
        start -= step;
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; step as usize];
        file.read_exact(&mut block)?;
        let found = memchr::memrchr(b'\n', &block);
        let keep = found.map_or(0, |at| at + 1);
        tail.splice(0..0, block[keep..].iter().copied());
        if found.is_some() {
            break;
        }
    }
    if tail.trim_ascii().is_empty() {
        return Ok(true);
    }
    if serde_json::from_slice::<Answer>(&tail).is_ok() {
        file.seek(SeekFrom::End(0))?;
        file.write_all(b"\n")?;
        return Ok(true);
    }
    file.set_len(length - tail.len() as u64)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: i64, text: &str) -> Answer {
        let question = Question {
            position: id as usize,
            id: id.into(),
            image: None,
            prompt: format!("Question {id}?"),
            text: format!("Question {id}?"),
            category: None,
            round: None,
        };
        Answer::new("vqav2", &question, text, "tiny")
    }

    #[test]
    fn keys_come_in_llavas_order() {
        assert_eq!(
            serde_json::to_string(&answer(7, "a cat")).unwrap(),
            r#"{"question_id":7,"prompt":"Question 7?","text":"a cat","answer_id":"vqav2-000007","model_id":"tiny","metadata":{}}"#
        );
    }

    /// A child of another test holds the lock as well, from its fork to its exec.
    fn reopened(path: &Path) -> (AnswerFile, Answers) {
        for _ in 0..1000 {
            if let Ok(opened) = AnswerFile::open(path) {
                return opened;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        AnswerFile::open(path).unwrap()
    }

    #[test]
    fn a_torn_last_line_is_cut_and_a_whole_one_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/answers.jsonl");
        let (mut file, held) = AnswerFile::open(&path).unwrap();
        assert!(held.list.is_empty());
        file.append(&[answer(1, "one"), answer(2, "two")]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let error = AnswerFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("another run is writing"), "{error}");
        drop(file);
        for cut in 1..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut file, held) = reopened(&path);
            assert_eq!(held.problems.total(), 0, "cut at {cut}");
            for id in held.list.len() as i64 + 1..=2 {
                let text = if id == 1 { "one" } else { "two" };
                file.append(&[answer(id, text)]).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn bad_lines_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let lines = [
            serde_json::to_string(&answer(1, "old")).unwrap(),
            "{\"question_id\": 2}".into(),
            String::new(),
            serde_json::to_string(&answer(3, " ")).unwrap(),
            serde_json::to_string(&answer(1, "new")).unwrap(),
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let answers = Answers::read(&path).unwrap();
        let texts: Vec<&str> = answers.list.iter().map(|a| a.text.as_str()).collect();
        assert_eq!(texts, ["new", " "]);
        for kind in [
            ProblemKind::MalformedAnswer,
            ProblemKind::EmptyAnswer,
            ProblemKind::DuplicateAnswer,
        ] {
            assert_eq!(answers.problems.count(kind), 1, "{kind:?}");
        }
        let line = answers.problems.lines()[0].to_string();
        assert!(
            line.starts_with("malformed answer: answers.jsonl line 2: "),
            "{line}"
        );
    }
}
