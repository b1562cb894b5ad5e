//! The quick start: a world, both stages of training on it, and what was learnt.

pub mod ablation;
mod asking;
pub mod efficiency;
mod evaluate;
pub mod guided;
pub mod improvement;
mod looks;
mod report;
pub mod runs;
pub mod seeds;
pub mod spread;

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use serde::Serialize;
use sq_llava_data::{Template, TemplateChoice};
use sq_llava_model::weights::LoadOptions;
use sq_llava_model::{Assistant, AssistantOptions};
use sq_llava_train::{Recipe, StageOutcome, TrainOptions, TrainPaths, Ui, train};

pub use asking::{Asked, AskedCounts, ask};
pub use evaluate::{ALL, Score, Scores, answers, chance, is_right};

use crate::output::{write, write_json};
use crate::towers::unpack;
use crate::world::{
    HeldOut, Scene, Telling, WorldFiles, WorldSize, read_held_out, training_questions, write_world,
};

/// The recipe of the small world.
pub const RECIPE: &str = include_str!("../../assets/world.toml");

/// Most tokens of an answer in the world; a description takes up to 30.
pub const ANSWER_TOKENS: usize = 16;

/// The file of what was found out.
const RESULTS: &str = "results.json";

/// Pictures on the report, those with most things, in which it is shown where prototypes look.
const LOOKED_AT: usize = 3;

/// What a quick start does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Folder for everything.
    pub out: PathBuf,
    /// Scenes that are trained on.
    pub scenes: usize,
    /// Most optimizer steps of a stage.
    pub steps: Option<usize>,
    /// Scenes that are asked about at the end.
    pub held_out: usize,
    /// Seed of world, training and draws.
    pub seed: u64,
    /// Towers in place of the shipped ones: a folder with `llm` and `vision`.
    pub towers: Option<PathBuf>,
    /// Weight of the loss of masks, which are then written with the world.
    pub masks: Option<f64>,
    /// How much the world's training data say of a picture.
    pub telling: Telling,
    /// Changes to the recipe.
    pub changes: Vec<String>,
    /// How progress is shown.
    pub ui: Ui,
}

/// A recipe with what it needs, and questions for what it trains.
#[derive(Debug)]
pub struct Task {
    /// The recipe, its data in place.
    pub recipe: Recipe,
    /// The language model.
    pub llm: PathBuf,
    /// The vision tower, unless it is inside.
    pub vision: Option<PathBuf>,
    /// Folder of the pictures.
    pub images: PathBuf,
    /// Questions whose answers are known.
    pub questions: Vec<HeldOut>,
}

/// The small world's task.
#[derive(Debug)]
pub struct Prepared {
    /// The task.
    pub task: Task,
    /// The world.
    pub files: WorldFiles,
    /// What guessing gets.
    pub chance: Scores,
}

/// What a quick start found out; also `results.json`.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Seconds of each part, in order.
    pub seconds: Vec<(&'static str, f64)>,
    /// Optimizer steps of the stages.
    pub steps: Vec<usize>,
    /// Scores of the most frequent answers.
    pub chance: Scores,
    /// Scores after stage 1 alone.
    pub stage1: Scores,
    /// Scores after both stages.
    pub both: Scores,
    /// What it asked.
    pub asked: AskedCounts,
}

