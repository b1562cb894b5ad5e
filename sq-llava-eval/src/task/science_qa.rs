//! ScienceQA: the choice in an answer, accuracies by kind of context, and the result file.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Task;
use crate::EvalError;
use crate::answer::Answer;
use crate::jsonl::read_json;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::ProblemKind;
use crate::protocol::Protocol;
use crate::question::{ImageRef, LETTER_ANSWER, Question, QuestionId, QuestionOptions, Questions};
use crate::report::{Report, share};
use crate::submission::SubmissionFile;
use sq_llava_data::IMAGE_TOKEN;

/// The split that is evaluated.
const SPLIT: &str = "test";

/// ScienceQA.
#[derive(Debug)]
pub struct ScienceQa;

impl Task for ScienceQa {
    fn name(&self) -> &'static str {
        "scienceqa"
    }

    fn title(&self) -> &'static str {
        "ScienceQA"
    }

    fn crops(&self, _protocol: Protocol) -> bool {
        true
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["scienceqa"],
            questions: &["llava_test_CQM-A.json", "llava_test*.json"],
            images: &["images/test", "images"],
            annotations: &["problems.json"],
        })
    }

    fn read(&self, files: &Files, options: &QuestionOptions) -> Result<Questions, EvalError> {
        own_questions(files, options)
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        score(&References::read(references)?, matched, report);
        Ok(())
    }

    fn submit(
        &self,
        matched: &Matched<'_>,
        references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        match references {
            Some(references) => result(&References::read(references)?, matched),
            None => Ok(vec![]),
        }
    }
}

#[derive(Deserialize)]
struct Item {
    id: QuestionId,
    #[serde(default)]
    image: Option<String>,
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

/// Questions from LLaVA's array (`llava_test_CQM-A.json`). The recorded prompt keeps the image's
/// placeholder: the scorer sees by it which questions had a picture.
fn own_questions(files: &Files, options: &QuestionOptions) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    let items: Vec<Value> = read_json(&files.questions)?;
    for (position, value) in items.into_iter().enumerate() {
        let item = match serde_json::from_value::<Item>(value) {
            Ok(item) => item,
            Err(error) => {
                let place = format!("question #{position}");
                questions
                    .problems
                    .add(ProblemKind::MalformedQuestion, place, error.to_string());
                continue;
            }
        };
        let Some(first) = item.conversations.first() else {
            let place = format!("question {}", item.id);
            questions
                .problems
                .add(ProblemKind::MalformedQuestion, place, "no conversation");
            continue;
        };
        if options.images_only && item.image.is_none() {
            continue;
        }
        let mut text = first.value.replace(IMAGE_TOKEN, "").trim().to_owned();
        if options.letter && !text.is_empty() {
            text = format!("{text}\n{LETTER_ANSWER}");
        }
        let prompt = match &item.image {
            Some(_) => format!("{IMAGE_TOKEN}\n{text}"),
            None => text.clone(),
        };
        questions.push(Question {
            position,
            id: item.id,
            image: item.image.map(ImageRef::File),
            prompt,
            text,
            category: None,
            round: None,
        });
    }
    Ok(questions)
}

/// Letters that an answer may name.
const LETTERS: [char; 5] = ['A', 'B', 'C', 'D', 'E'];

/// Index of the choice that an answer names: it is exactly a letter, begins with a letter and
/// `. `, or says `The answer is X` and one more character exactly once. `None` for anything else,
/// and for a letter beyond the choices.
pub fn choice(text: &str, choices: usize) -> Option<usize> {
    let letter = letter(text)?;
    let index = LETTERS.iter().position(|known| *known == letter)?;
    Some(index).filter(|index| *index < choices)
}

fn letter(text: &str) -> Option<char> {
    let mut letters = text.chars();
    let first = letters.next()?;
    let rest = letters.as_str();
    if LETTERS.contains(&first) && (rest.is_empty() || rest.starts_with(". ")) {
        return Some(first);
    }
    let mut said = text
        .match_indices("The answer is ")
        .filter_map(|(at, said)| {
            let mut after = text[at + said.len()..].chars();
            let letter = after.next().filter(char::is_ascii_uppercase)?;
            after.next().filter(|next| *next != '\n')?;
            Some(letter)
        });
    let letter = said.next()?;
    match said.next() {
        None => Some(letter),
        Some(_) => None,
    }
}

/// Whether a choice is the right one.
pub fn is_right(choice: Option<usize>, answer: usize) -> bool {
    choice == Some(answer)
}

/// One problem of `problems.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Exercise {
    /// The options.
    choices: Vec<String>,
    /// Index of the right one.
    answer: usize,
    /// Text to go with it; may be empty.
    #[serde(default)]
    hint: Option<String>,
    /// File name of its picture.
    #[serde(default)]
    image: Option<String>,
}

/// The problems of the test split.
#[derive(Debug, Clone, Default)]
struct References {
    /// By question id.
    exercises: HashMap<String, Exercise>,
    /// Ids of the split, in order.
    split: Vec<String>,
    /// Lines about malformed problems.
    malformed: Vec<(String, String)>,
}

