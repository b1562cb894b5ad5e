//! `sq-llava improve`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use clap::Args;
use sq_llava_eval::clip_score::ClipScorer;
use sq_llava_model::Assistant;
use sq_llava_train::{RunDirectory, TrainOptions, Ui};

use crate::command::train::{Stopped, saved, stop_on_signals};
use crate::device::{DeviceChoice, Work};
use crate::improve::candidate::AskingSettings;
use crate::improve::filters::Filters;
use crate::improve::{Improvement, Models, Outcome, Settings};
use crate::model::{ModelArguments, Precision, load_clip};
use crate::names;
use crate::output::{tell, write, write_json};
use crate::quickstart::improvement::{self, Trial};

/// Train a run again with questions that it asks and answers itself: about pictures that nobody has
/// labelled it asks, answers, keeps what passes the filters, and repeats its stage 2 with that beside
/// its own data, round by round.
///
/// The same command goes on where it was: no picture is asked about twice. Ctrl-C while it trains
/// saves a checkpoint first.
#[derive(Debug, Args)]
pub struct Improve {
    /// The run to improve. Its data are trained on again, so they must be where they were.
    #[arg(long, value_name = "RUN", required_unless_present = "world")]
    model: Option<PathBuf>,
    /// Folder of the pictures to ask about.
    #[arg(long, value_name = "DIR", required_unless_present = "world")]
    pictures: Option<PathBuf>,
    /// Folder for questions and runs.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Rounds, each of which asks the model of the one before.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// End when the next round's pairs are written, to look at them or edit them before the same
    /// command without --look trains on them.
    #[arg(long)]
    look: bool,
    /// Questions to draw about a picture.
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    n: u32,
    /// Answers to draw to a question.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    answers: u32,
    /// Temperature of the answers.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Other pictures to put each question to.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    others: u32,
    /// Most tokens of a question.
    #[arg(long, default_value_t = 64)]
    max_question_tokens: usize,
    /// Most tokens of an answer; one that is longer is left out.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    #[command(flatten, next_help_heading = "Filters")]
    filters: Filters,
    /// CLIP for its filter: config.json, weights, tokenizer, preprocessor_config.json; or a name on
    /// the hub (org/name).
    #[arg(long, value_name = "DIR", help_heading = "Filters")]
    clip: Option<PathBuf>,
    /// How often a pair comes in a pass over the data.
    #[arg(long, default_value_t = 1.0)]
    repeat: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Try it on the quick start's world, over several seeds: few scenes are labelled, and how many of
    /// the pairs are right is known.
    #[arg(long, conflicts_with_all = ["model", "pictures", "clip", "look"], help_heading = "World")]
    world: bool,
    /// Seeds.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0,1,2,3,4",
        help_heading = "World"
    )]
    seeds: Vec<u64>,
    /// Labelled scenes.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=60_000), help_heading = "World")]
    labels: u32,
    /// Scenes of which there are only pictures.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000), help_heading = "World")]
    unlabelled: u32,
    /// Scenes that are asked about before and after.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "World")]
    held_out: u32,
    /// A change to the world's recipe; may be repeated.
    #[arg(
        long = "set",
        value_name = "KEY=VALUE",
        requires = "world",
        help_heading = "World"
    )]
    changes: Vec<String>,
    /// `auto`, `cpu`, `cuda[:i]`, `vulkan[:i]`, `metal[:i]` or `webgpu[:i]`.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Dtype of the weights in memory while it asks.
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    dtype: Precision,
    /// Lines of progress of the training.
    #[arg(long)]
    lines: bool,
}

