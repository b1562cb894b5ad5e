//! `sq-llava bench`: speed of every part beside what the machine can do.

mod limits;
mod pictures;
mod shape;
mod step_memory;
mod train_step;
mod whole_step;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::{Distribution, Tensor, backend::Backend};
use clap::Args;
use serde::Serialize;
use sq_llava_data::Ending;
use sq_llava_data::image::RgbImage;
use sq_llava_eval::question::SHORT_ANSWER;
use sq_llava_model::config::LlamaConfig;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::{AnswerOptions, Assistant, IMAGE_TOKEN_INDEX, Request, Sample, SqLlava};
use sq_llava_train::GradientCheckpointing;
use sq_llava_train::step::memory::gib;

use self::limits::Limits;
use self::shape::Shape;
use super::quality;
use crate::device::Work;
use crate::memory::memory_taken;
use crate::model::ModelArguments;

/// Measure speed beside the machine's limits.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    model: ModelArguments,
    /// Only the limits: the processor's arithmetic units and reading; on other devices a large
    /// product and a large read.
    #[arg(long)]
    limits: bool,
    /// Only questions about pictures, answered in batches of 1, 8 and 32.
    #[arg(long, conflicts_with = "limits")]
    questions: bool,
    /// A part of known size with random weights in place of a model.
    #[arg(long, value_enum, conflicts_with_all = ["limits", "questions"])]
    shape: Option<Shape>,
    /// The picture of `--shape image`.
    #[arg(long, value_name = "FILE", required_if_eq("shape", "image"))]
    image: Option<PathBuf>,
    /// Sequences at a time of `--shape`'s language models.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = sequences)]
    batch: Vec<usize>,
    /// Only prefill and decoding of `--shape llama-7b` and `llama-tiny`.
    #[arg(long)]
    skip_training: bool,
    /// Tokens of the sequences of `--shape train-step`.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "512,1024,2048",
        value_parser = step_memory::length
    )]
    lengths: Vec<usize>,
    /// Only one way of `--shape train-step`: `none`, or `blocks` with recompute.
    #[arg(long, value_name = "WAY", value_parser = step_memory::checkpointing)]
    gradient_checkpointing: Option<GradientCheckpointing>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 640)]
    prompt: usize,
    /// Tokens to decode.
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Repetitions; the median is shown.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Instead: read a text with and without --quantize and compare.
    #[arg(long, value_name = "FILE")]
    quality: Option<PathBuf>,
    /// One JSON object for each line.
    #[arg(long)]
    json: bool,
}

/// At least one sequence.
fn sequences(text: &str) -> Result<usize> {
    match text.parse()? {
        0 => bail!("a batch has at least one sequence"),
        count => Ok(count),
    }
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    seconds: f64,
    per_second: f64,
    unit: &'static str,
    gflop_per_s: Option<f64>,
    gb_per_s: Option<f64>,
    /// Of the limit that the work could reach: arithmetic or reading.
    share_of_limit: Option<f64>,
    /// Memory that was taken of the device, weights included.
    device_bytes: Option<u64>,
    #[serde(flatten)]
    memory: Option<MemoryRow>,
}

/// Memory of a training step in bytes.
#[derive(Debug, Serialize)]
struct MemoryRow {
    /// Growth of the device's memory or, on the CPU, the process's by a forward and a backward pass,
    /// where the system says.
    measured_bytes: Option<u64>,
    /// What the layers keep, by arithmetic.
    activation_bytes: usize,
    /// That, gradients and the logits of a chunk.
    expected_bytes: usize,
}

impl std::fmt::Display for MemoryRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.measured_bytes {
            Some(bytes) => write!(f, "  {:.2} GiB measured", gib(bytes as usize))?,
            None => write!(f, "  memory not measured")?,
        }
        write!(
            f,
            ", {:.2} by arithmetic, of that activations {:.2}",
            gib(self.expected_bytes),
            gib(self.activation_bytes)
        )
    }
}

impl Row {
    /// Work of `count` units that took `seconds`.
    fn new(name: String, seconds: f64, count: f64, unit: &'static str) -> Self {
        Self {
            name,
            seconds,
            per_second: count / seconds,
            unit,
            gflop_per_s: None,
            gb_per_s: None,
            share_of_limit: None,
            device_bytes: None,
            memory: None,
        }
    }
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// If the arguments do not fit together, a file cannot be used or the device fails.
    pub fn run(self) -> Result<()> {
        if self.repeat == 0 || self.prompt == 0 || self.tokens == 0 {
            bail!("--repeat, --prompt and --tokens must be at least 1");
        }
        if self.shape == Some(Shape::TrainStep) && self.one_step().is_none() {
            return self.steps_apart();
        }
        self.model.device.run(self)
    }
}

