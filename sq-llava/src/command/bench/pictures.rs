//! `--shape image`: from the bytes of a picture to the vision tower's 336 × 336 input.

use std::path::Path;
use std::thread;

use anyhow::Result;
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
        let prepare = || -> Result<()> {
            for _ in 0..PICTURES {
                let image = processor.decode(std::hint::black_box(&bytes), &name)?;
                std::hint::black_box(processor.preprocess(&image));
            }
            Ok(())
        };
        let all = thread::available_parallelism().map_or(1, usize::from);
        for (threads, what) in [(1, "one core"), (all, "all cores")] {
            let seconds = self.time(|| {
                thread::scope(|scope| {
                    let others: Vec<_> = (1..threads).map(|_| scope.spawn(prepare)).collect();
                    prepare()?;
                    others.into_iter().try_for_each(|other| {
                        other
                            .join()
                            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    })
                })
            })?;
            let count = (threads * PICTURES) as f64;
            let name = format!("image to 336×336, {what}");
            self.report(&Row::new(name, seconds, count, "images/s"))?;
        }
        Ok(())
    }
}