impl References {
    /// Reads `problems.json` (or the folder that holds it) and the `pid_splits.json` in its folder.
    fn read(path: &Path) -> Result<Self, EvalError> {
        let folder = if path.is_dir() {
            path
        } else {
            path.parent().unwrap_or(path)
        };
        let file = folder.join("problems.json");
        let problems: Map<String, Value> = read_json(&file)?;
        let splits: HashMap<String, Vec<String>> = read_json(&folder.join("pid_splits.json"))?;
        let split = splits.get(SPLIT).cloned().ok_or_else(|| {
            let reason = format!("has no split \"{SPLIT}\"");
            EvalError::benchmark(folder.join("pid_splits.json"), reason)
        })?;
        let mut found = Self {
            split,
            ..Self::default()
        };
        for id in &found.split {
            let Some(value) = problems.get(id) else {
                let reason = format!("has no problem {id}, which pid_splits.json lists");
                return Err(EvalError::benchmark(&file, reason));
            };
            match Exercise::deserialize(value) {
                Ok(exercise) if exercise.answer < exercise.choices.len() => {
                    found.exercises.insert(id.clone(), exercise);
                }
                Ok(_) => found
                    .malformed
                    .push((id.clone(), "\"answer\" is none of the choices".into())),
                Err(error) => found.malformed.push((id.clone(), error.to_string())),
            }
        }
        Ok(found)
    }
}

impl Exercise {
    /// Which of the four accuracies it counts for: image, text, no context, total.
    fn groups(&self, answer: Option<&&Answer>) -> [bool; 4] {
        let with_image = self.image.as_deref().is_some_and(|name| !name.is_empty())
            || answer.is_some_and(|answer| answer.prompt.contains(IMAGE_TOKEN));
        let with_text = self.hint.as_deref().is_some_and(|hint| !hint.is_empty());
        [with_image, with_text, !with_image && !with_text, true]
    }
}

fn score(references: &References, matched: &Matched<'_>, report: &mut Report) {
    for (id, reason) in &references.malformed {
        let place = format!("problem {id}");
        report
            .problems
            .add(ProblemKind::BadReference, place, reason.clone());
    }
    let answers: HashMap<String, &Answer> = matched
        .answered()
        .map(|(question, answer)| (question.id.to_string(), answer))
        .collect();
    let asked: HashSet<String> = matched
        .pairs
        .iter()
        .map(|(question, _)| question.id.to_string())
        .collect();
    if !references.split.iter().any(|id| asked.contains(id)) {
        report_other_split(matched, report);
        return;
    }
    let mut groups = [
        ("image accuracy", 0, 0),
        ("text accuracy", 0, 0),
        ("no-context accuracy", 0, 0),
        ("total accuracy", 0, 0),
    ];
    for id in &references.split {
        let Some(exercise) = references.exercises.get(id) else {
            continue;
        };
        let answer = answers.get(id);
        if !asked.contains(id) {
            let reason = "the question file lacks this problem of the test split";
            report
                .problems
                .add(ProblemKind::MissingAnswer, format!("problem {id}"), reason);
        }
        let found = answer.and_then(|answer| choice(&answer.text, exercise.choices.len()));
        if let (Some(answer), None) = (answer, found) {
            report.problems.add(
                ProblemKind::UnclearAnswer,
                format!("problem {id}"),
                format!("\"{}\" names no choice; it counts as wrong", answer.text),
            );
        }
        let right = usize::from(is_right(found, exercise.answer));
        let member = exercise.groups(answer);
        for ((_, hits, count), member) in groups.iter_mut().zip(member) {
            *hits += right * usize::from(member);
            *count += usize::from(member);
        }
    }
    for (name, right, count) in groups {
        report.percent(name, share(right, count), count);
    }
}

fn report_other_split(matched: &Matched<'_>, report: &mut Report) {
    let first = matched.pairs.first().map(|(question, _)| &question.id);
    let place = first.map_or_else(String::new, |id| format!("question {id}"));
    let reason = "the test split has no problem with the id of any question";
    report
        .problems
        .add(ProblemKind::BadReference, place, reason);
}

