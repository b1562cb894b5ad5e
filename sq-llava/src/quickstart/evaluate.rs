//! Asking a model questions whose answers are known.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use sq_llava_data::Ending;
use sq_llava_data::image::PreparedImage;
use sq_llava_model::{AnswerOptions, Assistant, Request};

use super::spread::Columns;
use crate::world::HeldOut;

/// Questions that go through the model together.
const BATCH: usize = 32;

/// Right answers among all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Right ones.
    pub right: usize,
    /// All.
    pub all: usize,
}

impl Score {
    /// Part of right answers.
    pub fn part(self) -> f64 {
        self.right as f64 / self.all.max(1) as f64
    }

    fn count(&mut self, right: bool) {
        self.right += usize::from(right);
        self.all += 1;
    }
}

/// How well questions were answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// By kind of question.
    pub kinds: BTreeMap<String, Score>,
    /// All of them.
    pub all: Score,
    /// F1 of "yes" over the questions whose answer is yes or no; absent where there is none.
    pub yes_f1: Option<f64>,
}

impl Scores {
    /// Compares answers with those that are right, ignoring case, spaces around and a full stop
    /// at the end.
    pub fn of(questions: &[HeldOut], answers: &[String]) -> Self {
        let mut scores = Self::default();
        let (mut hits, mut said, mut due, mut yes_no) = (0usize, 0usize, 0usize, false);
        for (question, answer) in questions.iter().zip(answers) {
            let (answer, truth) = (plain(answer), plain(&question.answer));
            let right = answer == truth;
            scores.all.count(right);
            let kind = scores.kinds.entry(question.kind.clone()).or_default();
            kind.count(right);
            if truth == "yes" || truth == "no" {
                yes_no = true;
                due += usize::from(truth == "yes");
                said += usize::from(answer == "yes");
                hits += usize::from(answer == "yes" && truth == "yes");
            }
        }
        // Harmonic mean of precision and recall.
        scores.yes_f1 = yes_no.then(|| 2.0 * hits as f64 / (said + due).max(1) as f64);
        scores
    }
}

/// Column of all questions.
pub const ALL: &str = "all";

/// Column of the F1 of yes/no questions.
const F1: &str = "yes/no F1";

impl Scores {
    /// What stands in a table's columns, in per cent.
    pub fn columns(&self) -> Columns {
        let kinds = self.kinds.iter();
        let mut columns: Columns = kinds
            .map(|(kind, score)| (kind.clone(), 100.0 * score.part()))
            .collect();
        columns.insert(ALL.into(), 100.0 * self.all.part());
        columns.extend(self.yes_f1.map(|f1| (F1.into(), 100.0 * f1)));
        columns
    }
}

/// Whether an answer is right.
pub fn is_right(question: &HeldOut, answer: &str) -> bool {
    plain(answer) == plain(&question.answer)
}

fn plain(answer: &str) -> String {
    answer.trim().trim_end_matches('.').to_lowercase()
}

/// What the most frequent answer of each kind would get: the best constant answer. `seen` are the
/// training data's questions, by kind.
pub fn chance(questions: &[HeldOut], seen: &[HeldOut]) -> Scores {
    let mut counts: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for one in seen {
        let answers = counts.entry(&one.kind).or_default();
        *answers.entry(plain(&one.answer)).or_default() += 1;
    }
    let best = |kind: &str| {
        let answers = counts.get(kind)?.iter();
        Some(answers.max_by_key(|(_, count)| **count)?.0.clone())
    };
    let guesses: Vec<String> = questions
        .iter()
        .map(|one| best(&one.kind).unwrap_or_default())
        .collect();
    let mut scores = Scores::of(questions, &guesses);
    // For F1 the best constant answer is always yes, whichever is the more frequent.
    let always = vec!["yes".to_owned(); questions.len()];
    scores.yes_f1 = Scores::of(questions, &always).yes_f1;
    scores
}

/// The model's answers, greedily, each question alone with its picture.
///
/// # Errors
/// If a picture cannot be read or the model does not run.
pub fn answers<B: Backend>(
    assistant: &Assistant<B>,
    images: &Path,
    questions: &[HeldOut],
    most_tokens: usize,
) -> Result<Vec<String>> {
    let options = AnswerOptions {
        max_new_tokens: most_tokens,
        ..AnswerOptions::default()
    };
    let mut said = Vec::with_capacity(questions.len());
    for batch in questions.chunks(BATCH) {
        let pictures = batch
            .iter()
            .map(|one| Ok([assistant.open_image(&images.join(&one.image))?]))
            .collect::<Result<Vec<[PreparedImage; 1]>>>()?;
        let conversations: Vec<_> = batch
            .iter()
            .map(|one| assistant.about_a_picture(&one.question))
            .collect();
        let requests: Vec<Request<'_>> = conversations
            .iter()
            .zip(&pictures)
            .map(|(conversation, images)| Request {
                conversation,
                ending: Ending::Answer,
                images,
            })
            .collect();
        let found = assistant.answer_batch(&requests, &options, &mut |_, _| {})?;
        said.extend(
            found
                .into_iter()
                .map(|answer| answer.text.trim().to_owned()),
        );
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(kind: &str, answer: &str) -> HeldOut {
        HeldOut {
            image: "a.png".into(),
            kind: kind.into(),
            question: "?".into(),
            answer: answer.into(),
        }
    }

    #[test]
    fn answers_are_counted_by_kind() {
        let questions = [
            question("yes/no", "yes"),
            question("yes/no", "yes"),
            question("yes/no", "no"),
            question("color", "red"),
        ];
        let said = ["Yes.", "no", "yes", "blue"].map(String::from);
        let scores = Scores::of(&questions, &said);
        assert_eq!(scores.kinds["yes/no"], Score { right: 1, all: 3 });
        assert_eq!(scores.all, Score { right: 1, all: 4 });
        // Precision 1/2, recall 1/2.
        assert_eq!(scores.yes_f1, Some(0.5));
        assert_eq!(Scores::of(&questions[3..], &said[3..]).yes_f1, None);
    }

    #[test]
    fn chance_is_the_most_frequent_answer() {
        let seen = ["red", "red", "blue"].map(|answer| question("color", answer));
        let asked = [question("color", "red"), question("color", "blue")];
        let scores = chance(&asked, &seen);
        assert_eq!(scores.all, Score { right: 1, all: 2 });
        let asked = ["yes", "no"].map(|answer| question("yes/no", answer));
        let f1 = chance(&asked, &seen).yes_f1.unwrap();
        assert!((f1 - 2.0 / 3.0).abs() < 1e-12);
    }
}
