//! Questions beside their answers.

use std::collections::HashMap;

use super::answer::{Answer, Answers};
use super::problem::{ProblemKind, Problems};
use super::question::{Question, QuestionId, Questions};
use super::{Benchmark, mme, text_vqa};

/// Every question with its answer, in the questions' order.
#[derive(Debug)]
pub struct Matched<'a> {
    /// `None` where the answer is missing.
    pub pairs: Vec<(&'a Question, Option<&'a Answer>)>,
    /// Those of both files, and of their matching.
    pub problems: Problems,
}

impl<'a> Matched<'a> {
    /// Questions that have an answer.
    pub fn answered(&self) -> impl Iterator<Item = (&'a Question, &'a Answer)> + '_ {
        self.pairs
            .iter()
            .filter_map(|(question, answer)| answer.map(|answer| (*question, answer)))
    }
}

/// Finds the answer of each question. Of several answers the last one counts.
pub fn matched<'a>(questions: &'a Questions, answers: &'a Answers) -> Matched<'a> {
    let benchmark = questions.benchmark;
    let mut problems = questions.problems.clone();
    problems.extend(&answers.problems);
    let mut found: HashMap<String, &Answer> = HashMap::new();
    for answer in &answers.list {
        let (id, round, prompt) = answer.key();
        if found
            .insert(key(benchmark, &id, round, prompt), answer)
            .is_some()
        {
            problems.add(
                ProblemKind::DuplicateAnswer,
                format!("question {id}"),
                "it was answered before; the last answer counts",
            );
        }
    }
    let pairs: Vec<_> = questions
        .list
        .iter()
        .map(|question| {
            let (id, round, prompt) = question.key();
            (question, found.remove(&key(benchmark, &id, round, prompt)))
        })
        .collect();
    for (question, answer) in &pairs {
        if answer.is_none() {
            problems.add(
                ProblemKind::MissingAnswer,
                format!("question {}", question.id),
                "it counts as wrong",
            );
        }
    }
    let mut unknown: Vec<&QuestionId> = found.values().map(|a| &a.question_id).collect();
    unknown.sort();
    for id in unknown {
        problems.add(
            ProblemKind::UnknownAnswer,
            format!("question {id}"),
            "it is not in the question file; the answer is not scored",
        );
    }
    Matched { pairs, problems }
}

/// Where ids are not unique, the question itself tells them apart.
fn key(benchmark: Benchmark, id: &str, round: u32, prompt: &str) -> String {
    match benchmark {
        Benchmark::TextVqa => format!(
            "{id}\n{}",
            text_vqa::question_of(prompt).unwrap_or(prompt.into())
        ),
        Benchmark::Mme => format!("{id}\n{}", mme::question_of(prompt)),
        _ => format!("{round}\n{id}"),
    }
}
