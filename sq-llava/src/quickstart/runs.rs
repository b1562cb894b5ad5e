//! Runs of one task side by side: each is trained once, and stage 1 once for all that share it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use sq_llava_data::atomic::sync_directory;
use sq_llava_data::masks::MaskFolder;
use sq_llava_eval::prototypes::Agreement;
use sq_llava_model::Assistant;
use sq_llava_train::{Recipe, Resume, RunDirectory, StageOutcome, TrainOptions};

use super::spread::{self, Columns, Spread};
use super::{Scores, Task, answers};
use crate::benchmarks::Benchmarks;
use crate::output::{claim, read_json, write, write_json};
use crate::prototypes::Tokens;
use crate::world::HeldOut;

/// The file of a run's result.
const SCORES: &str = "scores.json";

/// A run's file of its recipe.
const RECIPE_FILE: &str = "recipe.toml";

/// The file of the prototypes in the pictures that have masks.
const TOKENS: &str = "prototypes.json";

/// Tokens of pictures by their names.
pub type PictureTokens = BTreeMap<String, Tokens>;

/// One run; also its `scores.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunScores {
    /// Seed of training.
    pub seed: u64,
    /// Loss of the last step of the last stage.
    pub loss: Option<f64>,
    /// Seconds of training, over all sittings, without a stage 1 that is a run of its own.
    pub seconds: f64,
    /// Accuracy on the questions.
    pub scores: Scores,
    /// The number that papers print of each benchmark, by its title.
    #[serde(default)]
    pub benchmarks: BTreeMap<String, f64>,
    /// How far prototypes are masks, in the pictures asked about that have some.
    #[serde(default)]
    pub prototypes: Option<Agreement>,
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
    /// How a run trains, and is stopped.
    pub options: TrainOptions,
}

impl<B: Backend> Runs<'_, B> {
    /// The folder becomes this task's, or is so already.
    ///
    /// # Errors
    /// If it is another task's.
    pub fn claim(&self) -> Result<()> {
        let task = self.task;
        // No training is to be lost for masks that cannot be measured with.
        for (image, masks) in self.masked(&task.recipe)? {
            let picture = task.images.join(image);
            let size = image::image_dimensions(&picture);
            let (width, height) = size.with_context(|| picture.display().to_string())?;
            MaskFolder::read(&masks, (height, width))?;
        }
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
            let tokens = self.measure(&assistant, &recipe)?;
            if recipe.model.masks.is_some() {
                write(&unfinished.join(TOKENS), serde_json::to_vec(&tokens)?)?;
            }
            let agreements: Vec<_> = tokens.values().filter_map(Tokens::agreement).collect();
            let scores = RunScores {
                seed: recipe.seed,
                loss: stages.last().and_then(|stage| stage.loss),
                seconds: stages.iter().map(|stage| stage.seconds).sum(),
                scores: Scores::of(&task.questions, &said),
                benchmarks,
                prototypes: Agreement::mean(&agreements),
            };
            write_json(&unfinished.join(SCORES), &scores)?;
            Ok(scores)
        })
    }

    /// The pictures asked about that have masks, with these.
    fn masked(&self, recipe: &Recipe) -> Result<BTreeMap<&str, PathBuf>> {
        let Some(masks) = &recipe.model.masks else {
            return Ok(BTreeMap::new());
        };
        let folder = MaskFolder::open(&masks.folder)?;
        let mut found = BTreeMap::new();
        for HeldOut { image, .. } in &self.task.questions {
            if !found.contains_key(&**image)
                && let Some(path) = folder.find(image)?
            {
                found.insert(&**image, path);
            }
        }
        Ok(found)
    }

    /// The prototypes in the pictures asked about; none where the recipe has no masks.
    fn measure(&self, assistant: &Assistant<B>, recipe: &Recipe) -> Result<PictureTokens> {
        let mut found = PictureTokens::new();
        for (image, masks) in self.masked(recipe)? {
            let picture = self.task.images.join(image);
            let picture = match &assistant.processor {
                Some(processor) => processor.open(&picture)?,
                None => bail!("the model has no vision tower"),
            };
            let tokens = Tokens::of(assistant, &picture, &masks).context(image.to_owned())?;
            found.insert(image.to_owned(), tokens);
        }
        Ok(found)
    }

    /// What was measured of a run that is there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn tokens(&self, name: &str) -> Result<PictureTokens> {
        read_json(&self.out.join(name).join(TOKENS))
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
            let theirs = Recipe::read(&given.join(RECIPE_FILE), &[])?;
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
        let prototypes = recipe.model.prototype || recipe.model.mm_projector_type == "cluster";
        let kind = match (prototypes, &recipe.model.masks) {
            (true, Some(masks)) => format!("prototypes-masks-{}", masks.weight),
            (true, None) => "prototypes".to_owned(),
            (false, _) => "plain".to_owned(),
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
        // One that was stopped goes on from its newest checkpoint.
        let mut options = self.options.clone();
        options.resume = RunDirectory::begun(run).then_some(Resume::Latest);
        self.task
            .train_from::<B>(recipe, projector, run, self.device, options)
            .with_context(|| {
                let run = run.display();
                format!("the same command goes on with this run, or begins it anew if {run} is removed; none that is done is done again")
            })
    }
}

/// Does what fills a folder, which gets its name when that is done.
fn finished<T>(folder: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    // A name may have a dot of its own.
    let mut unfinished = folder.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    if unfinished.exists() && !RunDirectory::begun(&unfinished) {
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
        let columns =
            |runs: &[RunScores]| -> Vec<Columns> { runs.iter().map(RunScores::columns).collect() };
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
    fn columns(&self) -> Columns {
        let mut columns = self.scores.columns();
        columns.extend(self.benchmarks.clone());
        if let Some(found) = self.prototypes {
            let parts = [
                ("purity", Some(found.purity)),
                ("inverse purity", Some(found.inverse_purity)),
                ("mutual information", found.nmi),
            ];
            let named = |(name, part): (&str, Option<f64>)| Some((name.to_owned(), 100.0 * part?));
            columns.extend(parts.into_iter().filter_map(named));
        }
        columns
    }
}
