//! `sq-llava quickstart`, and what the command does without arguments.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use clap::Args;
use sq_llava_model::processor::{KernelPath, processor_name};
use sq_llava_train::Ui;

use crate::device::{DeviceChoice, Work};
use crate::output::tell;
use crate::quickstart::{Plan, Results, seeds, table};
use crate::towers::{Lessons, remake};
use crate::world::Telling;

/// Folder of a quick start that names none.
const OUT: &str = "quickstart-run";

/// A side that cells of the world's grid are whole multiples of.
fn patch(text: &str) -> Result<usize, String> {
    match text {
        "24" => Ok(24),
        "12" => Ok(12),
        "8" => Ok(8),
        "6" => Ok(6),
        _ => Err("known are 24, 12, 8 and 6".to_owned()),
    }
}

/// Make a small world, train on it, and show what was learnt.
#[derive(Debug, Args)]
pub struct Quickstart {
    /// Folder for world, run and report; new or empty. [default: quickstart-run, or the first
    /// quickstart-run-N that is free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Scenes to learn from.
    #[arg(long, default_value_t = 16_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    scenes: u32,
    /// At most so many optimizer steps of each stage, for a short look.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Scenes that are asked about at the end.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    held_out: u32,
    /// Seed of the world and the training.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Several seeds, each in a folder of its own inside --out, and a table of means and deviations.
    /// What is there already is not done again.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        conflicts_with = "seed",
        requires = "out"
    )]
    seeds: Vec<u64>,
    /// Weight of the loss by which the masks of the shapes guide the prototypes; the masks are then
    /// written with the world.
    #[arg(long, value_name = "WEIGHT")]
    masks: Option<f64>,
    /// A change to the recipe, such as stage2.epochs=2; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Other towers than the shipped ones: a folder with `llm` and `vision`.
    #[arg(long, value_name = "DIR")]
    towers: Option<PathBuf>,
    /// Make the small towers anew in this folder, and nothing else.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "towers", "steps", "seed", "seeds", "scenes", "held_out", "masks", "changes"])]
    remake_towers: Option<PathBuf>,
    /// Optimizer steps of the vision tower and of the language model when they are made anew; with 0
    /// for the language model it is the shipped one.
    #[arg(long, num_args = 2, value_names = ["VISION", "LANGUAGE"], requires = "remake_towers")]
    lessons: Option<Vec<usize>>,
    /// Side of a patch of the vision tower when it is made anew, in pixels: 24 (the shipped one's), 12,
    /// 8 or 6 make 9, 36, 81 or 144 tokens of a picture.
    #[arg(long, value_name = "PIXELS", requires = "remake_towers", value_parser = patch)]
    patch: Option<usize>,
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

impl Quickstart {
    /// As without any option.
    pub fn plain() -> Self {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            quickstart: Quickstart,
        }
        // Every option has a default, so that an empty line is a whole one.
        <Alone as clap::Parser>::parse_from(["sq-llava"]).quickstart
    }

    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.device.run(self)
    }

    /// The folder to use: the one that is named, if it is free.
    fn out(&self) -> Result<PathBuf> {
        // A folder of several seeds says whose it is, and they go on in it.
        if let (Some(out), false) = (&self.out, self.seeds.is_empty())
            && out.join(seeds::CLAIM).is_file()
        {
            return Ok(out.clone());
        }
        let free = |path: &PathBuf| match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if let Some(out) = &self.out {
            if !free(out) {
                bail!(
                    "{}: not an empty folder; name another one with --out, or remove what is there",
                    out.display()
                );
            }
            return Ok(out.clone());
        }
        let numbered = (2..1000).map(|number| PathBuf::from(format!("{OUT}-{number}")));
        match std::iter::once(PathBuf::from(OUT))
            .chain(numbered)
            .find(free)
        {
            Some(out) => Ok(out),
            None => {
                bail!("{OUT} and {OUT}-2 to {OUT}-999 are taken; name another folder with --out")
            }
        }
    }
}

impl Work for Quickstart {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        if let Some(dir) = &self.remake_towers {
            let mut lessons = Lessons::SHIPPED;
            if let Some([vision, language]) = self.lessons.as_deref() {
                lessons.vision_steps = *vision;
                lessons.language_steps = *language;
            }
            lessons.patch = self.patch.unwrap_or(lessons.patch);
            return remake::<Autodiff<B>>(dir, lessons, device, &mut |line| tell(line));
        }
        let start = Instant::now();
        let out = self.out()?;
        let plan = Plan {
            out: out.clone(),
            scenes: self.scenes as usize,
            steps: self.steps.map(|steps| steps as usize),
            held_out: self.held_out as usize,
            seed: self.seed,
            towers: self.towers,
            masks: self.masks,
            changes: self.changes,
            telling: Telling::Full,
            ui: match (self.quiet, self.lines) {
                (true, _) => Ui::Quiet,
                (_, true) => Ui::Lines,
                _ => Ui::Auto,
            },
        };
        let quiet = self.quiet;
        let say = &mut |line: &str| {
            if !quiet {
                tell(line);
            }
        };
        if !self.seeds.is_empty() {
            seeds::distinct("--seeds", &self.seeds)?;
            let machine = format!(
                "{}, {} threads, kernels {}, device {device:?}",
                processor_name(),
                sq_llava_data::machine_threads(),
                KernelPath::chosen()?
            );
            let table = seeds::run::<B>(&plan, &self.seeds, &machine, device, say)?;
            tell(format_args!("\n{table}"));
            return Ok(());
        }
        let results = plan.run::<B>(device, say)?;
        tell_results(&results, &out, start);
        Ok(())
    }
}

fn tell_results(results: &Results, out: &Path, start: Instant) {
    tell("");
    for line in table(results) {
        tell(line);
    }
    let parts: Vec<String> = results
        .seconds
        .iter()
        .map(|(part, seconds)| format!("{part} {seconds:.0} s"))
        .collect();
    tell(format_args!(
        "{:.0} s in all on {} CPU threads: {}",
        start.elapsed().as_secs_f64(),
        sq_llava_data::machine_threads(),
        parts.join(", ")
    ));
    tell(format_args!(
        "report: {}",
        out.join("report.html").display()
    ));
    tell(format_args!(
        "ask it yourself: sq-llava ask --model {} {} \"How many shapes are there?\"",
        out.join("run").display(),
        out.join("world/images/held-out-00000.png").display()
    ));
}
