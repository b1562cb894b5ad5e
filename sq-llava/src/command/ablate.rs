//! `sq-llava ablate`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use serde_json::json;
use sq_llava_eval::registry;
use sq_llava_train::{Recipe, TrainOptions, Ui};

use crate::benchmarks::Benchmarks;
use crate::command::train::stop_on_signals;
use crate::device::{DeviceChoice, Work};
use crate::names;
use crate::output::{claim, tell, write, write_json};
use crate::quickstart::efficiency::{self, Comparison, Delta};
use crate::quickstart::runs::Runs;
use crate::quickstart::seeds::distinct;
use crate::quickstart::{ANSWER_TOKENS, Plan, Task, ablation, guided};
use crate::results::BenchmarkArguments;
use crate::world::{Telling, read_held_out};

/// Train with and without each of the method's parts (self-questioning, prototypes, adapters on
/// the vision tower) over several seeds, or, with --sizes, with several probabilities of asking on
/// more and more conversations; on the quick start's world or on data of your own. The same command
/// goes on where it was: a run that is there is not repeated, and one that was stopped resumes from its
/// newest checkpoint. Ctrl-C while it trains saves one first.
#[derive(Debug, Args)]
pub struct Ablate {
    /// Folder for the runs and the tables.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seeds of training.
    #[arg(long, value_delimiter = ',', default_value = "0,1,2,3,4")]
    seeds: Vec<u64>,
    /// Numbers of conversations to compare asking on, in place of the method's parts.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Probabilities of asking to compare; the others are compared with the first.
    #[arg(
        long,
        value_name = "DELTA",
        value_delimiter = ',',
        requires = "sizes",
        default_value = "0,0.25,0.5,0.75,adaptive"
    )]
    deltas: Vec<Delta>,
    /// Weights of the loss of masks to compare (training.md), in place of the method's parts; the
    /// others are compared with the first. Own data name their masks in the recipe.
    #[arg(
        long,
        value_name = "WEIGHT",
        value_delimiter = ',',
        conflicts_with_all = ["sizes", "projector"]
    )]
    masks: Vec<f64>,
    /// A run of stage 1 to go on from; rows with and without prototypes need one each. Without it
    /// stage 1 is trained once for all rows that share it.
    #[arg(long, value_name = "RUN")]
    projector: Vec<PathBuf>,
    /// A world whose captions name one thing and whose answers are one word.
    #[arg(long, conflicts_with = "recipe")]
    sparse: bool,
    /// Scenes of the world to learn from.
    #[arg(long, conflicts_with = "recipe", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    scenes: u32,
    /// Scenes of the world that are asked about.
    #[arg(long, conflicts_with = "recipe", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    held_out: u32,
    /// At most so many optimizer steps of each stage in the world.
    #[arg(long, conflicts_with = "recipe", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Other towers than the world's shipped ones: a folder with `llm` and `vision`.
    #[arg(long, value_name = "DIR", conflicts_with = "recipe")]
    towers: Option<PathBuf>,
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
    /// A benchmark that every run is asked besides, as published; may be repeated.
    #[arg(long = "benchmark", short = 'b', value_name = "NAME", value_parser = registry::named, requires = "data")]
    benchmarks: Vec<&'static dyn sq_llava_eval::task::Task>,
    /// Folder with benchmarks as LLaVA's evaluation has them; all that are there if none is named.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
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
        // Before the world is written over one that is there.
        // The rows have weights of their own.
        let masks = (!self.masks.is_empty()).then_some(0.0);
        let world = format!(
            "{} scenes, {} held out, {:?} steps, sparse: {}{}{}\n{}\n",
            self.scenes,
            self.held_out,
            self.steps,
            self.sparse,
            if masks.is_some() { ", masks" } else { "" },
            match &self.towers {
                Some(towers) => format!(", towers {}", towers.display()),
                None => String::new(),
            },
            self.changes.join("\n")
        );
        claim(
            &self.out.join("world.txt"),
            &world,
            "of another ablation (another world or recipe); name another folder",
        )?;
        let plan = Plan {
            out: self.out.clone(),
            scenes: self.scenes as usize,
            steps: self.steps.map(|steps| steps as usize),
            held_out: self.held_out as usize,
            seed: 0,
            towers: self.towers.clone(),
            masks,
            telling: match self.sparse {
                true => Telling::Sparse,
                false => Telling::Full,
            },
            changes: self.changes.clone(),
            ui: Ui::Quiet,
        };
        Ok(plan.prepare()?.task)
    }
}

impl Work for Ablate {
    fn on<B: Backend>(mut self, device: &B::Device) -> Result<()> {
        if self.seeds.is_empty() {
            bail!("--seeds is empty; give at least one number");
        }
        distinct("--seeds", &self.seeds)?;
        if self.max_new_tokens == 0 {
            bail!("--max-new-tokens must be at least 1");
        }
        self.sizes.sort_unstable();
        self.sizes.dedup();
        let task = self.task()?;
        let benchmarks = self
            .data
            .map(|data| Benchmarks::open(BenchmarkArguments::named(self.benchmarks, data)))
            .transpose()?;
        let runs = Runs::<B> {
            task: &task,
            out: &self.out.join("runs"),
            projectors: &self.projector,
            most_tokens: self.max_new_tokens,
            benchmarks: benchmarks.as_ref(),
            device,
            options: TrainOptions {
                ui: if self.lines { Ui::Lines } else { Ui::Quiet },
                stop: stop_on_signals()?,
                ..TrainOptions::default()
            },
        };
        let questions = task.questions.len();
        let note = format!(
            "Right answers to {questions} questions in per cent (benchmarks in numbers of their own), mean ± deviation over {} seed(s).\n",
            self.seeds.len()
        );
        let say = &mut |line| tell(line);
        let (name, table, found) = if !self.masks.is_empty() {
            let rows = guided::run(&runs, &self.masks, &self.seeds, say)?;
            let found = json!({"seeds": self.seeds, "questions": questions, "rows": rows});
            ("masks", guided::markdown(&rows), found)
        } else if self.sizes.is_empty() {
            let rows = ablation::run(&runs, &self.seeds, say)?;
            let found = json!({"seeds": self.seeds, "questions": questions, "rows": rows});
            ("ablation", ablation::markdown(&rows), found)
        } else {
            let comparison = Comparison {
                sizes: self.sizes,
                deltas: self.deltas,
                seeds: self.seeds,
            };
            let curves = comparison.run(&runs, say)?;
            write(&self.out.join("efficiency.svg"), efficiency::plot(&curves)?)?;
            let found =
                json!({"seeds": comparison.seeds, "questions": questions, "curves": curves});
            ("efficiency", efficiency::markdown(&curves), found)
        };
        let json = self.out.join(format!("{name}.json"));
        write(&json.with_extension("md"), format!("{note}\n{table}"))?;
        write_json(&json, &found)?;
        tell(format_args!("\n{note}\n{table}"));
        tell(json.display());
        Ok(())
    }
}
