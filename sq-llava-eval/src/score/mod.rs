//! Scores of answer files, without a model and without a server.
//!
//! One file for each benchmark or metric. [`score`] takes what [`crate::benchmark`] has read and
//! gives a [`Report`]; the functions under it work on plain values. Judge-based benchmarks have no
//! number here: their request files come from [`crate::benchmark::mm_vet`] and
//! [`crate::benchmark::llava_bench`].

pub mod caption;
pub mod gqa;
pub mod mmbench;
pub mod mme;
pub mod pope;
mod published;
mod report;
pub mod science_qa;
pub mod seed;
mod vqa;

use std::path::Path;

pub use published::{PUBLISHED, PublishedRow, published};
pub use report::{Metric, Report, Unit};
pub use vqa::soft_accuracy;

use crate::EvalError;
use crate::benchmark::{Answers, Benchmark, Matched, ProblemKind, Questions, matched};

/// Scores the answers of a benchmark. `annotations` is its reference file or folder.
///
/// # Errors
/// If references are needed and not given, cannot be read, or belong to other questions; if no
/// question has an answer, or none could be scored.
pub fn score(
    questions: &Questions,
    answers: &Answers,
    annotations: Option<&Path>,
) -> Result<Report, EvalError> {
    let benchmark = questions.benchmark;
    let matched = matched(questions, answers);
    some_answered(questions, answers, &matched)?;
    let mut report = Report::new(benchmark, &matched);
    let needed = || {
        annotations.ok_or_else(|| {
            EvalError::benchmark(
                &questions.path,
                format!(
                    "{} is scored against references: name their file or folder",
                    benchmark.title()
                ),
            )
        })
    };
    match benchmark {
        Benchmark::VqaV2 | Benchmark::VizWiz | Benchmark::TextVqa => {
            vqa::score(benchmark, &matched, needed()?, &mut report)?;
        }
        Benchmark::Gqa => gqa::score(&matched, needed()?, &mut report)?,
        Benchmark::ScienceQa => science_qa::score(&matched, needed()?, &mut report)?,
        Benchmark::Pope => pope::score(&matched, needed()?, &mut report)?,
        Benchmark::MmBench | Benchmark::MmBenchCn => {
            mmbench::score(questions, &matched, &mut report)?;
        }
        Benchmark::Mme => mme::score(&matched, needed()?, &mut report)?,
        Benchmark::Seed => seed::score(&matched, needed()?, &mut report)?,
        Benchmark::MmVet | Benchmark::LlavaBench => {
            report.note("scored by a judge");
            return Ok(report);
        }
        Benchmark::Generic => {
            report.note("these questions have no references");
            return Ok(report);
        }
        Benchmark::CocoCaptions
        | Benchmark::Flickr30k
        | Benchmark::NoCaps
        | Benchmark::Conceptual => {
            caption::score(benchmark, &matched, needed()?, &mut report)?;
        }
    }
    // A test split without answers says so in a note.
    if report.metrics.is_empty() && report.notes.is_empty() {
        let mut problems = report.problems.lines().iter();
        let why = problems
            .find(|problem| problem.kind == ProblemKind::BadReference)
            .map(|problem| format!("; the first: {problem}"));
        return Err(EvalError::benchmark(
            annotations.unwrap_or(&questions.path),
            format!(
                "nothing of {} could be scored: no reference fits any of its {} questions{}",
                benchmark.title(),
                questions.list.len(),
                why.unwrap_or_default()
            ),
        ));
    }
    Ok(report)
}

/// # Errors
/// If not a single question has an answer: then they belong to other questions.
pub fn some_answered(
    questions: &Questions,
    answers: &Answers,
    matched: &Matched<'_>,
) -> Result<(), EvalError> {
    if matched.answered().next().is_some() {
        return Ok(());
    }
    let reason = match (questions.list.first(), answers.list.first()) {
        (Some(question), Some(answer)) => format!(
            "none of the {} answers belongs to one of these questions: the first answer is to \
             question {}{}, the first question is {}",
            answers.list.len(),
            answer.question_id,
            match answer.round_id {
                Some(round) => format!(" (round {round})"),
                None => String::new(),
            },
            question.id
        ),
        _ => {
            let mut problems = matched.problems.lines().iter();
            let first = problems.find(|p| p.kind != ProblemKind::MissingAnswer);
            let why = first.map_or(String::new(), |problem| format!("; the first: {problem}"));
            format!("no question has an answer: nothing is scored{why}")
        }
    };
    Err(EvalError::benchmark(&questions.path, reason))
}

/// `right / total`; an empty set has no share.
fn share(right: usize, total: usize) -> Option<f64> {
    (total > 0).then(|| right as f64 / total as f64)
}
