//! The paper's ablation: the method without some of its parts, over several seeds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use sq_llava_data::atomic::sync_directory;
use sq_llava_train::{Recipe, Ui};

use super::spread::{self, Spread};
use super::{Scores, Task, answers};
use crate::output::{claim, write_json};

/// A row of the table (paper, table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Adapters on the vision tower.
    pub vision_lora: bool,
    /// The prototype extractor.
    pub prototypes: bool,
    /// Self-questioning.
    pub asking: bool,
}

/// The rows, the baseline first.
pub const ROWS: [Row; 5] = [
    row("baseline", false, false, false),
    row("V-LoRA + Proto", true, true, false),
    row("V-LoRA + SQ", true, false, true),
    row("SQ + Proto", false, true, true),
    row("V-LoRA + SQ + Proto", true, true, true),
];

const fn row(name: &'static str, vision_lora: bool, prototypes: bool, asking: bool) -> Row {
    Row {
        name,
        vision_lora,
        prototypes,
        asking,
    }
}

impl Row {
    /// The recipe with this row's parts and a seed.
    pub fn apply(self, recipe: &Recipe, seed: u64) -> Recipe {
        let mut recipe = recipe.clone();
        recipe.seed = seed;
        if !self.vision_lora {
            recipe.lora.vision.r = 0;
            recipe.stage2.lr_vision = 0.0;
        }
        if !self.prototypes {
            recipe.model.prototype = false;
            // The released projector has prototypes of its own.
            if recipe.model.mm_projector_type == "cluster" {
                recipe.model.mm_projector_type = "mlp2x_gelu".into();
            }
        }
        if !self.asking {
            recipe.asking.delta = 0.0;
        }
        recipe
    }

    fn folder(self, seed: u64) -> String {
        let name = self.name.to_lowercase().replace(" + ", "-");
        format!("{name}-{seed}")
    }
}

/// One run; also its `scores.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunScores {
    /// Seed of training.
    pub seed: u64,
    /// Loss of the last step of the last stage.
    pub loss: Option<f64>,
    /// Seconds of training.
    pub seconds: f64,
    /// Accuracy on the questions.
    pub scores: Scores,
}

/// A row with its runs.
#[derive(Debug, Clone, Serialize)]
pub struct RowScores {
    /// Its name.
    pub name: &'static str,
    /// A run for each seed.
    pub runs: Vec<RunScores>,
    /// Mean and spread of each column.
    pub columns: BTreeMap<String, Spread>,
    /// The same of what each run has more than the first row's of the same seed.
    pub ahead: BTreeMap<String, Spread>,
}

/// The file of a run's result.
const SCORES: &str = "scores.json";

/// Runs every row with every seed. A run that is in `out` already is not repeated, so that an
/// ablation that was stopped goes on where it was.
///
/// # Errors
/// If `out` holds the runs of another task, or a run fails.
pub fn run<B: Backend>(
    task: &Task,
    seeds: &[u64],
    out: &Path,
    most_tokens: usize,
    device: &B::Device,
    ui: Ui,
    say: &mut dyn FnMut(String),
) -> Result<Vec<RowScores>> {
    same_task(task, out)?;
    let mut rows = Vec::new();
    for row in ROWS {
        let mut runs = Vec::new();
        for &seed in seeds {
            let folder = out.join(row.folder(seed));
            let found = folder.join(SCORES);
            let scores = if found.is_file() {
                let text = std::fs::read_to_string(&found);
                let text = text.with_context(|| format!("{}", found.display()))?;
                serde_json::from_str(&text).with_context(|| format!("{}", found.display()))?
            } else {
                one::<B>(task, row, seed, &folder, most_tokens, device, ui)?
            };
            say(format!(
                "{}, seed {seed}: {:.1} % right",
                row.name,
                100.0 * scores.scores.all.part()
            ));
            runs.push(scores);
        }
        let baseline = rows.first().map_or(&runs, |first: &RowScores| &first.runs);
        rows.push(summary(row.name, baseline, runs.clone()));
    }
    Ok(rows)
}

/// The runs in a folder belong to one recipe and one set of questions.
fn same_task(task: &Task, out: &Path) -> Result<()> {
    let mut text = format!("llm = {}\n", task.llm.display());
    for one in &task.questions {
        text += &format!(
            "# {}: {} {}\n",
            one.image,
            one.question.replace('\n', " "),
            one.answer
        );
    }
    text += &task.recipe.to_toml()?;
    claim(
        &out.join("task.txt"),
        &text,
        "of another ablation (another recipe, model or questions); name another folder",
    )
}

/// Trains and asks once. The folder gets its name when its scores are in it.
fn one<B: Backend>(
    task: &Task,
    row: Row,
    seed: u64,
    folder: &Path,
    most_tokens: usize,
    device: &B::Device,
    ui: Ui,
) -> Result<RunScores> {
    let unfinished = folder.with_extension("unfinished");
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished)
            .with_context(|| format!("{}", unfinished.display()))?;
    }
    let stages = task.train::<B>(&row.apply(&task.recipe, seed), &unfinished, device, ui)?;
    let assistant = task.load::<B>(&unfinished, None, device)?;
    let said = answers(&assistant, &task.images, &task.questions, most_tokens)?;
    let scores = RunScores {
        seed,
        loss: stages.last().and_then(|stage| stage.loss),
        seconds: stages.iter().map(|stage| stage.seconds).sum(),
        scores: Scores::of(&task.questions, &said),
    };
    write_json(&unfinished.join(SCORES), &scores)?;
    std::fs::rename(&unfinished, folder)
        .and_then(|()| sync_directory(folder.parent().unwrap_or(folder)))
        .with_context(|| format!("{}", folder.display()))?;
    Ok(scores)
}