impl Improve {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.device.run(self)
    }

    fn asking(&self) -> Result<AskingSettings> {
        ensure!(
            self.temperature > 0.0,
            "--temperature is {}; answers drawn at 0 always agree, which says nothing",
            self.temperature
        );
        Ok(AskingSettings {
            questions: self.n as usize,
            answers: self.answers as usize,
            answer_temperature: self.temperature,
            others: self.others as usize,
            max_question_tokens: self.max_question_tokens,
            max_answer_tokens: self.max_new_tokens,
            seed: self.seed,
        })
    }

    fn settings(&self) -> Result<Settings> {
        let absolute = |path: &Option<PathBuf>| {
            let given = path.as_deref().context("give --model and --pictures")?;
            std::path::absolute(given).with_context(|| given.display().to_string())
        };
        Ok(Settings {
            run: absolute(&self.model)?,
            pictures: absolute(&self.pictures)?,
            clip: names::given_model(self.clip.as_deref())?,
            asking: self.asking()?,
            filters: self.filters,
            repeat: self.repeat,
        })
    }

    /// Tries it in the small world and writes `improvement.md` and `improvement.json`.
    fn try_in_the_world<B: Backend>(
        &self,
        device: &B::Device,
        options: &TrainOptions,
    ) -> Result<()> {
        ensure!(
            !self.seeds.is_empty(),
            "--seeds is empty; give at least one number"
        );
        let trial = Trial {
            out: self.out.clone(),
            labels: self.labels as usize,
            unlabelled: self.unlabelled as usize,
            held_out: self.held_out as usize,
            rounds: self.rounds as usize,
            asking: self.asking()?,
            filters: self.filters,
            repeat: self.repeat,
            changes: self.changes.clone(),
        };
        let mut results = Vec::new();
        for &seed in &self.seeds {
            results.push(trial.seed::<B>(seed, device, options, &mut |line| tell(line))?);
        }
        let table = improvement::markdown(&results);
        write(&self.out.join("improvement.md"), &table)?;
        write_json(&self.out.join("improvement.json"), &results)?;
        tell(format_args!("\n{table}"));
        tell(self.out.join("improvement.md").display());
        Ok(())
    }
}

/// Models by the command's options.
struct Loader<'a, B: Backend> {
    /// Of the run that is improved.
    base: PathBuf,
    vision: Option<PathBuf>,
    command: &'a Improve,
    device: &'a B::Device,
}

impl<B: Backend> Models<B> for Loader<'_, B> {
    fn assistant(&self, run: &Path) -> Result<Assistant<B>> {
        let model = ModelArguments {
            model: Some(run.to_path_buf()),
            base: Some(self.base.clone()),
            vision: self.vision.clone(),
            mmproj: None,
            tokenizer: None,
            device: self.command.device,
            dtype: self.command.dtype,
            quantize: None,
            allow_unused: false,
            template: None,
            preset: None,
            random_init: false,
        };
        Ok(model.load(self.device)?.0)
    }

    fn clip(&self, directory: &Path) -> Result<ClipScorer<B>> {
        let Improve { device, dtype, .. } = *self.command;
        load_clip(directory, device, dtype, false, self.device)
    }
}

impl Work for Improve {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let options = TrainOptions {
            ui: if self.lines { Ui::Lines } else { Ui::Quiet },
            stop: stop_on_signals()?,
            ..TrainOptions::default()
        };
        if self.world {
            return self.try_in_the_world::<B>(device, &options);
        }
        let settings = self.settings()?;
        let (_, paths) = RunDirectory::asked(&settings.run)?;
        let loader = Loader::<B> {
            base: paths.llm,
            vision: paths.vision,
            command: &self,
            device,
        };
        let improvement = Improvement {
            settings: &settings,
            out: &self.out,
            rounds: self.rounds as usize,
            look: self.look,
        };
        match improvement.run::<B>(&loader, device, &options, &mut |line| tell(line))? {
            Outcome::Done(path) => tell(path.display()),
            Outcome::Stopped(outcome) => {
                let asked = || "what was asked is kept".to_owned();
                let saved = outcome.map_or_else(asked, |outcome| saved(&outcome));
                let words = format!("stopped, {saved}; go on with the same command");
                return Err(Stopped(words).into());
            }
        }
        Ok(())
    }
}
