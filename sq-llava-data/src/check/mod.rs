//! Looks a whole data set over before anything is trained on it.
//!
//! Two passes, both on all threads. The first reads every sample; the second decodes every image
//! file once, however many samples name it. What is kept are counts, a few words for each sample
//! and image, and of each kind of finding the first ones, so that the memory is some tens of
//! megabytes for the 665,000 samples of LLaVA-1.5's mixture.

mod findings;
mod images;
mod report;
mod samples;

use std::sync::atomic::{AtomicUsize, Ordering};

pub use findings::{Finding, FindingKind, Severity};
pub use report::{
    CheckReport, FindingGroup, ImageSummary, LengthBin, LengthSummary, ManifestSummary, MaskCounts,
};

use crate::image::ImageProcessor;
use crate::masks::MaskFolder;
use crate::source::Source;
use crate::{Conversation, DataError, DataSet, Ending, LabelOptions, TextTokenizer};

/// What to look at, and how.
#[derive(Debug)]
pub struct CheckOptions<'a> {
    /// What decodes the images; `None` leaves them alone.
    pub images: Option<&'a ImageProcessor>,
    /// Whether images that are files of their own, not in shards, are decoded too.
    pub files: bool,
    /// Masks of the images that are decoded; `None` leaves them alone.
    pub masks: Option<&'a MaskFolder>,
    /// How samples are encoded, for their true lengths; `None` estimates lengths from the bytes.
    pub labels: Option<(&'a TextTokenizer, &'a LabelOptions)>,
    /// Threads to work on.
    pub threads: usize,
    /// Findings of each kind that are listed; all are counted.
    pub listed: usize,
}

/// The part of a check that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckPhase {
    /// Samples are read.
    Samples,
    /// Images are decoded.
    Images,
}

/// Checks a data set. `progress` is called, from any thread, with what is done and the whole.
///
/// # Errors
/// If a file of the sources cannot be opened, the tokenizer lacks a token of the template, or the threads
/// cannot be started. What is wrong with samples and images is in the report.
pub fn check(
    sources: Vec<Source>,
    options: &CheckOptions<'_>,
    progress: &(dyn Fn(CheckPhase, usize, usize) + Sync),
) -> Result<CheckReport, DataError> {
    if let Some((tokenizer, labels)) = options.labels {
        // What is wrong with the tokenizer is no fault of the samples.
        let mut trial = Conversation::new(labels.template.clone());
        trial.push_user("q").push_assistant("a");
        trial.encode(tokenizer, Ending::Closed)?;
    }
    let data = DataSet::open(sources)?;
    let count = |phase, total| {
        let done = AtomicUsize::new(0);
        progress(phase, 0, total);
        move || progress(phase, done.fetch_add(1, Ordering::Relaxed) + 1, total)
    };
    let tick = count(CheckPhase::Samples, data.len());
    let samples = samples::scan(&data, options, &tick)?;
    let mut findings = samples.findings;
    let seen = options.files || data.holds_pictures();
    let images = match options.images.filter(|_| seen) {
        Some(processor) => {
            let tick = count(CheckPhase::Images, samples.images.len());
            let look = images::Look {
                data: &data,
                processor,
                files: options.files,
                masks: options.masks,
            };
            Some(look.scan(&samples.images, options, &mut findings, &tick)?)
        }
        None => None,
    };
    Ok(CheckReport::new(
        &data,
        samples.counts,
        options.labels.is_some(),
        samples.images.len(),
        images,
        findings,
    ))
}

#[cfg(test)]
mod tests;
