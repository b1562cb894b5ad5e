//! `sq-llava question`.

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::backend::Backend;
use clap::Args;
use serde_json::json;
use sq_llava_model::generation::sampling::Sampling;
use sq_llava_model::{QuestionOptions, SelfQuestioner};

use crate::command::ask::PictureArguments;
use crate::device::Work;
use crate::model::ModelArguments;

/// Ask questions about a picture. Equal questions are shown once, with their number.
#[derive(Debug, Args)]
pub struct QuestionCommand {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    pictures: PictureArguments,
    /// Questions to draw.
    #[arg(long, short, default_value_t = 5)]
    n: usize,
    /// Ask at once, without describing the picture first.
    #[arg(long)]
    no_describe: bool,
    /// Describe the picture first, with this instruction. The default depends on the template:
    /// `v1_sq` describes, for its training never asks the first turn; `sq` and the checkpoint's own
    /// ask at once.
    #[arg(
        long,
        value_name = "INSTRUCTION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = QuestionOptions::DESCRIBE,
        conflicts_with = "no_describe"
    )]
    describe: Option<String>,
    /// Answer each question as well.
    #[arg(long)]
    answer: bool,
    /// Most tokens of a question.
    #[arg(long, default_value_t = 300)]
    max_new_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 1.2)]
    temperature: f32,
    /// Only the k likeliest tokens.
    #[arg(long, default_value_t = 300)]
    top_k: usize,
    /// Only the likeliest tokens that make up this probability.
    #[arg(long, default_value_t = 0.95)]
    top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print {description, questions: [{text, count, answer}]} for each picture.
    #[arg(long)]
    json: bool,
    /// The pictures.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

impl QuestionCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.model.device.run(self)
    }
}

impl Work for QuestionCommand {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        // A picture that is not there is said before gigabytes are read.
        for path in &self.images {
            sq_llava_data::files::open(path)?;
        }
        let (mut assistant, _) = self.model.load::<B>(device)?;
        self.pictures.apply(&mut assistant);
        let questioner = SelfQuestioner::new(&assistant)?;
        let demo = QuestionOptions::demo(&assistant.template, self.n, self.seed);
        let options = QuestionOptions {
            sampling: Sampling {
                temperature: self.temperature,
                top_k: Some(self.top_k),
                top_p: Some(self.top_p),
                repetition_penalty: 1.0,
                seed: self.seed,
            },
            max_new_tokens: self.max_new_tokens,
            describe: match self.no_describe {
                true => None,
                false => self.describe.or(demo.describe),
            },
            answer: self.answer,
            ..demo
        };
        for path in &self.images {
            let found = questioner.ask(&assistant.open_image(path)?, &options)?;
            if self.json {
                let mut line = json!(found);
                line["image"] = json!(path);
                println!("{line}");
                continue;
            }
            if self.images.len() > 1 {
                println!("{}", path.display());
            }
            for question in &found.questions {
                match question.count {
                    1 => println!("{}", question.text),
                    n => println!("{} ({n}×)", question.text),
                }
                if let Some(answer) = &question.answer {
                    println!("  {answer}");
                }
            }
        }
        Ok(())
    }
}
