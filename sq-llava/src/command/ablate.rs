//! `sq-llava ablate`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use serde_json::json;
use sq_llava_train::{Recipe, Ui};

use crate::device::{DeviceChoice, Work};
use crate::names;
use crate::output::{tell, write, write_json};
use crate::quickstart::{ANSWER_TOKENS, Plan, Task, ablation};
use crate::world::read_held_out;

/// Train with and without each of the method's parts (self-questioning, prototypes, adapters on
/// the vision tower) over several seeds, on the quick start's world or on data of your own. A run
/// that is there already is not repeated.
#[derive(Debug, Args)]
pub struct Ablate {
    /// Folder for the runs and the tables.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seeds of training.
    #[arg(long, value_delimiter = ',', default_value = "0,1,2,3,4")]
    seeds: Vec<u64>,
    /// Scenes of the world to learn from.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    scenes: u32,
    /// Scenes of the world that are asked about.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    held_out: u32,
    /// At most so many optimizer steps of each stage in the world.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Own data: a recipe whose stages name their data.
    #[arg(long, value_name = "FILE", requires_all = ["llm", "questions"])]
    recipe: Option<PathBuf>,
    /// Own data: the LLM, or a whole LLaVA.
    #[arg(long, value_name = "DIR", requires = "recipe")]
    llm: Option<PathBuf>,
    /// Own data: the vision tower, unless it is inside the LLaVA.
    #[arg(long, value_name = "DIR", requires = "recipe")]
    vision: Option<PathBuf>,
    /// Own data: folder of the pictures.
    #[arg(long, value_name = "DIR", requires = "recipe")]
    images: Option<PathBuf>,
    /// Own data: LLaVA JSON with short answers; each is compared whole.
    #[arg(long, value_name = "JSON", requires = "recipe")]
    questions: Option<PathBuf>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = ANSWER_TOKENS)]
    max_new_tokens: usize,
    /// A change to the recipe; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// `auto`, `cpu`, `cuda[:i]`, `vulkan[:i]`, `metal[:i]` or `webgpu[:i]`.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Lines of progress within the runs.
    #[arg(long)]
    lines: bool,
}

impl Ablate {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.device.run(self)
    }

    fn task(&self) -> Result<Task> {
        if let (Some(recipe), Some(llm), Some(questions)) =
            (&self.recipe, &self.llm, &self.questions)
        {
            return Ok(Task {
                recipe: names::of_recipe(Recipe::read(recipe, &self.changes)?)?,
                llm: names::model(llm)?,
                vision: names::given_model(self.vision.as_deref())?,
                images: self.images.clone().unwrap_or_default(),
                questions: read_held_out(questions)?,
            });
        }
        let plan = Plan {
            out: self.out.clone(),
            scenes: self.scenes as usize,
            steps: self.steps.map(|steps| steps as usize),
            held_out: self.held_out as usize,
            seed: 0,
            towers: None,
            masks: None,
            changes: self.changes.clone(),
            ui: Ui::Quiet,
        };
        Ok(plan.prepare()?.task)
    }
}

impl Work for Ablate {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        if self.seeds.is_empty() {
            bail!("--seeds is empty; give at least one number");
        }
        let task = self.task()?;
        let ui = if self.lines { Ui::Lines } else { Ui::Quiet };
        let runs = self.out.join("runs");
        let rows = ablation::run::<B>(
            &task,
            &self.seeds,
            &runs,
            self.max_new_tokens,
            device,
            ui,
            &mut |line| tell(line),
        )?;
        let table = ablation::markdown(&rows);
        let note = format!(
            "Right answers to {} questions in per cent, mean ± deviation over {} seed(s).\n",
            task.questions.len(),
            self.seeds.len()
        );
        let json = json!({"seeds": self.seeds, "questions": task.questions.len(), "rows": rows});
        let text = format!("{note}\n{table}");
        write(&self.out.join("ablation.md"), text)?;
        write_json(&self.out.join("ablation.json"), &json)?;
        tell(format_args!("\n{note}\n{table}"));
        tell(self.out.join("ablation.json").display());
        Ok(())
    }
}
