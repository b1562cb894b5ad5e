//! The result of a benchmark.

use serde::Serialize;

use super::published::PUBLISHED;
use crate::benchmark::{Benchmark, Matched, Problems};

/// How a number is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Hundredths.
    #[serde(rename = "%")]
    Percent,
    /// Points of the benchmark's own.
    #[serde(rename = "points")]
    Points,
}

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// What it is.
    pub name: String,
    /// Its value in its unit.
    pub value: f64,
    /// Its unit.
    pub unit: Unit,
    /// Over how many questions.
    pub count: usize,
}

/// What came out of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Which one.
    pub benchmark: &'static str,
    /// Its name in tables.
    pub title: &'static str,
    /// Questions asked.
    pub questions: usize,
    /// Questions that have an answer.
    pub answered: usize,
    /// The numbers; the first is the one that papers print.
    pub metrics: Vec<Metric>,
    /// Remarks.
    pub notes: Vec<String>,
    /// What was wrong, counted.
    pub problems: Problems,
}

impl Report {
    /// A report without numbers.
    pub fn new(benchmark: Benchmark, matched: &Matched<'_>) -> Self {
        Self {
            benchmark: benchmark.name(),
            title: benchmark.title(),
            questions: matched.pairs.len(),
            answered: matched.answered().count(),
            metrics: Vec::new(),
            notes: Vec::new(),
            problems: matched.problems.clone(),
        }
    }

    /// Adds a share, shown in percent.
    pub fn percent(&mut self, name: impl Into<String>, fraction: f64, count: usize) {
        self.push(name.into(), 100.0 * fraction, Unit::Percent, count);
    }

    /// Adds points.
    pub fn points(&mut self, name: impl Into<String>, value: f64, count: usize) {
        self.push(name.into(), value, Unit::Points, count);
    }

    fn push(&mut self, name: String, value: f64, unit: Unit, count: usize) {
        self.metrics.push(Metric {
            name,
            value,
            unit,
            count,
        });
    }

    /// Adds a remark.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The number of a name.
    pub fn value(&self, name: &str) -> Option<f64> {
        let metric = self.metrics.iter().find(|metric| metric.name == name)?;
        Some(metric.value)
    }

    /// The results of several benchmarks as Markdown: one table beside the published rows, and
    /// all numbers, problems and notes of each.
    pub fn markdown(reports: &[Self], model: &str) -> String {
        let mut text = String::from("# Results\n\n");
        text.push_str(&comparison(reports, model));
        for report in reports {
            text.push_str(&format!(
                "\n## {}\n\n{} of {} questions answered.\n\n",
                report.title, report.answered, report.questions
            ));
            if !report.metrics.is_empty() {
                text.push_str("| | | questions |\n|---|---:|---:|\n");
            }
            for metric in &report.metrics {
                text.push_str(&format!(
                    "| {} | {:.2} | {} |\n",
                    metric.name, metric.value, metric.count
                ));
            }
            for note in &report.notes {
                text.push_str(&format!("\n{note}\n"));
            }
            for (kind, count) in report.problems.counts() {
                text.push_str(&format!("\n- {}: {count}", kind.name()));
            }
            if report.problems.total() > 0 {
                text.push('\n');
            }
        }
        text
    }
}

/// The table with one column for each benchmark and the published rows under ours.
fn comparison(reports: &[Report], model: &str) -> String {
    let cell = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let row = |name: &str, values: Vec<String>| format!("| {name} | {} |\n", values.join(" | "));
    let titles = reports.iter().map(|report| report.title.to_owned());
    let mut text = row("", titles.collect());
    text.push_str(&format!("|---|{}\n", "---:|".repeat(reports.len())));
    let ours = reports
        .iter()
        .map(|report| cell(report.metrics.first().map(|metric| metric.value)));
    text.push_str(&row(model, ours.collect()));
    for published in PUBLISHED {
        let values = reports
            .iter()
            .map(|report| cell(published.value(report.benchmark)));
        text.push_str(&row(published.model, values.collect()));
    }
    text
}
