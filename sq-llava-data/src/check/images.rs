//! The second pass: every image file is decoded, once.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;

use super::CheckOptions;
use super::findings::{Finding, FindingKind, Findings};
use super::report::ImageSummary;
use super::samples::{ImageUse, finding};
use crate::foreign::guarded;
use crate::image::{ImageFacts, ImageProcessor};
use crate::masks::MaskFolder;
use crate::parallel::on_threads;
use crate::source::Picture;
use crate::{DataError, DataSet};

/// Where images are and how they are decoded.
pub(super) struct Look<'a> {
    pub data: &'a DataSet,
    pub processor: &'a ImageProcessor,
    /// Whether those that are files of their own are looked at.
    pub files: bool,
    /// Masks that are looked at with them.
    pub masks: Option<&'a MaskFolder>,
}

/// What was seen of some images.
struct Seen {
    findings: Findings,
    summary: ImageSummary,
}

impl Seen {
    fn merged(mut self, other: Self) -> Self {
        self.findings.merge(other.findings);
        self.summary.merge(other.summary);
        self
    }
}

impl Look<'_> {
    pub fn scan(
        &self,
        images: &[ImageUse],
        options: &CheckOptions<'_>,
        findings: &mut Findings,
        tick: &(impl Fn() + Sync),
    ) -> Result<ImageSummary, DataError> {
        let begin = Instant::now();
        let start = || Seen {
            findings: Findings::new(options.listed),
            summary: ImageSummary::default(),
        };
        let mut all = on_threads(options.threads, || {
            let parts = images.par_iter().fold(start, |mut seen, image| {
                self.look(&mut seen, *image);
                tick();
                seen
            });
            Ok(parts.reduce(start, Seen::merged))
        })?;
        findings.merge(all.findings);
        all.summary.seconds = begin.elapsed().as_secs_f64();
        Ok(all.summary)
    }

    fn look(&self, seen: &mut Seen, image: ImageUse) {
        // The paths are read again: a list of them would be larger than all else.
        let Ok(sample) = self.data.get(image.sample) else {
            return;
        };
        let Some(name) = sample.images.get(image.place) else {
            return;
        };
        let mut add = |kind, detail: String| {
            let whole = || Finding {
                image: Some(name.clone()),
                samples: Some(image.samples),
                ..finding(self.data, image.sample, sample.id.clone(), detail)
            };
            seen.findings.add(kind, (image.sample, image.place), whole);
        };
        let summary = &mut seen.summary;
        let picture = self.data.picture(image.sample, image.place, name);
        if matches!(picture, Ok(Picture::File(_))) && !self.files {
            return;
        }
        // One file must not end the check of all others.
        let inspected = picture.and_then(|picture| {
            guarded(|| picture.inspect(self.processor)).unwrap_or_else(|reason| {
                let name = picture.name();
                Err(DataError::Image { name, reason })
            })
        });
        match inspected {
            Ok(facts) => {
                let format = format!("{:?}", facts.format).to_lowercase();
                summary.decoded += 1;
                summary.pixels += u64::from(facts.width) * u64::from(facts.height);
                if !facts.fits_extension(Path::new(name)) {
                    add(
                        FindingKind::WrongExtension,
                        format!("the content is {format}"),
                    );
                }
                if let Some(first) = facts.damage.first() {
                    add(FindingKind::DamagedImage, first.clone());
                }
                *summary.formats.entry(format).or_default() += 1;
                if let Err(detail) = self.look_at_masks(name, &facts, summary) {
                    add(FindingKind::BadMask, detail);
                }
            }
            Err(DataError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                summary.samples_without += image.samples as usize;
                add(FindingKind::MissingImage, "there is no such file".into());
            }
            Err(error) => {
                summary.samples_without += image.samples as usize;
                let detail = match error {
                    DataError::Image { reason, .. } | DataError::Shard { reason, .. } => reason,
                    other => other.to_string(),
                };
                add(FindingKind::BadImage, detail);
            }
        }
    }
}

impl Look<'_> {
    /// Reads the masks of an image, if it has any.
    fn look_at_masks(
        &self,
        name: &str,
        facts: &ImageFacts,
        summary: &mut ImageSummary,
    ) -> Result<(), String> {
        let Some(masks) = self.masks else {
            return Ok(());
        };
        let counts = summary.masks.get_or_insert_default();
        counts.images += 1;
        let read = || match masks.find(name)? {
            None => Ok(None),
            Some(path) => MaskFolder::read(&path, (facts.height, facts.width)).map(Some),
        };
        if let Some(map) = read().map_err(|error: DataError| error.to_string())? {
            counts.with_masks += 1;
            counts.masks += map.masks();
        }
        Ok(())
    }
}

impl ImageSummary {
    fn merge(&mut self, other: Self) {
        self.decoded += other.decoded;
        self.pixels += other.pixels;
        self.samples_without += other.samples_without;
        if let Some(other) = other.masks {
            let counts = self.masks.get_or_insert_default();
            counts.images += other.images;
            counts.with_masks += other.with_masks;
            counts.masks += other.masks;
        }
        let formats: BTreeMap<String, usize> = other.formats;
        for (format, count) in formats {
            *self.formats.entry(format).or_default() += count;
        }
    }
}
