//! What masks are worth to prototypes: runs with several weights of their loss.

use anyhow::{Result, ensure};
use burn::tensor::backend::Backend;
use serde::Serialize;

use super::ablation;
use super::runs::{PictureTokens, RowScores, Runs};
use super::seeds::distinct;
use super::spread;

/// Runs with one weight of the loss of masks.
#[derive(Debug, Clone, Serialize)]
pub struct Guided {
    /// The weight; 0 measures alone.
    pub weight: f64,
    /// A run for each seed, compared with the first weight's.
    pub row: RowScores,
    /// How far the prototypes of two seeds part a picture alike: mutual information of both, the
    /// mean over pictures and pairs of seeds, from 0 to 1.
    pub alike: Option<f64>,
}

/// Runs every weight with every seed.
///
/// # Errors
/// If the recipe names no masks, the folder holds the runs of another task, or a run fails.
pub fn run<B: Backend>(
    runs: &Runs<'_, B>,
    weights: &[f64],
    seeds: &[u64],
    say: &mut dyn FnMut(String),
) -> Result<Vec<Guided>> {
    ensure!(
        runs.task.recipe.model.masks.is_some(),
        "the recipe has no masks to compare with; name their folder: model.masks.folder"
    );
    let with = |weight| {
        let mut recipe = runs.task.recipe.clone();
        if let Some(masks) = &mut recipe.model.masks {
            masks.weight = weight;
        }
        recipe
    };
    distinct("--masks", weights)?;
    // Before the first of them trains.
    for &weight in weights {
        with(weight).validate()?;
    }
    runs.claim()?;
    let mut rows: Vec<Guided> = Vec::new();
    for &weight in weights {
        let (mut found, mut tokens) = (Vec::new(), Vec::new());
        for &seed in seeds {
            let mut recipe = with(weight);
            recipe.seed = seed;
            let name = format!("masks-{weight}-{seed}");
            let scores = runs.scores(&name, &recipe)?;
            let right = 100.0 * scores.scores.all.part();
            say(format!("masks {weight}, seed {seed}: {right:.1} % right"));
            found.push(scores);
            tokens.push(runs.tokens(&name)?);
        }
        let baseline = rows.first().map_or(&found, |first| &first.row.runs).clone();
        rows.push(Guided {
            weight,
            alike: alike(&tokens),
            row: RowScores::of(format!("masks {weight}"), found, &baseline),
        });
    }
    Ok(rows)
}

fn alike(seeds: &[PictureTokens]) -> Option<f64> {
    let mut found = Vec::new();
    for (place, one) in seeds.iter().enumerate() {
        for other in &seeds[..place] {
            let both = one
                .iter()
                .filter_map(|(picture, tokens)| tokens.alike(other.get(picture)?)?.nmi);
            found.extend(both);
        }
    }
    let all = found.len() as f64;
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / all)
}

/// The tables of an ablation, and how far seeds agree.
pub fn markdown(rows: &[Guided]) -> String {
    let scores: Vec<RowScores> = rows.iter().map(|row| row.row.clone()).collect();
    let mut text = ablation::markdown(&scores);
    let alike = rows.iter().filter_map(|row| {
        let alike = format!("{:.1}", 100.0 * row.alike?);
        Some((row.row.name.clone(), vec![alike]))
    });
    text += "\nHow far the prototypes of two seeds part a picture alike (mutual information, in per cent):\n\n";
    text += &spread::grid(&["alike"], alike);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prototypes::Tokens;

    #[test]
    fn seeds_are_alike_by_what_they_part_and_not_by_its_number() {
        let seed = |prototypes: [u32; 4]| {
            let tokens = Tokens {
                prototypes: prototypes.to_vec(),
                masks: vec![0; 4],
            };
            PictureTokens::from([("a.png".to_owned(), tokens)])
        };
        let halves = seed([0, 0, 1, 1]);
        assert_eq!(alike(&[halves.clone(), seed([5, 5, 0, 0])]), Some(1.0));
        assert_eq!(alike(&[halves.clone(), seed([0, 1, 0, 1])]), Some(0.0));
        let three = [halves.clone(), halves.clone(), seed([0, 1, 0, 1])];
        assert!((alike(&three).unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(alike(&[halves]), None);
    }
}
