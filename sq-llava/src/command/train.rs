//! `sq-llava train`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use sq_llava_train::{
    Recipe, Resume, RunDirectory, StopSignal, TrainOptions, TrainPaths, Ui, train,
};

use super::nodes::NodeArguments;
use crate::device::{DeviceChoice, Work};
use crate::names;
use crate::output::tell;

/// Exit status of a run that was stopped and saved: 128 and the number of SIGINT.
pub const STOPPED: u8 = 130;

/// A run that was asked to stop has saved what it learnt.
#[derive(Debug)]
pub struct Stopped(String);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

/// Train a model on pictures and conversations.
///
/// Ctrl-C finishes the step, saves a checkpoint and exits with status 130; a second one exits at
/// once. --resume goes on from there.
#[derive(Debug, Args)]
pub struct Train {
    /// Recipe (TOML).
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    recipe: Option<PathBuf>,
    /// A change to the recipe, such as stage2.epochs=3; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// The LLM (a directory or a GGUF file), or a whole LLaVA. Like --vision and --projector it may
    /// be a name on the hub (org/name).
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    llm: Option<PathBuf>,
    /// The vision tower, unless it is inside the LLaVA.
    #[arg(long, value_name = "DIR")]
    vision: Option<PathBuf>,
    /// Data (LLaVA JSON or JSONL, Parquet, tar) of the only stage that runs.
    #[arg(long, value_name = "JSON")]
    data: Option<PathBuf>,
    /// Folder of the pictures.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// A run to start from, such as stage 1's.
    #[arg(long, value_name = "RUN")]
    projector: Option<PathBuf>,
    /// The run directory to be made.
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Go on although a checkpoint holds weights or settings that this program has no place for.
    #[arg(long)]
    allow_unused: bool,
    /// Go on with the run in --out, from its newest checkpoint or the one named. What is not
    /// given again is as it was.
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    resume: Option<String>,
    /// `auto`, `cpu`, `cuda[:i]`, `vulkan[:i]`, `metal[:i]` or `webgpu[:i]`.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Plain lines in place of the dashboard.
    #[arg(long, conflicts_with = "quiet")]
    lines: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    nodes: NodeArguments,
}

impl Train {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.device.run(self)
    }

    /// Recipe and paths: those given, over those of the run that goes on.
    fn asked(&self) -> Result<(Recipe, TrainPaths)> {
        let out = self.nodes.run_directory(&self.out)?;
        let (mut recipe, mut paths) = match self.resume {
            Some(_) => {
                let (recipe, paths) = RunDirectory::asked(&out)?;
                (Some(recipe), paths)
            }
            None => (None, TrainPaths::default()),
        };
        if let Some(path) = &self.recipe {
            recipe = Some(Recipe::read(path, &self.changes)?);
        } else if let Some(then) = &recipe {
            recipe = Some(Recipe::parse(&then.to_toml()?, &self.changes)?);
        }
        paths.out = out;
        paths.allow_unused |= self.allow_unused;
        if let Some(llm) = &self.llm {
            paths.llm = names::model(llm)?;
        }
        let vision = names::given_model(self.vision.as_deref())?;
        let projector = names::given_model(self.projector.as_deref())?;
        for (given, known) in [
            (&vision, &mut paths.vision),
            (&self.data, &mut paths.data),
            (&self.images, &mut paths.images),
            (&projector, &mut paths.projector),
        ] {
            if given.is_some() {
                known.clone_from(given);
            }
        }
        let recipe = recipe.context("give --recipe, or --resume to go on with a run")?;
        Ok((names::of_recipe(recipe)?, paths))
    }
}

/// Ctrl-C (or SIGTERM) asks the run to stop; a second one ends the process at once.
///
/// # Errors
/// If the system does not let signals be caught.
pub fn stop_on_signals() -> Result<StopSignal> {
    let stop = StopSignal::new();
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first signal finds the flag down, and only then raises it.
        flag::register_conditional_shutdown(signal, i32::from(STOPPED), stop.flag())?;
        flag::register(signal, stop.flag())?;
    }
    Ok(stop)
}

impl Work for Train {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (recipe, paths) = self.asked()?;
        let options = TrainOptions {
            ui: match (self.quiet, self.lines) {
                (true, _) => Ui::Quiet,
                (_, true) => Ui::Lines,
                _ => Ui::Auto,
            },
            resume: self.resume.map(|name| match name.is_empty() {
                true => Resume::Latest,
                false => Resume::Checkpoint(name),
            }),
            stop: stop_on_signals()?,
            nodes: self.nodes.config()?,
        };
        let many = options
            .nodes
            .as_ref()
            .is_some_and(|config| config.nodes > 1);
        let outcome = train::<Autodiff<B>>(&recipe, &paths, device, options)?;
        for stage in &outcome.stages {
            let seconds = stage.seconds.max(1e-9);
            let mut line = format!(
                "stage {}: {} steps in {seconds:.0} s, last loss {}, {:.0} tokens/s",
                stage.stage,
                stage.steps,
                stage.loss.map_or("-".into(), |loss| format!("{loss:.4}")),
                stage.tokens as f64 / seconds,
            );
            if let Some(best) = stage.best {
                line += &format!(
                    ", best validation loss {:.4} at step {}",
                    best.loss, best.step
                );
            }
            tell(line);
        }
        if outcome.interrupted {
            let run = outcome.run.display();
            let place = match &outcome.checkpoint {
                Some(checkpoint) => format!("saved in {}", checkpoint.display()),
                None => "before its first step".into(),
            };
            let how = match many {
                false => format!("go on with: sq-llava train --resume --out {run}"),
                true => "go on with --resume on all nodes".into(),
            };
            return Err(Stopped(format!("stopped, {place}; {how}")).into());
        }
        tell(outcome.run.display());
        Ok(())
    }
}
