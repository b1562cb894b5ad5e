//! MME: accuracy and accuracy+ (both questions of a picture right), summed over subtasks; the
//! release's questions with their answers; the tables of its calculator.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::{Task, read_jsonl, without_reference};
use crate::EvalError;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::ProblemKind;
use crate::question::{Question, QuestionOptions, Questions, SHORT_ANSWER};
use crate::report::{Report, share};
use crate::submission::SubmissionFile;
use sq_llava_data::files;

/// Subtasks of perception.
const PERCEPTION: [&str; 10] = [
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
];

/// Subtasks of cognition.
const COGNITION: [&str; 4] = [
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
];

/// MME.
#[derive(Debug)]
pub struct Mme;

impl Task for Mme {
    fn name(&self) -> &'static str {
        "mme"
    }

    fn title(&self) -> &'static str {
        "MME"
    }

    fn max_new_tokens(&self) -> usize {
        128
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["MME", "mme"],
            questions: &["llava_mme.jsonl", "MME_Benchmark_release_version"],
            images: &["MME_Benchmark_release_version"],
            annotations: &["MME_Benchmark_release_version"],
        })
    }

    fn read(&self, files: &Files, _options: &QuestionOptions) -> Result<Questions, EvalError> {
        match files.questions.is_dir() {
            true => own_questions(files),
            false => read_jsonl(files),
        }
    }

    /// Its ids are files, each with two questions.
    fn identified_by(&self, prompt: &str) -> Option<String> {
        Some(question_of(prompt))
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        let references = References::read(references)?;
        for (place, reason) in &references.malformed {
            report
                .problems
                .add(ProblemKind::BadReference, place.clone(), reason.clone());
        }
        let mut subtasks: BTreeMap<String, Subtask> = BTreeMap::new();
        for (question, answer) in &matched.pairs {
            let id = question.id.to_string();
            let (Some((category, file)), Some(truth)) =
                (category_and_file(&id), references.truth(question))
            else {
                let reason = "the release has no such question; it is not scored";
                without_reference(&id, reason, &mut report.problems);
                continue;
            };
            let said = answer.map(|answer| said(&answer.text));
            if said == Some(None) {
                let reason = "neither yes nor no; it counts as wrong";
                report
                    .problems
                    .add(ProblemKind::UnclearAnswer, format!("question {id}"), reason);
            }
            let right = said.flatten() == Some(truth.answer.to_lowercase().as_str());
            let subtask = subtasks.entry(category.to_owned()).or_default();
            subtask.add(file, right);
        }
        add_subtasks(&subtasks, report);
        Ok(())
    }

    fn submit(
        &self,
        matched: &Matched<'_>,
        references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        let Some(references) = references else {
            return Ok(vec![]);
        };
        Ok(tables(&References::read(references)?, matched))
    }
}

/// Adds the sums of perception and cognition, then each subtask.
fn add_subtasks(subtasks: &BTreeMap<String, Subtask>, report: &mut Report) {
    for (category, subtask) in subtasks {
        for (file, (count, _)) in &subtask.pictures {
            if *count != 2 {
                report.problems.add(
                    ProblemKind::MissingAnswer,
                    format!("{category}/{file}"),
                    format!("{count} question in place of two; its accuracy+ counts as wrong"),
                );
            }
        }
    }
    for (name, group) in [
        ("perception", &PERCEPTION[..]),
        ("cognition", &COGNITION[..]),
    ] {
        let found: Vec<&Subtask> = group.iter().filter_map(|s| subtasks.get(*s)).collect();
        let points: Vec<f64> = found.iter().filter_map(|s| s.points()).collect();
        let sum = (!points.is_empty()).then(|| points.iter().sum());
        let count = found.iter().map(|subtask| subtask.questions()).sum();
        report.points(name, sum, count);
    }
    for (category, subtask) in subtasks {
        report.points(category, subtask.points(), subtask.questions());
    }
}

/// `yes` or `no` if it is in the first four characters, in any case.
fn said(text: &str) -> Option<&'static str> {
    let start: String = text.to_lowercase().chars().take(4).collect();
    ["yes", "no"].into_iter().find(|word| start.contains(word))
}

/// Questions of one subtask.
#[derive(Debug, Clone, Default, PartialEq)]
struct Subtask {
    /// For each picture, how many questions, and how many were answered rightly.
    pictures: BTreeMap<String, (usize, usize)>,
}

impl Subtask {
    /// Counts one answer.
    fn add(&mut self, picture: &str, right: bool) {
        let (count, hits) = self.pictures.entry(picture.to_owned()).or_default();
        *count += 1;
        *hits += usize::from(right);
    }

    /// Share of questions answered rightly.
    fn accuracy(&self) -> Option<f64> {
        let hits = self.pictures.values().map(|(_, hits)| hits).sum();
        share(hits, self.questions())
    }

    /// Share of pictures with both questions answered rightly.
    fn accuracy_plus(&self) -> Option<f64> {
        let both = self
            .pictures
            .values()
            .filter(|(count, hits)| *count == 2 && *hits == 2);
        share(both.count(), self.pictures.len())
    }

    /// Accuracy and accuracy+ in percent, summed: at most 200. `None` without a question.
    fn points(&self) -> Option<f64> {
        Some(100.0 * self.accuracy()? + 100.0 * self.accuracy_plus()?)
    }

    /// Questions.
    fn questions(&self) -> usize {
        self.pictures.values().map(|(count, _)| count).sum()
    }
}

