//! MME: the release's questions with their answers, and the result tables of its calculator.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::question::{ImageRef, Question, Questions, SHORT_ANSWER};
use super::{Matched, ProblemKind, SubmissionFile};
use crate::EvalError;
use sq_llava_data::files;

/// Ends every question of the release.
const YES_OR_NO: &str = "Please answer yes or no.";

/// A question of the release, whatever a prompt added to it: without the endings, in one spacing.
pub fn question_of(prompt: &str) -> String {
    let text = prompt.replace(SHORT_ANSWER, "").replace(YES_OR_NO, "");
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// `category/file.png` as its category and its file without the ending.
pub fn category_and_file(id: &str) -> Option<(&str, &str)> {
    let (category, rest) = id.split_once('/')?;
    let file = rest.rsplit('/').next()?;
    Some((category, file.split('.').next()?))
}

/// A question of the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truth {
    /// As the release writes it.
    pub question: String,
    /// `yes` or `no`, in the release's case.
    pub answer: String,
}

/// The release: for each category and file its questions with their answers.
#[derive(Debug, Clone, Default)]
pub struct References {
    /// By (category, file without ending).
    pub truths: BTreeMap<(String, String), Vec<Truth>>,
    /// Lines that are no question with an answer: where, and why.
    pub malformed: Vec<(String, String)>,
}

impl References {
    /// Reads `MME_Benchmark_release_version`.
    ///
    /// # Errors
    /// If it cannot be read or holds no question.
    pub fn read(release: &Path) -> Result<Self, EvalError> {
        let mut found = Self::default();
        for folder in entries(release)?.iter().filter(|path| path.is_dir()) {
            let category = name(folder);
            let apart = folder.join("questions_answers_YN");
            let texts = if apart.is_dir() { &apart } else { folder };
            for path in entries(texts)? {
                if path.extension().is_some_and(|e| e == "txt") {
                    found.read_file(&category, &path)?;
                }
            }
        }
        if found.truths.is_empty() {
            return Err(EvalError::benchmark(
                release,
                "holds no <category>/<file>.txt with questions and answers: \
                 this is not MME_Benchmark_release_version",
            ));
        }
        Ok(found)
    }

    fn read_file(&mut self, category: &str, path: &Path) -> Result<(), EvalError> {
        let text = files::read_to_string(path)?;
        let file = name(&path.with_extension(""));
        let mut truths = Vec::new();
        let filled = text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty());
        for (number, line) in filled {
            match line.trim().split_once('\t') {
                Some((question, answer))
                    if ["yes", "no"].contains(&answer.to_lowercase().as_str()) =>
                {
                    truths.push(Truth {
                        question: question.to_owned(),
                        answer: answer.to_owned(),
                    });
                }
                _ => self.malformed.push((
                    format!("{category}/{file}.txt line {}", number + 1),
                    "no question, tab, yes or no".into(),
                )),
            }
        }
        self.truths.insert((category.to_owned(), file), truths);
        Ok(())
    }

    /// The truth of a question.
    pub fn truth(&self, question: &Question) -> Option<&Truth> {
        let id = question.id.to_string();
        let (category, file) = category_and_file(&id)?;
        let truths = self.truths.get(&(category.to_owned(), file.to_owned()))?;
        let asked = question_of(&question.prompt);
        truths
            .iter()
            .find(|truth| question_of(&truth.question) == asked)
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let io = |source| EvalError::Io {
        path: folder.to_path_buf(),
        source,
    };
    let listing = std::fs::read_dir(folder).map_err(io)?;
    let mut found = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(io)?;
    found.sort();
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Questions from the release itself.
pub(super) fn read_questions(release: &Path, questions: &mut Questions) -> Result<(), EvalError> {
    let references = References::read(release)?;
    for (place, reason) in references.malformed {
        questions
            .problems
            .add(ProblemKind::MalformedQuestion, place, reason);
    }
    let mut position = 0;
    for ((category, file), truths) in references.truths {
        let folder = release.join(&category);
        let apart = folder.join("images");
        let (folder, prefix) = if apart.is_dir() {
            (apart, format!("{category}/images"))
        } else {
            (folder, category.clone())
        };
        let image = ["jpg", "png", "jpeg"]
            .iter()
            .map(|ending| format!("{file}.{ending}"))
            .find(|name| folder.join(name).is_file());
        let Some(image) = image else {
            questions.problems.add(
                ProblemKind::MissingImage,
                format!("question {category}/{file}"),
                format!("no {file}.jpg or .png in {}", folder.display()),
            );
            continue;
        };
        for truth in truths {
            let prompt = format!("{}\n{SHORT_ANSWER}", truth.question);
            questions.push(Question {
                position,
                id: format!("{category}/{image}").as_str().into(),
                image: Some(ImageRef::File(format!("{prefix}/{image}"))),
                text: prompt.clone(),
                prompt,
                category: Some(category.clone()),
                round: None,
            });
            position += 1;
        }
    }
    Ok(())
}

/// `<category>.txt` with lines `file.txt ⇥ question ⇥ truth ⇥ answer`, for the calculator.
pub(super) fn submission(
    references: &References,
    matched: &Matched<'_>,
) -> Result<Vec<SubmissionFile>, EvalError> {
    let mut tables: Vec<(String, String)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (question, answer) in matched.answered() {
        let id = question.id.to_string();
        let (Some((category, file)), Some(truth)) =
            (category_and_file(&id), references.truth(question))
        else {
            continue;
        };
        let place = *places.entry(category.to_owned()).or_insert_with(|| {
            tables.push((category.to_owned(), String::new()));
            tables.len() - 1
        });
        // A line break or tab inside an answer would break the table.
        let words: Vec<&str> = answer.text.split_whitespace().collect();
        let line = format!(
            "{file}.txt\t{}\t{}\t{}\n",
            truth.question,
            truth.answer,
            words.join(" ")
        );
        tables[place].1.push_str(&line);
    }
    Ok(tables
        .into_iter()
        .map(|(category, text)| SubmissionFile {
            name: format!("mme/{category}.txt"),
            bytes: text.into_bytes(),
        })
        .collect())
}