impl Work for Bench {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        if self.questions {
            let (assistant, _) = self.model.load::<B>(device)?;
            return self.answered_questions(&assistant);
        }
        if let Some(text) = &self.quality {
            return quality::compare::<B>(&self.model, text, self.json, device);
        }
        if let (Some(Shape::Image), Some(picture)) = (self.shape, &self.image) {
            return self.pictures(picture);
        }
        if let (Some(Shape::TrainStep), Some(step)) = (self.shape, self.one_step()) {
            return self.step_memory::<B>(&step, device);
        }
        if self.shape == Some(Shape::Train) {
            return self.whole_step::<B>(device);
        }
        let limits = self.measure_limits::<B>(device)?;
        if self.limits {
            return Ok(());
        }
        if let Some(shape) = self.shape {
            return self.shape::<B>(shape, &limits, device);
        }
        let (assistant, _) = self.model.load::<B>(device)?;
        self.images(&assistant)?;
        self.tower(&assistant, &limits, device)?;
        self.language_model(&assistant, &limits, device)?;
        if !self.json {
            println!("{}", memory_taken::<B>(device));
        }
        Ok(())
    }
}

impl Bench {
    /// Median seconds of some work, after one run that warms up.
    fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        work()?;
        let mut seconds = Vec::with_capacity(self.repeat);
        for _ in 0..self.repeat {
            let start = Instant::now();
            work()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }

    /// A line that is no measurement.
    fn say(&self, text: &str) {
        match self.json {
            true => println!("{}", serde_json::json!({ "note": text })),
            false => println!("{text}"),
        }
    }

