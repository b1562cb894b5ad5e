//! The report of a check: JSON by `serde`, and a summary to be read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::findings::{Finding, FindingKind, Findings, Severity};
use super::samples::{BINS, Counts};
use crate::DataSet;

/// Listed findings of a kind that the summary shows; the JSON has them all.
const SHOWN: usize = 5;

/// One file of samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManifestSummary {
    /// The file.
    pub path: PathBuf,
    /// Its samples.
    pub samples: usize,
}

/// Samples whose length is above that of the bin before and at most `up_to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LengthBin {
    /// In tokens; `None` for the last bin.
    pub up_to: Option<usize>,
    /// Number of samples.
    pub samples: usize,
}

/// Lengths of the samples in tokens, before any is cut.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LengthSummary {
    /// Whether they come from a tokenizer, images included, or from the bytes of the text alone.
    pub exact: bool,
    /// Of the shortest.
    pub shortest: usize,
    /// On average.
    pub mean: f64,
    /// Of the longest.
    pub longest: usize,
    /// Of all.
    pub total: usize,
    /// How many samples are how long.
    pub histogram: Vec<LengthBin>,
    /// Samples that are cut.
    pub truncated: usize,
    /// Tokens that are cut off.
    pub cut_tokens: usize,
}

/// The image files.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ImageSummary {
    /// Files that could be decoded.
    pub decoded: usize,
    /// Pixels of those.
    pub pixels: u64,
    /// Files by format.
    pub formats: BTreeMap<String, usize>,
    /// How often a sample names a file that is missing or cannot be decoded.
    pub samples_without: usize,
    /// Seconds that it took.
    pub seconds: f64,
    /// Their masks; `None` if none were to be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masks: Option<MaskCounts>,
}

/// The masks of the image files that could be decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MaskCounts {
    /// Images that could be decoded.
    pub images: usize,
    /// Those of them whose masks could be read.
    pub with_masks: usize,
    /// Masks of those.
    pub masks: usize,
}

/// Findings of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindingGroup {
    /// The kind.
    pub kind: FindingKind,
    /// Whether training stops at it.
    pub severity: Severity,
    /// All of them.
    pub count: usize,
    /// The first ones, in the order of the samples.
    pub listed: Vec<Finding>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// The files.
    pub manifests: Vec<ManifestSummary>,
    /// All samples.
    pub samples: usize,
    /// Messages of the samples that can be read.
    pub messages: usize,
    /// Samples with an image.
    pub with_image: usize,
    /// Samples without.
    pub text_only: usize,
    /// How often an image is named.
    pub images_named: usize,
    /// Image files that are named.
    pub image_files: usize,
    /// Samples by their number of `<image>` marks.
    pub marks: BTreeMap<usize, usize>,
    /// Lengths.
    pub lengths: LengthSummary,
    /// Image files that were opened; `None` if none was to be.
    pub images: Option<ImageSummary>,
    /// Number of errors.
    pub errors: usize,
    /// Number of warnings.
    pub warnings: usize,
    /// What was found, errors first.
    pub findings: Vec<FindingGroup>,
}

impl CheckReport {
    pub(super) fn new(
        data: &DataSet,
        counts: Counts,
        exact: bool,
        image_files: usize,
        images: Option<ImageSummary>,
        findings: Findings,
    ) -> Self {
        let mut groups: Vec<FindingGroup> = findings
            .into_kinds()
            .map(|(kind, count, listed)| FindingGroup {
                kind,
                severity: kind.severity(),
                count,
                listed,
            })
            .collect();
        groups.sort_by_key(|group| (group.severity, group.kind));
        let of = |severity| {
            let groups = groups.iter().filter(|group| group.severity == severity);
            groups.map(|group| group.count).sum()
        };
        let lengths = counts.lengths;
        let ends = BINS.iter().copied().map(Some).chain([None]);
        Self {
            manifests: data
                .files()
                .map(|(path, samples)| ManifestSummary {
                    path: path.to_path_buf(),
                    samples,
                })
                .collect(),
            samples: data.len(),
            messages: counts.messages,
            with_image: counts.with_image,
            text_only: counts.readable - counts.with_image,
            images_named: counts.images_named,
            image_files,
            marks: counts.marks,
            lengths: LengthSummary {
                exact,
                shortest: lengths.shortest,
                mean: lengths.total as f64 / lengths.samples.max(1) as f64,
                longest: lengths.longest,
                total: lengths.total,
                histogram: ends
                    .zip(lengths.bins)
                    .map(|(up_to, samples)| LengthBin { up_to, samples })
                    .collect(),
                truncated: lengths.truncated,
                cut_tokens: lengths.cut_tokens,
            },
            images,
            errors: of(Severity::Error),
            warnings: of(Severity::Warning),
            findings: groups,
        }
    }