impl Plan {
    /// Writes world and towers, and fits the recipe to them.
    ///
    /// # Errors
    /// If a file cannot be written or the recipe is changed to one that cannot be used.
    pub fn prepare(&self) -> Result<Prepared> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("{}", self.out.display()))?;
        let world = self.out.join("world");
        let path = |name: &str| toml_string(&world.join(name));
        let mut changes = vec![
            format!("seed={}", self.seed),
            format!("stage1.data={}", path("captions.json")),
            format!("stage2.data={}", path("conversations.json")),
        ];
        if let Some(weight) = self.masks {
            changes.push(format!("model.masks.folder={}", path("masks")));
            changes.push(format!("model.masks.weight={weight}"));
        }
        changes.extend(self.changes.iter().cloned());
        let mut recipe = Recipe::parse(RECIPE, &changes)?;
        let mut size = WorldSize {
            captions: self.scenes,
            conversations: self.scenes,
            held_out: self.held_out,
            masks: self.masks.is_some(),
            telling: self.telling,
        };
        if let Some(steps) = self.steps {
            let parts = [
                (&mut recipe.stage1, &mut size.captions),
                (&mut recipe.stage2, &mut size.conversations),
            ];
            for (stage, scenes) in parts {
                stage.epochs = 1.0;
                *scenes = (*scenes).min(steps * stage.samples_per_step());
            }
        }
        let files = write_world(&world, self.seed, size)?;
        let towers = match &self.towers {
            Some(given) => given.clone(),
            None => {
                let towers = self.out.join("towers");
                unpack(&towers)?;
                towers
            }
        };
        // The run names them, and may be loaded from another folder.
        let towers =
            std::path::absolute(&towers).with_context(|| format!("{}", towers.display()))?;
        let questions = read_held_out(&files.held_out)?;
        let seen = training_questions(self.seed, size);
        Ok(Prepared {
            chance: chance(&questions, &seen),
            task: Task {
                recipe,
                llm: towers.join("llm"),
                vision: Some(towers.join("vision")),
                images: files.images.clone(),
                questions,
            },
            files,
        })
    }

    /// Does everything and writes `report.html` and `results.json`.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run<B: Backend>(
        &self,
        device: &B::Device,
        say: &mut dyn FnMut(&str),
    ) -> Result<Results> {
        let mut clock = Clock::start();
        let prepared = self.prepare()?;
        let task = &prepared.task;
        say(&format!(
            "world: {} scenes to learn from, {} held out with {} questions",
            self.scenes,
            self.held_out,
            task.questions.len()
        ));
        clock.lap("world");
        let run = self.out.join("run");
        let stages = task.train::<B>(&task.recipe, &run, device, self.ui)?;
        for stage in &stages {
            let name = match stage.stage {
                1 => "stage 1",
                _ => "stage 2",
            };
            clock.seconds.push((name, stage.seconds));
        }
        clock.last = Instant::now();

        // Stage 1 has taught no layout of its own: the language model's is the best for it.
        let first = task.load::<B>(&run.join("stage1"), Some(Template::V1.into()), device)?;
        let said = answers(&first, &task.images, &task.questions, ANSWER_TOKENS)?;
        let stage1 = Scores::of(&task.questions, &said);
        drop(first);
        let both = task.load::<B>(&run, None, device)?;
        let said = answers(&both, &task.images, &task.questions, ANSWER_TOKENS)?;
        let scenes = prepared.scenes();
        let (asked, counts) = ask(&both, &task.images, &scenes, self.seed)?;
        let mut shown: Vec<_> = scenes.iter().collect();
        shown.sort_by_key(|(_, scene)| Reverse(scene.things.len()));
        let names = shown.iter().take(LOOKED_AT).map(|(name, _)| name.clone());
        let looks = looks::looks(&both, &task.images, names)?;
        clock.lap("questions");

        let results = Results {
            seconds: clock.seconds,
            steps: stages.iter().map(|stage| stage.steps).collect(),
            chance: prepared.chance.clone(),
            stage1,
            both: Scores::of(&task.questions, &said),
            asked: counts,
        };
        let sheet = report::Sheet {
            questions: &task.questions,
            answers: &said,
            asked: &asked,
            images: &task.images,
            run: &run,
            looks: &looks,
        };
        let html = report::html(&results, &sheet)?;
        write(&self.out.join("report.html"), html)?;
        write_json(&self.out.join(RESULTS), &results)?;
        Ok(results)
    }
}

impl Task {
    /// Trains by a recipe into a run directory.
    ///
    /// # Errors
    /// As [`train`], and if it is stopped.
    pub fn train<B: Backend>(
        &self,
        recipe: &Recipe,
        run: &Path,
        device: &B::Device,
        ui: Ui,
    ) -> Result<Vec<StageOutcome>> {
        self.train_from::<B>(recipe, None, run, device, ui.into())
    }

