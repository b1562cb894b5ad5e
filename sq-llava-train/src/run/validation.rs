//! The samples that a stage trains on, and those that it is validated on.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use sq_llava_data::{DataSet, Sampler, Source};

use crate::error::TrainError;
use crate::recipe::{BadImagePolicy, Recipe};
use crate::run::state::Sources;
use crate::run::strategy::ValidationPlan;

/// The data of a stage.
#[derive(Debug)]
pub(crate) struct StageSplit {
    /// 1 or 2.
    pub stage: u8,
    /// What it trains on.
    pub training: DataSet,
    /// What it is validated on, and when.
    pub validation: Option<(DataSet, ValidationPlan)>,
}

impl StageSplit {
    /// Adds what is known of the files.
    pub(crate) fn sums(&self, recipe: &Recipe, sources: Sources) -> Result<Sources, TrainError> {
        let settings = recipe.stage(self.stage);
        let key = |name: &str| format!("stage{}.{name}", self.stage);
        let name = match settings.data {
            Some(_) => "data",
            None => "sources",
        };
        let sources = sources.with_data(&key(name), &self.training)?;
        match (&settings.validation, &self.validation) {
            (Some(_), Some((held, _))) => sources.with_data(&key("validation"), held),
            _ => Ok(sources),
        }
    }
}

/// Opens the data of every stage before anything long begins.
///
/// # Errors
/// If a file cannot be read, has no samples, or the recipe names none.
pub(crate) fn open_splits(recipe: &Recipe) -> Result<Vec<StageSplit>, TrainError> {
    let mut splits = Vec::new();
    for &stage in &recipe.stages {
        let settings = recipe.stage(stage);
        let sources = settings.sources();
        if sources.is_empty() {
            return Err(TrainError::Recipe(format!(
                "stage {stage} has no data: give --data or set stage{stage}.data"
            )));
        }
        let open = |sources| open(sources, recipe.bad_images);
        let training = open(sources)?;
        let plan = ValidationPlan {
            every: recipe.validation.every,
            patience: recipe.validation.patience,
        };
        let split = match &settings.validation {
            _ if plan.every == 0 => (training, None),
            Some(path) => {
                let images = settings.images.clone().unwrap_or_default();
                (training, Some(open(vec![Source::new(path, images)])?))
            }
            None if recipe.validation.fraction > 0.0 => {
                let (training, held) = hold_out(&training, recipe)?;
                (training, Some(held))
            }
            None => (training, None),
        };
        if Sampler::random(split.0.shares(), 0).is_empty() {
            return Err(TrainError::Recipe(format!(
                "stage{stage}.sources: the repeats leave no sample to train on"
            )));
        }
        splits.push(StageSplit {
            stage,
            training: split.0,
            // Each is measured once.
            validation: split.1.map(|held| (held.once(), plan)),
        });
    }
    Ok(splits)
}

fn open(sources: Vec<Source>, bad: BadImagePolicy) -> Result<DataSet, TrainError> {
    for source in &sources {
        // Without a folder paths are those of the working directory.
        let images = &source.images;
        if !images.as_os_str().is_empty() && !images.is_dir() {
            return Err(TrainError::io(images, std::io::ErrorKind::NotFound.into()));
        }
    }
    let named: Vec<String> = sources
        .iter()
        .flat_map(|source| &source.data)
        .map(|path| path.display().to_string())
        .collect();
    let data = DataSet::open(sources)?;
    for torn in data.damage() {
        if bad == BadImagePolicy::Error {
            return Err(TrainError::Recipe(format!(
                "{torn}; with bad_images = \"skip\" the samples before it would be used"
            )));
        }
        tracing::warn!("{torn}; the samples before it are used");
    }
    if data.is_empty() {
        return Err(TrainError::Recipe(format!(
            "{} has no samples",
            named.join(", ")
        )));
    }
    Ok(data)
}

/// The samples to train on and those held out, a function of the seed and their number.
fn hold_out(all: &DataSet, recipe: &Recipe) -> Result<(DataSet, DataSet), TrainError> {
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