/// `{acc, correct, count, results: {id: index or −1}, outputs: {id: text}}`, as the script's
/// `--output-result`.
fn result(
    references: &References,
    matched: &Matched<'_>,
) -> Result<Vec<SubmissionFile>, EvalError> {
    let answers: HashMap<String, &str> = matched
        .answered()
        .map(|(question, answer)| (question.id.to_string(), answer.text.as_str()))
        .collect();
    let (mut results, mut outputs) = (Map::new(), Map::new());
    let mut correct = 0usize;
    for id in &references.split {
        let Some(exercise) = references.exercises.get(id) else {
            continue;
        };
        let text = answers.get(id).copied().unwrap_or("FAILED");
        let index = choice(text, exercise.choices.len());
        correct += usize::from(is_right(index, exercise.answer));
        results.insert(id.clone(), index.map_or(json!(-1), |index| json!(index)));
        outputs.insert(id.clone(), text.into());
    }
    let count = results.len();
    let accuracy = (count > 0).then(|| 100.0 * correct as f64 / count as f64);
    SubmissionFile::json(
        "scienceqa_result.json",
        &json!({
            "acc": accuracy,
            "correct": correct,
            "count": count,
            "results": results,
            "outputs": outputs,
        }),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::{Fixture, text_of};

    #[test]
    fn science_qa_by_kind_of_context() {
        let fixture = Fixture::new(&ScienceQa, "llava_test_CQM-A.json")
            .json(
                "llava_test_CQM-A.json",
                &json!([
                    {"id": "4", "image": "4/image.png", "conversations":
                        [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"}, {"from": "gpt", "value": "B"}]},
                    {"id": "5", "conversations": [{"from": "human", "value": "Why?\nA. x\nB. y"}]},
                    {"id": "6", "conversations": [{"from": "human", "value": "How?\nA. x\nB. y"}]},
                    {"id": "9", "conversations": []},
                ]),
            )
            .json("pid_splits.json", &json!({"test": ["4", "5", "6"], "train": ["1"]}))
            .json(
                "problems.json",
                &json!({
                    "4": {"choices": ["x", "y"], "answer": 1, "hint": "", "image": "image.png"},
                    "5": {"choices": ["x", "y"], "answer": 0, "hint": "a text", "image": null},
                    "6": {"choices": ["x", "y"], "answer": 0, "hint": "", "image": null},
                }),
            )
            .annotations("problems.json");
        let questions = fixture.questions();
        let letter = "Answer with the option's letter from the given choices directly.";
        assert_eq!(
            questions.list[0].text,
            format!("Which?\nA. x\nB. y\n{letter}")
        );
        assert_eq!(
            questions.list[0].prompt,
            format!("<image>\n{}", questions.list[0].text)
        );
        assert_eq!(questions.problems.count(ProblemKind::MalformedQuestion), 1);
        let plain = QuestionOptions {
            letter: false,
            images_only: true,
            ..QuestionOptions::default()
        };
        let plain = fixture.questions_with(&plain);
        assert_eq!(plain.list.len(), 1);
        assert_eq!(plain.list[0].text, "Which?\nA. x\nB. y");
        let given = fixture.answers(&questions, |q| {
            Some(["B", "The answer is A.", "maybe"][q.position].into())
        });
        let report = fixture.score(&questions, &given);
        for (name, value) in [
            ("image accuracy", 100.0),
            ("text accuracy", 100.0),
            ("no-context accuracy", 0.0),
            ("total accuracy", 200.0 / 3.0),
        ] {
            assert!((report.value(name).unwrap() - value).abs() < 1e-9, "{name}");
        }
        assert_eq!(report.problems.count(ProblemKind::UnclearAnswer), 1);
        let result: Value =
            serde_json::from_str(&text_of(&fixture.submission(&questions, &given))).unwrap();
        assert_eq!(result["results"], json!({"4": 1, "5": 0, "6": -1}));
        assert_eq!(result["count"], 3);
    }

    #[test]
    fn fault_20_scienceqa_of_another_split_is_an_error() {
        let fixture = Fixture::new(&ScienceQa, "q.json")
            .json(
                "q.json",
                &json!([{"id": "7", "conversations": [{"from": "human", "value": "Which?"}]}]),
            )
            .json(
                "problems.json",
                &json!({"8": {"choices": ["a", "b"], "answer": 0}}),
            )
            .json("pid_splits.json", &json!({"test": ["8"]}))
            .annotations("problems.json");
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |_| Some("A".into()));
        let error = fixture.refused(&questions, &given);
        assert!(
            error.contains("question 7") && error.contains("test split"),
            "{error}"
        );
    }

    #[test]
    fn fault_20_a_number_that_is_not_there_stands_beside_no_published_one() {
        // Only a question without a picture: papers print the accuracy of those with one.
        let fixture = Fixture::new(&ScienceQa, "q.json")
            .json(
                "q.json",
                &json!([{"id": "8", "conversations": [{"from": "human", "value": "Which?"}]}]),
            )
            .json(
                "problems.json",
                &json!({"8": {"choices": ["a", "b"], "answer": 0, "hint": "Read."}}),
            )
            .json("pid_splits.json", &json!({"test": ["8"]}))
            .annotations("problems.json");
        let questions = fixture.questions();
        let report = fixture.score(
            &questions,
            &fixture.answers(&questions, |_| Some("A".into())),
        );
        assert_eq!(report.value("image accuracy"), None);
        assert_eq!(report.value("text accuracy"), Some(100.0));
        assert!(
            !report
                .metrics
                .iter()
                .any(|metric| report.is_headline(metric))
        );
        let markdown = Report::markdown(&[report], "tiny");
        assert!(markdown.contains("| tiny | – |"), "{markdown}");
    }
}