/// Ends every question of the release.
const YES_OR_NO: &str = "Please answer yes or no.";

/// The question of the release in a prompt: without endings, its words separated by one space.
fn question_of(prompt: &str) -> String {
    let text = prompt.replace(SHORT_ANSWER, "").replace(YES_OR_NO, "");
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// `category/file.png` as its category and its file without the ending.
fn category_and_file(id: &str) -> Option<(&str, &str)> {
    let (category, rest) = id.split_once('/')?;
    let file = rest.rsplit('/').next()?;
    Some((category, file.split('.').next()?))
}

/// A question of the release.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Truth {
    /// As the release writes it.
    question: String,
    /// `yes` or `no`, in the release's case.
    answer: String,
}

/// The release: for each category and file its questions with their answers.
#[derive(Debug, Clone, Default)]
struct References {
    /// By (category, file without ending).
    truths: BTreeMap<(String, String), Vec<Truth>>,
    /// Lines that are not a question with an answer: where, and why.
    malformed: Vec<(String, String)>,
}

impl References {
    /// Reads `MME_Benchmark_release_version`.
    fn read(release: &Path) -> Result<Self, EvalError> {
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
    fn truth(&self, question: &Question) -> Option<&Truth> {
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
    let io = |source| EvalError::io(folder, source);
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
fn own_questions(files: &Files) -> Result<Questions, EvalError> {
    let release = &files.questions;
    let mut questions = Questions::new(files);
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
            let id = format!("{category}/{image}").as_str().into();
            let shown = format!("{prefix}/{image}");
            questions.push(Question {
                category: Some(category.clone()),
                ..Question::about(position, id, shown, prompt)
            });
            position += 1;
        }
    }
    Ok(questions)
}

/// `<category>.txt` with lines `file.txt ⇥ question ⇥ truth ⇥ answer`, for the calculator.
fn tables(references: &References, matched: &Matched<'_>) -> Vec<SubmissionFile> {
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
    tables
        .into_iter()
        .map(|(category, text)| SubmissionFile {
            name: format!("mme/{category}.txt"),
            bytes: text.into_bytes(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::{Fixture, text_of};

    #[test]
    fn points_are_accuracy_and_pairs() {
        let mut subtask = Subtask::default();
        for (picture, right) in [("a", true), ("a", true), ("b", true), ("b", false)] {
            subtask.add(picture, right);
        }
        assert_eq!(Subtask::default().points(), None);
        assert_eq!(subtask.points(), Some(75.0 + 50.0));
        // A picture with one question can never have both.
        subtask.add("c", true);
        assert!((subtask.points().unwrap() - (80.0 + 100.0 / 3.0)).abs() < 1e-9);
        assert_eq!(said("Yes, it is"), Some("yes"));
        assert_eq!(said("NO"), Some("no"));
        assert_eq!(said("It is not"), None);
        assert_eq!(said(""), None);
    }

    #[test]
    fn mme_pairs_and_tables() {
        let fixture = Fixture::new(&Mme, "llava_mme.jsonl")
            .lines(
                "llava_mme.jsonl",
                &[
                    json!({"question_id": "color/001.jpg", "image": "color/001.jpg",
                        "text": "Is it red?\nAnswer the question using a single word or phrase."}),
                    json!({"question_id": "color/001.jpg", "image": "color/001.jpg",
                        "text": "Is it blue?\nAnswer the question using a single word or phrase."}),
                    json!({"question_id": "OCR/002.jpg", "image": "OCR/images/002.jpg",
                        "text": "Is it \"x\"?\nAnswer the question using a single word or phrase."}),
                ],
            )
            .file(
                "release/color/001.txt",
                "Is it red? Please answer yes or no.\tYes\nIs it blue?  Please answer yes or no.\tNo\n",
            )
            .file(
                "release/OCR/questions_answers_YN/002.txt",
                "Is it \"x\"? Please answer yes or no.\tYes\nbroken line\n",
            )
            .file("release/OCR/images/002.jpg", "")
            .annotations("release");
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |q| {
            Some(["Yes", "no, it\nis", "Perhaps"][q.position].into())
        });
        let report = fixture.score(&questions, &given);
        assert_eq!(report.value("color"), Some(200.0));
        assert_eq!(report.value("OCR"), Some(0.0));
        assert_eq!(report.value("perception"), Some(200.0));
        for (kind, count) in [
            (ProblemKind::UnclearAnswer, 1),
            (ProblemKind::BadReference, 1),
            (ProblemKind::MissingAnswer, 1),
        ] {
            assert_eq!(report.problems.count(kind), count, "{kind:?}");
        }
        let files = fixture.submission(&questions, &given);
        assert_eq!(files[0].name, "mme/color.txt");
        assert_eq!(
            text_of(&files),
            "001.txt\tIs it red? Please answer yes or no.\tYes\tYes\n\
             001.txt\tIs it blue?  Please answer yes or no.\tNo\tno, it is\n"
        );
        // The release itself has pictures and questions.
        let own = Fixture::new(&Mme, "release")
            .file("release/color/001.txt", "Is it red?\tYes\n")
            .file("release/color/001.jpg", "")
            .file("release/color/003.txt", "Is it?\tNo\n");
        let questions = own.questions();
        assert_eq!(questions.list[0].id, "color/001.jpg".into());
        assert_eq!(questions.problems.count(ProblemKind::MissingImage), 1);
    }
}
