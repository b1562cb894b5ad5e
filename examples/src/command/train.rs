//! `sq-llava train`.

use std::path::PathBuf;

use anyhow::Result;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use clap::Args;
use sq_llava_train::{Recipe, TrainPaths, Ui, train};

use crate::device::{DeviceChoice, Work};

/// Train a model on pictures and conversations.
#[derive(Debug, Args)]
pub struct Train {
    /// Recipe (TOML).
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// A change to the recipe, such as stage2.epochs=3; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// The LLM (a directory or a GGUF file), or a whole LLaVA.
    #[arg(long, value_name = "DIR")]
    llm: PathBuf,
    /// The vision tower, unless it is inside the LLaVA.
    #[arg(long, value_name = "DIR")]
    vision: Option<PathBuf>,
    /// Data (LLaVA JSON or JSONL) of the only stage that runs.
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
    /// `auto`, `cpu`, `cuda[:i]`, `vulkan[:i]`, `metal[:i]` or `webgpu[:i]`.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
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
}

impl Work for Train {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let recipe = Recipe::read(&self.recipe, &self.changes)?;
        let paths = TrainPaths {
            llm: self.llm,
            vision: self.vision,
            data: self.data,
            images: self.images,
            projector: self.projector,
            out: self.out,
        };
        let ui = match (self.quiet, self.lines) {
            (true, _) => Ui::Quiet,
            (_, true) => Ui::Lines,
            _ => Ui::Auto,
        };
        let outcome = train::<Autodiff<B>>(&recipe, &paths, device, ui)?;
        for stage in &outcome.stages {
            println!(
                "stage {}: {} steps in {:.0} s, last loss {}, {:.0} tokens/s",
                stage.stage,
                stage.steps,
                stage.seconds,
                stage.loss.map_or("-".into(), |loss| format!("{loss:.4}")),
                stage.tokens as f64 / stage.seconds.max(1e-9),
            );
        }
        if outcome.interrupted {
            println!("interrupted; what was learnt until then is saved");
        }
        println!("{}", outcome.run.display());
        Ok(())
    }
}