fn summary(name: &'static str, baseline: &[RunScores], runs: Vec<RunScores>) -> RowScores {
    let (own, others) = (columns(&runs), columns(baseline));
    let ahead = own.iter().filter_map(|(column, values)| {
        let differences = values.iter().zip(others.get(column)?).map(|(a, b)| a - b);
        Some((column.clone(), Spread::of(&differences.collect::<Vec<_>>())))
    });
    RowScores {
        name,
        ahead: ahead.collect(),
        columns: own
            .iter()
            .map(|(column, values)| (column.clone(), Spread::of(values)))
            .collect(),
        runs,
    }
}

/// A value of each run, in per cent, for each column.
fn columns(runs: &[RunScores]) -> BTreeMap<String, Vec<f64>> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for run in runs {
        for (column, part) in run.scores.columns() {
            values.entry(column).or_default().push(100.0 * part);
        }
    }
    values
}

/// Both tables as Markdown: the rows, and how far they are ahead of the first.
pub fn markdown(rows: &[RowScores]) -> String {
    let mut text = spread::markdown(rows.iter().map(|row| (row.name, &row.columns)));
    if let [first, others @ ..] = rows
        && !others.is_empty()
    {
        let ahead = others.iter().map(|row| (row.name, &row.ahead));
        text += &format!(
            "\nAhead of \"{}\" of the same seed, with the 95 % interval of the mean:\n\n{}",
            first.name,
            spread::markdown_with_intervals(ahead)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quickstart::{RECIPE, Score};

    #[test]
    fn each_row_switches_its_parts() {
        let recipe = Recipe::parse(RECIPE, &[]).unwrap();
        let mut kinds = Vec::new();
        for row in ROWS {
            let own = row.apply(&recipe, 5);
            own.validate().unwrap();
            assert_eq!(own.seed, 5);
            let parts = (
                own.lora.vision.r > 0,
                own.model.prototype,
                own.asking.delta > 0.0,
            );
            assert_eq!(parts, (row.vision_lora, row.prototypes, row.asking));
            assert_eq!(own.stage2.lr_vision > 0.0, row.vision_lora);
            kinds.push(parts);
        }
        assert_eq!(kinds[0], (false, false, false));
        assert_eq!(kinds[4], (true, true, true));
        assert_eq!(ROWS[4].apply(&recipe, recipe.seed), recipe);
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), ROWS.len());
    }

    #[test]
    fn fault_16_rows_of_the_released_variant_lose_their_parts_too() {
        let asks_later = ["asking.schedule=linear", "asking.delta_end=1"];
        let changes = asks_later.map(ToString::to_string);
        let recipe = Recipe::parse("flavour = 'released'", &changes).unwrap();
        for row in ROWS {
            let own = row.apply(&recipe, 5);
            own.validate().unwrap();
            let projector = &own.model.mm_projector_type;
            assert_eq!(projector == "cluster", row.prototypes, "{}", row.name);
            let policy = own.asking.policy(0);
            assert_eq!(policy.is_some(), row.asking, "{}", row.name);
        }
    }

    #[test]
    fn the_table_has_means_and_spreads() {
        let run = |seed, right| {
            let score = Score { right, all: 10 };
            let kinds = BTreeMap::from([("color".to_owned(), score)]);
            RunScores {
                seed,
                loss: None,
                seconds: 1.0,
                scores: Scores {
                    kinds,
                    all: score,
                    yes_f1: None,
                },
            }
        };
        let base = vec![run(0, 4), run(1, 6)];
        let row = summary("baseline", &base, base.clone());
        let all = row.columns["all"];
        assert_eq!(all.mean, 50.0);
        assert!((all.deviation.unwrap() - 200f64.sqrt()).abs() < 1e-9);
        assert_eq!(row.ahead["all"].mean, 0.0);
        // A point and three ahead, pair by pair.
        let other = summary("SQ", &base, vec![run(0, 5), run(1, 9)]);
        let ahead = other.ahead["all"];
        assert_eq!(ahead.mean, 20.0);
        assert!((ahead.deviation.unwrap() - 200f64.sqrt()).abs() < 1e-9);
        let table = markdown(&[row, other]);
        let (first, second) = table.split_once("\nAhead").unwrap();
        assert_eq!(
            first,
            "| | all | color |\n|---|---|---|\n| baseline | 50.0 ± 14.1 | 50.0 ± 14.1 |\n| SQ | 70.0 ± 28.3 | 70.0 ± 28.3 |\n"
        );
        // Student's t of one degree of freedom is 12.706.
        assert!(
            second.contains("| SQ | +20.0 (−107.1 … +147.1) |"),
            "{second}"
        );
    }
}
