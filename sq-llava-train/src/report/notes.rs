//! What a run says in words: how long it will take, what the model asks and answers, what was
//! saved. The dashboard shows the last of each; lines are written one after the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::train::metric::{Metric, MetricMetadata, MetricName, SerializedEntry};

use crate::step::report::StepReport;

/// What a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The time that is left.
    TimeLeft,
    /// What the model asks and answers.
    Samples,
    /// The last checkpoint.
    Checkpoint,
}

impl Topic {
    /// All of them, in the order of the dashboard.
    pub const ALL: [Self; 3] = [Self::TimeLeft, Self::Samples, Self::Checkpoint];

    /// Name in the dashboard.
    pub fn name(self) -> &'static str {
        match self {
            Self::TimeLeft => "time left",
            Self::Samples => "sample",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// The notes of a stage, shared by all clones.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    last: [String; Topic::ALL.len()],
    /// Lines that nobody wrote yet.
    lines: Vec<String>,
}

impl Notes {
    /// Replaces what is said about a topic.
    pub fn set(&self, topic: Topic, text: impl Into<String>) {
        self.board().last[topic as usize] = text.into();
    }

    /// Adds a line to what is to be written.
    pub fn add_line(&self, line: impl Into<String>) {
        self.board().lines.push(line.into());
    }

    /// What was said last about a topic; empty for nothing.
    pub fn last(&self, topic: Topic) -> String {
        self.board().last[topic as usize].clone()
    }

    /// Takes the lines that are to be written.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut self.board().lines)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A topic as Burn's dashboard shows it.
#[derive(Clone)]
pub struct NoteMetric {
    topic: Topic,
    name: MetricName,
    notes: Notes,
}

impl NoteMetric {
    /// The notes about a topic.
    pub fn new(topic: Topic, notes: &Notes) -> Self {
        Self {
            topic,
            name: Arc::new(topic.name().to_owned()),
            notes: notes.clone(),
        }
    }
}

impl Metric for NoteMetric {
    type Input = StepReport;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn update(&mut self, _report: &StepReport, _metadata: &MetricMetadata) -> SerializedEntry {
        let text = match self.notes.last(self.topic) {
            text if text.is_empty() => "-".to_owned(),
            text => text,
        };
        SerializedEntry::new(text.clone(), text)
    }

    fn clear(&mut self) {}
}
