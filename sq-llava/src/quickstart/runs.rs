//! Runs of one task side by side: each is trained once, and stage 1 once for all that share it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use sq_llava_data::atomic::sync_directory;
use sq_llava_train::{Recipe, StageOutcome, Ui};

use super::spread::{self, Spread};
use super::{Scores, Task, answers};
use crate::benchmarks::Benchmarks;
use crate::output::{claim, read_json, write_json};

/// The file of a run's result.
const SCORES: &str = "scores.json";

/// One run; also its `scores.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunScores {
    /// Seed of training.
    pub seed: u64,
    /// Loss of the last step of the last stage.
    pub loss: Option<f64>,
    /// Seconds of training, without a stage 1 that is a run of its own.
    pub seconds: f64,
    /// Accuracy on the questions.
    pub scores: Scores,
    /// The number that papers print of each benchmark, by its title.
    #[serde(default)]
    pub benchmarks: BTreeMap<String, f64>,
}

/// A folder of runs of one task.
pub struct Runs<'a, B: Backend> {
    /// What is trained, and asked at the end.
    pub task: &'a Task,
    /// The folder.
    pub out: &'a Path,
    /// Runs of stage 1 that may be used: a run uses the one that has prototypes as it has.
    pub projectors: &'a [PathBuf],
    /// Most tokens of an answer.
    pub most_tokens: usize,
    /// What is asked besides.
    pub benchmarks: Option<&'a Benchmarks>,
    /// Where they train.
    pub device: &'a B::Device,
    /// How progress within a run is shown.
    pub ui: Ui,
}

impl<B: Backend> Runs<'_, B> {
    /// The folder becomes this task's, or is so already.
    ///
    /// # Errors
    /// If it is another task's.
    pub fn claim(&self) -> Result<()> {
        let task = self.task;
        let mut text = format!(
            "llm = {}\nvision = {:?}\nimages = {}\n# answers of {} tokens\n",
            task.llm.display(),
            task.vision,
            task.images.display(),
            self.most_tokens
        );
        for one in &task.questions {
            text += &format!(
                "# {}: {} {}\n",
                one.image,
                one.question.replace('\n', " "),
                one.answer
            );
        }
        for projector in self.projectors {
            text += &format!("# projector = {}\n", projector.display());
        }
        for benchmark in self.benchmarks.iter().flat_map(|all| all.places()) {
            text += &format!("# benchmark = {}\n", benchmark.display());
        }
        text += &task.recipe.to_toml()?;
        claim(
            &self.out.join("task.txt"),
            &text,
            "of another ablation (another recipe, model or questions); name another folder",
        )
    }

    /// What a recipe's run scores. One that is there already is not repeated.
    ///
    /// # Errors
    /// If a run fails, or none of the projectors that are given fits.
    pub fn scores(&self, name: &str, recipe: &Recipe) -> Result<RunScores> {
        let folder = self.out.join(name);
        let found = folder.join(SCORES);
        if found.is_file() {
            return read_json(&found);
        }
        let mut recipe = recipe.clone();
        let projector = self.projector(&recipe)?;
        if projector.is_some() {
            recipe.stages.retain(|&stage| stage != 1);
        }
        finished(&folder, |unfinished| {
            let stages = self.train(&recipe, projector, unfinished)?;
            let mut assistant = self.task.load::<B>(unfinished, None, self.device)?;
            let task = self.task;
            let said = answers(&assistant, &task.images, &task.questions, self.most_tokens)?;
            let benchmarks = match self.benchmarks {
                Some(all) => all.score(&mut assistant, &unfinished.join("eval"))?,
                None => BTreeMap::new(),
            };
            let scores = RunScores {
                seed: recipe.seed,
                loss: stages.last().and_then(|stage| stage.loss),
                seconds: stages.iter().map(|stage| stage.seconds).sum(),
                scores: Scores::of(&task.questions, &said),
                benchmarks,
            };
            write_json(&unfinished.join(SCORES), &scores)?;
            Ok(scores)
        })
    }

    /// The run of stage 1 that a recipe with both stages goes on from.
    fn projector(&self, recipe: &Recipe) -> Result<Option<PathBuf>> {
        if !(recipe.stages.contains(&1) && recipe.stages.contains(&2)) {
            return Ok(None);
        }
        // The rest of the model is compared when the run is loaded.
        let parts = |recipe: &Recipe| {
            let model = &recipe.model;
            (model.prototype, model.mm_projector_type.clone())
        };
        for given in self.projectors {
            let theirs = Recipe::read(&given.join("recipe.toml"), &[])?;
            if parts(&theirs) == parts(recipe) {
                return Ok(Some(given.clone()));
            }
        }
        if !self.projectors.is_empty() {
            bail!(
                "none of the runs given by --projector has the projector of this row (model.prototype = {}); give one more",
                recipe.model.prototype
            );
        }
        let kind = match recipe.model.prototype || recipe.model.mm_projector_type == "cluster" {
            true => "prototypes",
            false => "plain",
        };
        let folder = self.out.join(format!("stage-1-{kind}-{}", recipe.seed));
        if !folder.is_dir() {
            let mut first = recipe.clone();
            first.stages = vec![1];
            finished(&folder, |unfinished| self.train(&first, None, unfinished))?;
        }
        Ok(Some(folder))
    }

    fn train(
        &self,
        recipe: &Recipe,
        projector: Option<PathBuf>,
        run: &Path,
    ) -> Result<Vec<StageOutcome>> {
        self.task
            .train_from::<B>(recipe, projector, run, self.device, self.ui)
            .context("the same command does this run again, and none that is done")
    }
}

/// Does what fills a folder, which gets its name when that is done.
fn finished<T>(folder: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    // A name may have a dot of its own.
    let mut unfinished = folder.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
    }
    let done = fill(&unfinished)?;
    std::fs::rename(&unfinished, folder)
        .and_then(|()| sync_directory(folder.parent().unwrap_or(folder)))
        .with_context(|| folder.display().to_string())?;
    Ok(done)
}

/// Several runs that differ in their seeds.
#[derive(Debug, Clone, Serialize)]
pub struct RowScores {
    /// What they are called.
    pub name: String,
    /// A run for each seed.
    pub runs: Vec<RunScores>,
    /// Mean and spread of each column.
    pub columns: BTreeMap<String, Spread>,
    /// The same of what each run has more than the one of the same seed that it is compared with.
    pub ahead: BTreeMap<String, Spread>,
}

impl RowScores {
    /// Of these runs, compared with others of the same seeds.
    pub fn of(name: String, runs: Vec<RunScores>, baseline: &[RunScores]) -> Self {
        let columns = |runs: &[RunScores]| spread::columns(runs.iter().map(RunScores::columns));
        let (own, others) = (columns(&runs), columns(baseline));
        Self {
            name,
            ahead: spread::ahead(&own, &others),
            columns: spread::spreads(&own),
            runs,
        }
    }
}

impl RunScores {
    /// What stands in a table's columns: in per cent, of benchmarks as they print it.
    fn columns(&self) -> BTreeMap<String, f64> {
        let mut columns = self.scores.columns();
        columns.extend(self.benchmarks.clone());
        columns
    }
}
