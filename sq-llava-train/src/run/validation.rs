//! The samples that a stage trains on, and those that it is validated on.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use sq_llava_data::Manifest;

use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::run::strategy::ValidationPlan;

/// The data files of a stage.
#[derive(Debug)]
pub(crate) struct StageSplit {
    /// 1 or 2.
    pub stage: u8,
    /// What it trains on.
    pub training: Manifest,
    /// What it is validated on, and when.
    pub validation: Option<(Manifest, ValidationPlan)>,
}

/// Opens the data of every stage before anything long begins.
///
/// # Errors
/// If a file cannot be read, has no samples, or the recipe names none.
pub(crate) fn open_splits(recipe: &Recipe) -> Result<Vec<StageSplit>, TrainError> {
    let mut splits = Vec::new();
    for &stage in &recipe.stages {
        let settings = recipe.stage(stage);
        let Some(path) = &settings.data else {
            return Err(TrainError::Recipe(format!(
                "stage {stage} has no data: give --data or set stage{stage}.data"
            )));
        };
        if let Some(images) = &settings.images
            && !images.is_dir()
        {
            return Err(TrainError::io(images, std::io::ErrorKind::NotFound.into()));
        }
        let training = open(path)?;
        let plan = ValidationPlan {
            every: recipe.validation.every,
            patience: recipe.validation.patience,
        };
        let split = match &settings.validation {
            _ if plan.every == 0 => (training, None),
            Some(path) => (training, Some(open(path)?)),
            None if recipe.validation.fraction > 0.0 => {
                let (training, held) = hold_out(&training, recipe)?;
                (training, Some(held))
            }
            None => (training, None),
        };
        splits.push(StageSplit {
            stage,
            training: split.0,
            validation: split.1.map(|held| (held, plan)),
        });
    }
    Ok(splits)
}

fn open(path: &std::path::Path) -> Result<Manifest, TrainError> {
    let manifest = Manifest::open(path)?;
    if manifest.is_empty() {
        return Err(TrainError::Recipe(format!(
            "{} has no samples",
            path.display()
        )));
    }
    Ok(manifest)
}

/// The samples to train on and those held out, a function of the seed and their number.
fn hold_out(all: &Manifest, recipe: &Recipe) -> Result<(Manifest, Manifest), TrainError> {
    let total = all.len();
    let held = ((total as f64 * recipe.validation.fraction).round() as usize).max(1);
    if held >= total {
        return Err(TrainError::Recipe(format!(
            "validation.fraction is {}: of {total} samples none would be left to train on",
            recipe.validation.fraction
        )));
    }
    let mut order: Vec<usize> = (0..total).collect();
    // A word of its own keeps this draw apart from the epochs'.
    let mut seed = [0u8; 32];
    seed[..8].copy_from_slice(&recipe.seed.to_le_bytes());
    seed[24..].copy_from_slice(b"hold out");
    order.shuffle(&mut rand_chacha::ChaCha8Rng::from_seed(seed));
    let mut held = order.split_off(total - held);
    order.sort_unstable();
    held.sort_unstable();
    Ok((all.select(&order)?, all.select(&held)?))
}
