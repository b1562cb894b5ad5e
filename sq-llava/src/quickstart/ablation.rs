//! The paper's ablation: the method without some of its parts, over several seeds.

use anyhow::Result;
use burn::tensor::backend::Backend;
use sq_llava_train::Recipe;

use super::runs::{RowScores, Runs};
use super::spread;

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

/// Runs every row with every seed.
///
/// # Errors
/// If the folder holds the runs of another task, or a run fails.
pub fn run<B: Backend>(
    runs: &Runs<'_, B>,
    seeds: &[u64],
    say: &mut dyn FnMut(String),
) -> Result<Vec<RowScores>> {
    runs.claim()?;
    let mut rows: Vec<RowScores> = Vec::new();
    for row in ROWS {
        let mut found = Vec::new();
        for &seed in seeds {
            let recipe = row.apply(&runs.task.recipe, seed);
            let scores = runs.scores(&row.folder(seed), &recipe)?;
            let right = 100.0 * scores.scores.all.part();
            say(format!("{}, seed {seed}: {right:.1} % right", row.name));
            found.push(scores);
        }
        let baseline = rows.first().map_or(&found, |first| &first.runs).clone();
        rows.push(RowScores::of(row.name.into(), found, &baseline));
    }
    Ok(rows)
}

/// Both tables as Markdown: the rows, and how far they are ahead of the first.
pub fn markdown(rows: &[RowScores]) -> String {
    let mut text = spread::markdown(rows.iter().map(|row| (&row.name[..], &row.columns)));
    if let [first, others @ ..] = rows
        && !others.is_empty()
    {
        let ahead = others.iter().map(|row| (&row.name[..], &row.ahead));
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::quickstart::runs::RunScores;
    use crate::quickstart::{RECIPE, Score, Scores};

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
                benchmarks: BTreeMap::new(),
                prototypes: None,
            }
        };
        let base = vec![run(0, 4), run(1, 6)];
        let row = RowScores::of("baseline".into(), base.clone(), &base);
        let all = row.columns["all"];
        assert_eq!(all.mean, 50.0);
        assert!((all.deviation.unwrap() - 200f64.sqrt()).abs() < 1e-9);
        assert_eq!(row.ahead["all"].mean, 0.0);
        // A point and three ahead, pair by pair.
        let other = RowScores::of("SQ".into(), vec![run(0, 5), run(1, 9)], &base);
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
