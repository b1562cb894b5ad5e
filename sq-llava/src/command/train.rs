//! `sq-llava train`.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use clap::Args;
use indicatif::HumanDuration;
#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use sq_llava_train::{
    DryStage, Nodes, Recipe, Resume, RunDirectory, StopSignal, TrainOptions, TrainOutcome,
    TrainPaths, Ui, dry_run, train,
};

use crate::device::{DeviceChoice, Work};
use crate::names;
use crate::output::tell;

/// Exit status of a run that was stopped and saved: 128 and the number of SIGINT.
pub const STOPPED: u8 = 130;

/// A run that was asked to stop has saved what it learnt.
#[derive(Debug)]
pub struct Stopped(pub String);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

/// Train a model on pictures and conversations.
///
/// Ctrl-C finishes the step, saves a checkpoint and exits with status 130; a second one exits at
/// once. --resume goes on from there. SIGTERM and SIGUSR1 do the same. In a build with feature mpi,
/// mpirun or srun starts the same command on every node.
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
    /// Do everything up to the first step, time one batch of each stage and say how long the run
    /// would take; leaves nothing behind.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Plain lines in place of the dashboard.
    #[arg(long, conflicts_with = "quiet")]
    lines: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
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
    fn asked(&self, nodes: Option<&Nodes>) -> Result<(Recipe, TrainPaths)> {
        let own = nodes.map(|nodes| nodes.run_directory(&self.out));
        let out = own.unwrap_or_else(|| self.out.clone());
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
        let mut vision = names::given_model(self.vision.as_deref())?;
        if vision.is_none() && paths.vision.is_none() {
            vision = names::tower_of(&paths.llm)?;
        }
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

/// The other processes of this training.
static NODES: OnceLock<Arc<Nodes>> = OnceLock::new();

/// This process's number among them.
pub fn rank() -> Option<usize> {
    NODES.get().map(|nodes| nodes.rank())
}

/// They would wait for one that has failed.
pub fn end_other_ranks() {
    if let Some(nodes) = NODES.get() {
        nodes.abort();
    }
}

/// Ctrl-C, SIGTERM or SIGUSR1 (which `mpirun` passes on) asks the run to stop; a second one ends the
/// process at once.
pub fn stop_on_signals() -> Result<StopSignal> {
    let stop = StopSignal::new();
    let signals = [
        SIGINT,
        SIGTERM,
        #[cfg(unix)]
        SIGUSR1,
    ];
    for signal in signals {
        // The order matters: the first signal finds the flag down, and only then raises it.
        flag::register_conditional_shutdown(signal, i32::from(STOPPED), stop.flag())?;
        flag::register(signal, stop.flag())?;
    }
    Ok(stop)
}

/// Says how long a run would take.
fn tell_dry_run(stages: &[DryStage]) {
    for stage in stages {
        let batch = stage.batch.as_secs_f64();
        tell(format_args!(
            "stage {}: {} steps, {:.0} tokens; a batch of {} samples, {} tokens, took {batch:.2} s \
             forward and backward ({:.0} tokens/s): about {}",
            stage.stage,
            stage.steps,
            stage.tokens,
            stage.batch_samples,
            stage.batch_tokens,
            stage.batch_tokens as f64 / batch.max(1e-9),
            HumanDuration(stage.time),
        ));
    }
    let all: Duration = stages.iter().map(|stage| stage.time).sum();
    tell(format_args!(
        "in all about {} with validations, without waiting for data and saving; nothing was written",
        HumanDuration(all)
    ));
}

/// Where a run that was stopped is.
pub fn saved(outcome: &TrainOutcome) -> String {
    match &outcome.checkpoint {
        Some(checkpoint) => format!("saved in {}", checkpoint.display()),
        None => "before its first step".into(),
    }
}

impl Work for Train {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        if self.dry_run {
            let (recipe, paths) = self.asked(None)?;
            tell_dry_run(&dry_run::<Autodiff<B>>(&recipe, &paths, device)?);
            return Ok(());
        }
        let stop = stop_on_signals()?;
        let nodes = Nodes::start(stop.clone())?.map(Arc::new);
        let nodes = nodes.map(|nodes| NODES.get_or_init(|| nodes).clone());
        let rank = nodes.as_ref().map(|nodes| nodes.rank());
        let (recipe, paths) = self.asked(nodes.as_deref())?;
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
            stop,
            nodes,
        };
        let outcome = train::<Autodiff<B>>(&recipe, &paths, device, options)?;
        let tells = rank.unwrap_or(0) == 0;
        for stage in outcome.stages.iter().filter(|_| tells) {
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
                    ", best validation loss {:.4} at step {}, in best-{}",
                    best.loss, best.step, stage.stage
                );
            }
            tell(line);
        }
        if outcome.interrupted {
            let run = outcome.run.display();
            let place = saved(&outcome);
            let how = match rank {
                None => format!("go on with: sq-llava train --resume --out {run}"),
                Some(_) => "go on with the same command and --resume".into(),
            };
            return Err(Stopped(format!("stopped, {place}; {how}")).into());
        }
        tell(outcome.run.display());
        Ok(())
    }
}
