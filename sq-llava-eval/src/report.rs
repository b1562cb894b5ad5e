//! The result of a benchmark.

use serde::Serialize;

use crate::matched::Matched;
use crate::problem::Problems;
use crate::protocol::AskedWith;
use crate::published::{PUBLISHED, PublishedRow};

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
    /// Its name on the command line.
    pub benchmark: &'static str,
    /// Its name in tables.
    pub title: &'static str,
    /// Questions asked.
    pub questions: usize,
    /// Questions that have an answer.
    pub answered: usize,
    /// How they were asked, where the answers say so, all alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_with: Option<AskedWith>,
    /// The numbers.
    pub metrics: Vec<Metric>,
    /// Name of the number that papers print; it is not among `metrics` if nothing belongs to it.
    #[serde(skip)]
    headline: Option<String>,
    /// Remarks.
    pub notes: Vec<String>,
    /// What was wrong, counted.
    pub problems: Problems,
}

impl Report {
    /// A report without numbers.
    pub(crate) fn new(name: &'static str, title: &'static str, matched: &Matched<'_>) -> Self {
        Self {
            benchmark: name,
            title,
            questions: matched.pairs.len(),
            answered: matched.answered().count(),
            asked_with: AskedWith::of_all(matched.answered().map(|(_, answer)| answer)),
            headline: None,
            metrics: Vec::new(),
            notes: Vec::new(),
            problems: matched.problems.clone(),
        }
    }

    /// Adds a share, shown in percent, unless it is one of nothing. The first one is the headline.
    pub(crate) fn percent(&mut self, name: impl Into<String>, fraction: Option<f64>, count: usize) {
        let value = fraction.map(|fraction| 100.0 * fraction);
        self.push(name.into(), value, Unit::Percent, count);
    }

    /// Adds points, unless they are of nothing. The first ones are the headline.
    pub(crate) fn points(&mut self, name: impl Into<String>, value: Option<f64>, count: usize) {
        self.push(name.into(), value, Unit::Points, count);
    }

    fn push(&mut self, name: String, value: Option<f64>, unit: Unit, count: usize) {
        self.headline.get_or_insert_with(|| name.clone());
        let Some(value) = value else {
            return;
        };
        self.metrics.push(Metric {
            name,
            value,
            unit,
            count,
        });
    }

    /// Makes another number the one that papers print, and puts it first.
    pub(crate) fn lead(&mut self, name: &str) {
        self.headline = Some(name.to_owned());
        self.metrics.sort_by_key(|metric| metric.name != name);
    }

    /// Whether a number is the one that papers print.
    pub fn is_headline(&self, metric: &Metric) -> bool {
        self.headline.as_ref() == Some(&metric.name)
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

    /// The results of several benchmarks as Markdown: one table with the published rows, and
    /// all numbers, problems and notes of each.
    pub fn markdown(reports: &[Self], model: &str) -> String {
        let mut text = String::from("# Results\n\n");
        text.push_str(&comparison(reports, model));
        for report in reports {
            text.push_str(&format!(
                "\n## {}\n\n{} of {} questions answered.\n\n",
                report.title, report.answered, report.questions
            ));
            if let Some(asked) = &report.asked_with {
                text.push_str(&format!("{asked}.\n\n"));
            }
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

/// The rows to compare reports with: of SQ-LLaVA's own two the one that belongs to the checkpoint
/// that answered, or both where the answers do not say which did.
pub fn published(reports: &[Report]) -> impl Iterator<Item = &'static PublishedRow> {
    let asked = reports.iter().map(|report| report.asked_with.as_ref());
    let kinds: Vec<Option<bool>> = asked.map(|asked| Some(asked?.released)).collect();
    PUBLISHED.iter().filter(move |row| {
        let wanted = |kind: &Option<bool>| kind.is_none() || *kind == row.released;
        row.released.is_none() || kinds.is_empty() || kinds.iter().any(wanted)
    })
}

/// The table with one column for each benchmark and the published rows under ours.
fn comparison(reports: &[Report], model: &str) -> String {
    let cell = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let row = |name: &str, values: Vec<String>| format!("| {name} | {} |\n", values.join(" | "));
    let titles = reports.iter().map(|report| report.title.to_owned());
    let mut text = row("", titles.collect());
    text.push_str(&format!("|---|{}\n", "---:|".repeat(reports.len())));
    let ours = reports.iter().map(|report| {
        cell(
            report
                .headline
                .as_deref()
                .and_then(|name| report.value(name)),
        )
    });
    text.push_str(&row(model, ours.collect()));
    let published: Vec<&PublishedRow> = published(reports).collect();
    for published in &published {
        let values = reports
            .iter()
            .map(|report| cell(published.value(report.benchmark)));
        text.push_str(&row(published.model, values.collect()));
    }
    text.push('\n');
    for published in published {
        text.push_str(&format!("- {}: {}\n", published.model, published.source));
    }
    text
}

/// `right / total`; an empty set has no share.
pub(crate) fn share(right: usize, total: usize) -> Option<f64> {
    (total > 0).then(|| right as f64 / total as f64)
}
