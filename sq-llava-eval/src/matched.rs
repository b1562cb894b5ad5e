//! Questions paired with their answers.

use std::collections::HashMap;

use crate::EvalError;
use crate::answer::{Answer, Answers};
use crate::problem::{ProblemKind, Problems};
use crate::question::{Question, QuestionId, Questions};

/// Every question with its answer, in the questions' order.
#[derive(Debug)]
pub struct Matched<'a> {
    /// The questions.
    pub questions: &'a Questions,
    /// The answers.
    pub answers: &'a Answers,
    /// `None` where the answer is missing.
    pub pairs: Vec<(&'a Question, Option<&'a Answer>)>,
    /// Those of both files, and of their matching.
    pub problems: Problems,
}

impl<'a> Matched<'a> {
    /// Finds the answer of each question. Of several answers the last one counts. `key` makes of
    /// id, round and prompt what a question and its answer share with no other.
    pub(crate) fn new(
        questions: &'a Questions,
        answers: &'a Answers,
        key: impl Fn((String, u32, &str)) -> String,
    ) -> Self {
        let mut problems = questions.problems.clone();
        problems.extend(&answers.problems);
        let mut found: HashMap<String, &Answer> = HashMap::new();
        for answer in &answers.list {
            if found.insert(key(answer.key()), answer).is_some() {
                problems.add(
                    ProblemKind::DuplicateAnswer,
                    format!("question {}", answer.question_id),
                    "it was answered before; the last answer counts",
                );
            }
        }
        let list = questions.list.iter();
        let pairs: Vec<_> = list
            .map(|question| (question, found.remove(&key(question.key()))))
            .collect();
        for (question, _) in pairs.iter().filter(|(_, answer)| answer.is_none()) {
            problems.add(
                ProblemKind::MissingAnswer,
                format!("question {}", question.id),
                "it counts as wrong",
            );
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
        Self {
            questions,
            answers,
            pairs,
            problems,
        }
    }

    /// Questions that have an answer.
    pub fn answered(&self) -> impl Iterator<Item = (&'a Question, &'a Answer)> + '_ {
        self.pairs
            .iter()
            .filter_map(|(question, answer)| answer.map(|answer| (*question, answer)))
    }

    /// # Errors
    /// If no question at all has an answer: then they belong to other questions.
    pub fn some_answered(&self) -> Result<(), EvalError> {
        if self.answered().next().is_some() {
            return Ok(());
        }
        let (questions, answers) = (&self.questions.list, &self.answers.list);
        let reason = match (questions.first(), answers.first()) {
            (Some(question), Some(answer)) => format!(
                "none of the {} answers belongs to one of these questions: the first answer is to \
                 question {}{}, the first question is {}",
                answers.len(),
                answer.question_id,
                match answer.round_id {
                    Some(round) => format!(" (round {round})"),
                    None => String::new(),
                },
                question.id
            ),
            _ => {
                let mut problems = self.problems.lines().iter();
                let first = problems.find(|p| p.kind != ProblemKind::MissingAnswer);
                let why = first.map_or(String::new(), |problem| format!("; the first: {problem}"));
                format!("no question has an answer: nothing is scored{why}")
            }
        };
        Err(EvalError::benchmark(&self.questions.path, reason))
    }
}