    fn report(&self, row: &Row) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(row)?);
            return Ok(());
        }
        let number = |value: Option<f64>, unit: &str| {
            value.map_or(String::new(), |v| format!("{v:>9.1} {unit}"))
        };
        println!(
            "{:<34}{:>10.4} s {:>10.1} {:<10}{:>17}{:>14}{}{}{}",
            row.name,
            row.seconds,
            row.per_second,
            row.unit,
            number(row.gflop_per_s, "GFLOP/s"),
            number(row.gb_per_s, "GB/s"),
            row.share_of_limit
                .map_or(String::new(), |s| format!("{:>6.0} %", 100.0 * s)),
            row.device_bytes.map_or(String::new(), |bytes| format!(
                "  {:.2} GiB of the device",
                gib(bytes as usize)
            )),
            row.memory
                .as_ref()
                .map_or(String::new(), ToString::to_string),
        );
        Ok(())
    }

    /// Questions/s of evaluation: each with a picture, `--tokens` greedy tokens at most. The
    /// pictures are prepared already, as eval prepares them beside the model.
    fn answered_questions<B: Backend>(&self, assistant: &Assistant<B>) -> Result<()> {
        let Some(processor) = &assistant.processor else {
            bail!("this model sees no pictures");
        };
        let image = processor.prepare(&photograph(), 1);
        let mut conversation = assistant.conversation();
        conversation.push_images(1);
        conversation.push_user(format!("What is in this picture?\n{SHORT_ANSWER}"));
        let request = Request {
            conversation: &conversation,
            ending: Ending::Answer,
            images: std::slice::from_ref(&image),
        };
        let options = AnswerOptions {
            max_new_tokens: self.tokens,
            ..AnswerOptions::default()
        };
        for batch in [1, 8, 32] {
            let requests = vec![request.clone(); batch];
            let seconds = self.time(|| {
                let answers = assistant.answer_batch(&requests, &options, &mut |_, _| {})?;
                std::hint::black_box(answers);
                Ok(())
            })?;
            let name = format!("questions in batches of {batch}");
            self.report(&Row::new(name, seconds, batch as f64, "questions/s"))?;
        }
        Ok(())
    }

    /// A picture of a photograph's size, decoded already, to the tower's input.
    fn images<B: Backend>(&self, assistant: &Assistant<B>) -> Result<()> {
        let Some(processor) = &assistant.processor else {
            return Ok(());
        };
        let picture = photograph();
        let seconds = self.time(|| {
            let values = processor.prepare(&picture, 1);
            std::hint::black_box(values);
            Ok(())
        })?;
        let name = "preprocess a 640×427 picture".into();
        self.report(&Row::new(name, seconds, 1.0, "images/s"))
    }

    fn tower<B: Backend>(
        &self,
        assistant: &Assistant<B>,
        limits: &Limits,
        device: &B::Device,
    ) -> Result<()> {
        let model = &assistant.model;
        let Some(vision) = &model.config.vision else {
            return Ok(());
        };
        let side = vision.image_size;
        let pixels = Tensor::<B, 4>::random([1, 3, side, side], Distribution::Default, device);
        let seconds = self.time(|| {
            let features = model.vision_features(pixels.clone())?;
            let [_, tokens, width] = features.dims();
            finish(features.reshape([tokens, width]), device)
        })?;
        let layers = model.config.feature_layer().unwrap_or(0) as f64;
        let tokens = vision.tokens() as f64;
        let hidden = vision.hidden_size as f64;
        let weights = 4.0 * hidden * hidden + 2.0 * hidden * vision.intermediate_size as f64;
        // Products with the weights, and scores and values of the attention.
        let flop = layers * (2.0 * tokens * weights + 4.0 * tokens * tokens * hidden);
        let gflop_per_s = flop / 1e9 / seconds;
        let name = format!("vision tower, {side}×{side}");
        self.report(&Row {
            gflop_per_s: Some(gflop_per_s),
            share_of_limit: Some(gflop_per_s / limits.gflop_per_s),
            ..Row::new(name, seconds, 1.0, "images/s")
        })
    }

    /// One picture, if the model sees any, and text for the rest.
    fn prompt_of<B: Backend>(
        &self,
        model: &SqLlava<B>,
        device: &B::Device,
    ) -> Result<(Vec<i64>, Vec<Tensor<B, 2>>)> {
        let mut ids = vec![5; self.prompt];
        let mut images = vec![];
        let per_image = model.config.tokens_per_image();
        if let Some(vision) = &model.config.vision
            && per_image < self.prompt
        {
            let side = vision.image_size;
            let pixels = Tensor::<B, 4>::random([1, 3, side, side], Distribution::Default, device);
            images = model.encode_images(pixels)?;
            ids.truncate(self.prompt - per_image);
            ids.push(IMAGE_TOKEN_INDEX);
        }
        Ok((ids, images))
    }

    fn language_model<B: Backend>(
        &self,
        assistant: &Assistant<B>,
        limits: &Limits,
        device: &B::Device,
    ) -> Result<()> {
        let model = &assistant.model;
        let llama = &model.config.llama;
        if self.prompt + self.tokens >= llama.context_window() {
            bail!(
                "{} + {} tokens do not fit into the context of {}; lower --prompt",
                self.prompt,
                self.tokens,
                llama.context_window()
            );
        }
        let (ids, images) = self.prompt_of(model, device)?;
        let sample = Sample { ids: &ids, images };
        let seconds = self.time(|| {
            model.prefix(&sample)?;
            sync::<B>(device)
        })?;
        let prompt = self.prompt as f64;
        let flop = prefill_flop(llama, prompt);
        let gflop_per_s = flop / 1e9 / seconds;
        let name = format!("prefill of {} tokens", self.prompt);
        self.report(&Row {
            gflop_per_s: Some(gflop_per_s),
            share_of_limit: Some(gflop_per_s / limits.gflop_per_s),
            ..Row::new(name, seconds, prompt, "tokens/s")
        })?;

        let prefix = model.prefix(&sample)?;
        let config = GenerateConfig::greedy(self.tokens + 1);
        let seconds = self.time(|| {
            // The first token comes with the prefill.
            model.continue_prefix(&prefix, 1, &config, &mut |_, _| ControlFlow::Continue(()))?;
            sync::<B>(device)
        })?;
        let bytes = model.language_model.bytes_per_token() as f64;
        let tokens = self.tokens as f64;
        let gb_per_s = bytes * tokens / 1e9 / seconds;
        let name = format!("decode behind {} tokens", self.prompt);
        self.report(&Row {
            gb_per_s: Some(gb_per_s),
            share_of_limit: Some(gb_per_s / limits.read(bytes)),
            ..Row::new(name, seconds, tokens, "tokens/s")
        })
    }
}

/// Operations of a prompt of so many tokens, and of the logits behind its last.
fn prefill_flop(llama: &LlamaConfig, prompt: f64) -> f64 {
    let head = llama.vocab_size * llama.hidden_size;
    let embedding = if llama.tie_word_embeddings {
        head
    } else {
        2 * head
    };
    let layers = (llama.parameters() - embedding) as f64;
    let width = (llama.num_attention_heads * llama.head_dim()) as f64;
    let attention = 2.0 * prompt * prompt * width * llama.num_hidden_layers as f64;
    2.0 * prompt * layers + attention + 2.0 * head as f64
}

/// A picture of a photograph's size.
fn photograph() -> RgbImage {
    RgbImage::from_fn(640, 427, |x, y| {
        sq_llava_data::image::Rgb([(x % 251) as u8, (y % 241) as u8, ((x * y) % 239) as u8])
    })
}

/// Waits until a result is there.
fn finish<B: Backend>(tensor: Tensor<B, 2>, device: &B::Device) -> Result<()> {
    std::hint::black_box(tensor);
    sync::<B>(device)
}

fn sync<B: Backend>(device: &B::Device) -> Result<()> {
    B::sync(device).map_err(|e| anyhow::anyhow!("the device failed: {e:?}"))
}