    /// The kinds of a severity with their numbers, as `3 missing_image, 1 malformed`.
    pub fn kinds(&self, severity: Severity) -> String {
        let groups = self.findings.iter().filter(|g| g.severity == severity);
        let each: Vec<String> = groups
            .map(|group| format!("{} {}", group.count, group.kind.name()))
            .collect();
        each.join(", ")
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for manifest in &self.manifests {
            let path = manifest.path.display();
            writeln!(f, "{path}: {} samples", manifest.samples)?;
        }
        writeln!(
            f,
            "samples: {} with an image, {} without; {} messages",
            self.with_image, self.text_only, self.messages
        )?;
        let marks: Vec<String> = self
            .marks
            .iter()
            .map(|(marks, samples)| format!("{marks} in {samples}"))
            .collect();
        writeln!(f, "<image> marks: {}", marks.join(", "))?;
        self.write_lengths(f)?;
        self.write_images(f)?;
        self.write_findings(f)
    }
}

impl CheckReport {
    fn write_lengths(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = &self.lengths;
        writeln!(
            f,
            "{}: {} to {}, {:.0} on average",
            match lengths.exact {
                true => "tokens of a sample",
                false => "tokens of a sample, estimated, without images",
            },
            lengths.shortest,
            lengths.longest,
            lengths.mean
        )?;
        let widest = lengths.histogram.iter().map(|bin| bin.samples).max();
        for bin in lengths.histogram.iter().filter(|bin| bin.samples > 0) {
            let end = bin.up_to.map_or("more".into(), |end| format!("≤ {end}"));
            // At least one mark for what is not nothing.
            let bar = (40 * bin.samples).div_ceil(widest.unwrap_or(1).max(1));
            writeln!(f, "  {end:>7} {:>9}  {}", bin.samples, "█".repeat(bar))?;
        }
        if lengths.truncated > 0 {
            writeln!(
                f,
                "  {} samples are cut, by {} tokens",
                lengths.truncated, lengths.cut_tokens
            )?;
        }
        Ok(())
    }

    fn write_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} errors, {} warnings", self.errors, self.warnings)?;
        for group in &self.findings {
            let severity = match group.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "{severity}: {} {}", group.count, group.kind.name())?;
            for finding in group.listed.iter().take(SHOWN) {
                let image = finding.image.as_deref().map(|name| format!(" {name}"));
                writeln!(
                    f,
                    "  {}:{} {}{}: {}",
                    finding.file.display(),
                    finding.offset,
                    finding.sample,
                    image.unwrap_or_default(),
                    finding.detail
                )?;
            }
            let more = group.count - group.listed.len().min(SHOWN).min(group.count);
            if more > 0 {
                writeln!(f, "  and {more} more")?;
            }
        }
        Ok(())
    }

    fn write_images(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "images: {} files, named {} times",
            self.image_files, self.images_named
        )?;
        let Some(images) = &self.images else {
            return writeln!(f, "; not looked at");
        };
        let formats: Vec<String> = images
            .formats
            .iter()
            .map(|(format, count)| format!("{count} {format}"))
            .collect();
        writeln!(
            f,
            "; {} decoded ({}), {:.0} images/s, {:.1} Mpixel/s",
            images.decoded,
            formats.join(", "),
            images.decoded as f64 / images.seconds.max(1e-9),
            images.pixels as f64 / 1e6 / images.seconds.max(1e-9)
        )?;
        match &images.masks {
            None => Ok(()),
            Some(counts) => writeln!(
                f,
                "masks: of {} of {} images, {} in all",
                counts.with_masks, counts.images, counts.masks
            ),
        }
    }
}
