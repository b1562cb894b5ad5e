//! `--shape image`: from the bytes of a picture to the vision tower's 336 × 336 input.

use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};

use super::{Bench, Row};

/// Pictures that each thread prepares in one repetition.
const PICTURES: usize = 64;

impl Bench {
    /// Pictures/s of one thread and of as many as there are processors: decoded, padded to a
    /// square, resized and normalised, as LLaVA-1.5 does.
    pub(super) fn pictures(&self, path: &Path) -> Result<()> {
        let bytes = sq_llava_data::files::read(path)?;
        let processor = ImageProcessor::new(ImageProcessorConfig::default())?;
        let name = path.display().to_string();
        let prepare = |_| -> Result<()> {
            let image = processor.decode(std::hint::black_box(&bytes), &name)?;
            std::hint::black_box(processor.preprocess(&image));
            Ok(())
        };
        let report = |what: &str, pictures: usize, seconds: f64| {
            let name = format!("image to 336×336, {what}");
            self.report(&Row::new(name, seconds, pictures as f64, "images/s"))
        };
        let seconds = self.time(|| (0..PICTURES).try_for_each(prepare))?;
        report("one core", PICTURES, seconds)?;
        let all = rayon::current_num_threads() * PICTURES;
        let seconds = self.time(|| (0..all).into_par_iter().try_for_each(prepare))?;
        report("all cores", all, seconds)
    }
}