    /// The same from a run of stage 1, where one is given.
    ///
    /// # Errors
    /// As [`Self::train`].
    pub fn train_from<B: Backend>(
        &self,
        recipe: &Recipe,
        projector: Option<PathBuf>,
        run: &Path,
        device: &B::Device,
        options: TrainOptions,
    ) -> Result<Vec<StageOutcome>> {
        let paths = TrainPaths {
            llm: self.llm.clone(),
            vision: self.vision.clone(),
            images: Some(self.images.clone()),
            out: run.to_path_buf(),
            projector,
            ..TrainPaths::default()
        };
        let outcome = train::<Autodiff<B>>(recipe, &paths, device, options)?;
        anyhow::ensure!(
            !outcome.interrupted,
            "stopped; what was learnt until then is in {}",
            run.display()
        );
        Ok(outcome.stages)
    }

    /// Loads what was trained.
    ///
    /// # Errors
    /// If it does not load.
    pub fn load<B: Backend>(
        &self,
        run: &Path,
        template: Option<TemplateChoice>,
        device: &B::Device,
    ) -> Result<Assistant<B>> {
        let options = AssistantOptions {
            load: LoadOptions {
                base: Some(self.llm.clone()),
                vision: self.vision.clone(),
                ..LoadOptions::default()
            },
            template,
            tokenizer: None,
        };
        Ok(Assistant::load(run, &options, device)?.0)
    }
}

impl Prepared {
    /// The held-out scenes with their pictures' names.
    fn scenes(&self) -> Vec<(String, &Scene)> {
        let questions = self.task.questions.iter();
        let mut names: Vec<&String> = questions.map(|one| &one.image).collect();
        // One after the other in the file, so equal ones are neighbours.
        names.dedup();
        let scenes = self.files.held_out_scenes.iter();
        names.into_iter().cloned().zip(scenes).collect()
    }
}

/// Seconds of each part.
struct Clock {
    last: Instant,
    seconds: Vec<(&'static str, f64)>,
}

impl Clock {
    fn start() -> Self {
        Self {
            last: Instant::now(),
            seconds: Vec::new(),
        }
    }

    fn lap(&mut self, part: &'static str) {
        self.seconds.push((part, self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}

/// A path as a TOML string, whatever characters it has.
pub fn toml_string(path: &Path) -> String {
    serde_json::Value::String(path.display().to_string()).to_string()
}

/// The table that is printed, line by line.
pub fn table(results: &Results) -> Vec<String> {
    let percent = |score: Score| format!("{:.1} %", 100.0 * score.part());
    let row = |name: &str, cells: [String; 3]| {
        let [chance, stage1, both] = cells;
        format!("{name:<10} {chance:>9} {stage1:>13} {both:>12}")
    };
    let mut lines = vec![row(
        "accuracy",
        ["chance", "stage 1 only", "both stages"].map(Into::into),
    )];
    let of = |scores: &Scores, kind: &str| scores.kinds.get(kind).copied().unwrap_or_default();
    let all = [&results.chance, &results.stage1, &results.both];
    for kind in results.both.kinds.keys() {
        lines.push(row(kind, all.map(|scores| percent(of(scores, kind)))));
    }
    lines.push(row("all", all.map(|scores| percent(scores.all))));
    let f1 = |scores: &Scores| scores.yes_f1.map_or("-".into(), |f1| format!("{f1:.3}"));
    lines.push(row("yes/no F1", all.map(f1)));
    let asked = &results.asked;
    lines.push(String::new());
    lines.push(format!(
        "asked {} questions about {} pictures: {} well formed, {} about a thing, of which {} about one that is there (with the next picture in its place: {})",
        asked.all, asked.scenes, asked.clear, asked.things, asked.there, asked.there_elsewhere
    ));
    lines.push(format!(
        "descriptions right in every word: {} of {}",
        asked.described, asked.scenes
    ));
    lines
}
