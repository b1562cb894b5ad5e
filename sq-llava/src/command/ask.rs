//! `sq-llava ask`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use serde_json::json;
use sq_llava_data::Ending;
use sq_llava_data::image::is_picture;
use sq_llava_model::generation::sampling::Sampling;
use sq_llava_model::{AnswerOptions, Assistant, Request};

use crate::device::Work;
use crate::memory::memory_taken;
use crate::model::ModelArguments;

/// Answer a question, about a picture or not.
#[derive(Debug, Args)]
pub struct Ask {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    pictures: PictureArguments,
    /// Most tokens of the answer.
    #[arg(long, default_value_t = 1024)]
    max_new_tokens: usize,
    /// Another picture; may be repeated. They stand before the positional one.
    #[arg(long = "image", value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Print {input_ids, output_ids, text, finish}; −200 stands for an image.
    #[arg(long)]
    json: bool,
    /// `[IMAGE] QUESTION`
    #[arg(num_args = 1..=2, required = true, value_name = "[IMAGE] QUESTION")]
    words: Vec<String>,
}

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
pub struct SamplingArguments {
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only the k likeliest tokens.
    #[arg(long)]
    top_k: Option<usize>,
    /// Only the likeliest tokens that make up this probability.
    #[arg(long)]
    top_p: Option<f32>,
    /// Above 1, tokens that occurred become less likely.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArguments {
    /// As the library takes it.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }
}

/// How pictures are read.
#[derive(Debug, Clone, Args)]
pub struct PictureArguments {
    /// Turn pictures as their EXIF says; LLaVA takes them as they are stored.
    #[arg(long)]
    exif: bool,
}

impl PictureArguments {
    /// Sets the assistant's processor so.
    pub fn apply<B: Backend>(&self, assistant: &mut Assistant<B>) {
        if self.exif {
            assistant.processor = assistant.processor.take().map(|p| p.turning());
        }
    }
}

impl Ask {
    /// The question and all pictures, once it is clear which is which.
    fn parts(&self) -> Result<(&str, Vec<PathBuf>)> {
        let (question, positional) = match self.words.as_slice() {
            [word] if is_picture(Path::new(word)) => bail!(
                "{word} is a picture, and the question about it is missing: \
                 sq-llava ask {word} \"What is shown?\""
            ),
            [question] => (question, None),
            [first, second] if !Path::new(first).exists() && is_picture(Path::new(second)) => {
                bail!("no file {first:?}; the picture comes first, then the question")
            }
            [image, question] => (question, Some(PathBuf::from(image))),
            _ => bail!("give a question, or a picture and a question"),
        };
        let paths: Vec<PathBuf> = self.images.iter().cloned().chain(positional).collect();
        // A picture that is not there is said before gigabytes are read.
        for path in &paths {
            sq_llava_data::files::open(path)?;
        }
        Ok((question, paths))
    }

    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.model.device.run(self)
    }
}

impl Work for Ask {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (question, paths) = self.parts()?;
        let start = Instant::now();
        let (mut assistant, _) = self.model.load::<B>(device)?;
        self.pictures.apply(&mut assistant);
        tracing::info!("loaded in {:.1} s", start.elapsed().as_secs_f64());
        let images = assistant.open_images(&paths)?;
        let mut conversation = assistant.conversation();
        conversation.push_images(images.len());
        conversation.push_user(question);
        let request = Request {
            conversation: &conversation,
            ending: Ending::Answer,
            images: &images,
        };
        let options = AnswerOptions {
            max_new_tokens: self.max_new_tokens,
            sampling: self.sampling.sampling(),
            stop: vec![],
        };
        let mut printer = Printer::new(!self.json);
        let start = Instant::now();
        let answer = assistant.answer(&request, &options, &mut |text| printer.print(text))?;
        if self.json {
            println!("{}", json!(answer));
        } else {
            println!();
        }
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(
            "{} tokens in {seconds:.2} s, {}",
            answer.output_ids.len(),
            memory_taken::<B>(device)
        );
        Ok(())
    }
}

/// Prints text as it comes, without the space that many answers begin with.
pub struct Printer {
    on: bool,
    begun: bool,
}

impl Printer {
    /// A printer that may be off.
    pub fn new(on: bool) -> Self {
        Self { on, begun: false }
    }

    /// Prints a piece.
    pub fn print(&mut self, text: &str) {
        if !self.on {
            return;
        }
        let text = if self.begun { text } else { text.trim_start() };
        self.begun |= !text.is_empty();
        print!("{text}");
        // A reader that has gone away is noticed when the process ends.
        let _ = std::io::stdout().flush();
    }
}
