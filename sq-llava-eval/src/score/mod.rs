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

pub use published::{PUBLISHED, PublishedRow};
pub use report::{Metric, Report, Unit};
pub use vqa::{normalise, soft_accuracy};

use crate::EvalError;
use crate::benchmark::{Answers, Benchmark, Questions, matched};

/// Scores the answers of a benchmark. `annotations` is its reference file or folder.
///
/// # Errors
/// If references are needed and not given, cannot be read, or belong to other questions.
pub fn score(
    questions: &Questions,
    answers: &Answers,
    annotations: Option<&Path>,
) -> Result<Report, EvalError> {
    let benchmark = questions.benchmark;
    let matched = matched(questions, answers);
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
        }
        Benchmark::Generic => report.note("these questions have no references"),
        Benchmark::CocoCaptions
        | Benchmark::Flickr30k
        | Benchmark::NoCaps
        | Benchmark::Conceptual => {
            caption::score(benchmark, &matched, needed()?, &mut report)?;
        }
    }
    Ok(report)
}

/// `right / total`, 0 of nothing.
fn share(right: usize, total: usize) -> f64 {
    if total == 0 {
        return 0.0;
    }
    right as f64 / total as f64
}
