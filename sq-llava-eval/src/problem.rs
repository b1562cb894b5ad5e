//! What is wrong with questions, answers and references: one line each, and counted.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Lines kept; beyond them problems are only counted, so that memory stays bounded.
const MAX_LINES: usize = 1000;

/// Kind of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// A question that is not in the benchmark's format; it is not asked.
    MalformedQuestion,
    /// A question whose id came before; the first one counts.
    DuplicateQuestion,
    /// A picture that is not there or cannot be read; the question is not asked.
    MissingImage,
    /// A line of an answer file that is not an answer.
    MalformedAnswer,
    /// An answer to a question that was answered before; the last one counts.
    DuplicateAnswer,
    /// An answer without text; it is scored as it is.
    EmptyAnswer,
    /// An answer in which no choice was found; it counts as wrong.
    UnclearAnswer,
    /// A question without an answer; it counts as wrong.
    MissingAnswer,
    /// An answer to no question of this benchmark; it is not scored.
    UnknownAnswer,
    /// A reference that is absent or not in the benchmark's format; its answer is not scored.
    BadReference,
}

impl ProblemKind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::MalformedQuestion => "malformed question",
            Self::DuplicateQuestion => "duplicate question",
            Self::MissingImage => "missing image",
            Self::MalformedAnswer => "malformed answer",
            Self::DuplicateAnswer => "duplicate answer",
            Self::EmptyAnswer => "empty answer",
            Self::UnclearAnswer => "unclear answer",
            Self::MissingAnswer => "missing answer",
            Self::UnknownAnswer => "answer to no question",
            Self::BadReference => "bad reference",
        }
    }
}

/// One problem; its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind.
    pub kind: ProblemKind,
    /// Where: a file with its line, or the id of a question.
    pub place: String,
    /// What exactly.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.place)?;
        if self.reason.is_empty() {
            return Ok(());
        }
        // A reason quotes files, which may hold line breaks.
        write!(f, ": {}", one_line(&self.reason))
    }
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// All problems of a run, counted by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    counts: BTreeMap<ProblemKind, usize>,
    lines: Vec<Problem>,
}

impl Problems {
    /// Adds one.
    pub(crate) fn add(
        &mut self,
        kind: ProblemKind,
        place: impl Into<String>,
        reason: impl Into<String>,
    ) {
        *self.counts.entry(kind).or_default() += 1;
        if self.lines.len() < MAX_LINES {
            self.lines.push(Problem {
                kind,
                place: place.into(),
                reason: reason.into(),
            });
        }
    }

    /// Adds those of another part of the run.
    pub fn extend(&mut self, other: &Self) {
        for (kind, count) in &other.counts {
            *self.counts.entry(*kind).or_default() += count;
        }
        let room = MAX_LINES.saturating_sub(self.lines.len());
        self.lines.extend(other.lines.iter().take(room).cloned());
    }

    /// How many of a kind.
    pub fn count(&self, kind: ProblemKind) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// How many in all.
    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    /// Kinds that occurred, with their number.
    pub fn counts(&self) -> impl Iterator<Item = (ProblemKind, usize)> + '_ {
        self.counts.iter().map(|(kind, count)| (*kind, *count))
    }

    /// The first thousand.
    pub fn lines(&self) -> &[Problem] {
        &self.lines
    }
}

impl Serialize for Problems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts: BTreeMap<&str, usize> = self.counts().map(|(k, n)| (k.name(), n)).collect();
        let lines: Vec<String> = self.lines.iter().map(Problem::to_string).collect();
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("counts", &counts)?;
        map.serialize_entry("lines", &lines)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_first_are_shown_on_one_line_each() {
        let mut problems = Problems::default();
        for n in 0..MAX_LINES + 5 {
            problems.add(ProblemKind::EmptyAnswer, format!("a.jsonl line {n}"), "");
        }
        problems.add(ProblemKind::MissingImage, "q.jsonl line 1", "a\nb");
        assert_eq!(problems.count(ProblemKind::EmptyAnswer), MAX_LINES + 5);
        assert_eq!(problems.lines().len(), MAX_LINES);
        let mut other = Problems::default();
        other.add(ProblemKind::MissingImage, "q.jsonl line 2", "x\ny");
        assert_eq!(
            other.lines()[0].to_string(),
            "missing image: q.jsonl line 2: x y"
        );
        other.extend(&problems);
        assert_eq!(other.total(), MAX_LINES + 7);
    }
}
