//! The quick start's towers: a CLIP-type vision transformer that knows shapes and no words, and a
//! LLaMA-type language model that reads and speaks the world's language and has seen no picture.
//!
//! `sq-llava quickstart --remake-towers DIR` makes both from nothing on any backend; what it made
//! lies in `examples/assets/world-towers` and inside the command.

mod course;
mod language;
mod shipped;
mod tokenizer;
mod vision;

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::FloatDType;
use burn::tensor::backend::AutodiffBackend;
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::ImageProcessorConfig;
use sq_llava_model::weights::{SaveOptions, save_pretrained, save_vision_tower};

pub use shipped::unpack;

/// How long the towers learn.
#[derive(Debug, Clone, Copy)]
pub struct Lessons {
    /// Seed of weights and scenes; other scenes than a quick start's.
    pub seed: u64,
    /// Optimizer steps of the vision tower.
    pub vision_steps: usize,
    /// Optimizer steps of the language model; with 0 it is the shipped one.
    pub language_steps: usize,
    /// Side of the vision tower's patches, in pixels.
    pub patch: usize,
}

impl Lessons {
    /// Those of the shipped towers.
    pub const SHIPPED: Self = Self {
        seed: 0x5EED_0F70_3E25,
        vision_steps: 1200,
        language_steps: 9000,
        patch: vision::CELL,
    };
}

/// Makes both towers in `dir/llm` and `dir/vision`.
///
/// # Errors
/// If a file cannot be written or a loss is no longer a number.
pub fn remake<B: AutodiffBackend>(
    dir: &Path,
    lessons: Lessons,
    device: &B::Device,
    say: &mut dyn FnMut(String),
) -> Result<()> {
    let (llm, vision) = (dir.join("llm"), dir.join("vision"));
    std::fs::create_dir_all(&llm).with_context(|| format!("{}", llm.display()))?;

    let config = vision::config(lessons.patch);
    let processor = ImageProcessorConfig::clip(config.image_size as u32);
    let tower = vision::train::<B>(&config, &processor, lessons, device, say)?;
    save_vision_tower(&tower, &config, &vision, FloatDType::F16)?;
    processor.write(&vision.join("preprocessor_config.json"))?;

    if lessons.language_steps == 0 {
        return shipped::unpack_llm(dir);
    }
    tokenizer::write(&llm)?;
    let words = TextTokenizer::from_dir(&llm)?;
    let model = language::train::<B>(&words, lessons, device, say)?;
    save_pretrained(&model, &llm, &SaveOptions::default())?;
    Ok(())
}

/// Learning rate of a step: a short rise, then a cosine to a tenth.
fn rate(peak: f64, step: usize, steps: usize) -> f64 {
    let warmup = (steps / 20).max(1);
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let part = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
    peak * (0.1 + 0.45 * (1.0 + (std::f64::consts::PI * part).cos()))
}
