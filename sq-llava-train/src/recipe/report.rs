//! What a run tells beside its logs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Recipe;
use super::validate::{count, within};
use crate::error::TrainError;

/// What a run tells beside its logs. Nothing of it changes what is learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRecipe {
    /// Write the curves and samples for TensorBoard too, into `tensorboard` of the run directory.
    pub tensorboard: bool,
    /// Seconds that the training waits for its data before it names what holds it up.
    pub stall_seconds: f64,
    /// What the model asks and answers on the way.
    pub samples: SamplesRecipe,
}

/// Pictures that the model is shown every so often. It answers the first question that the data
/// have about each, and where its template asks, it asks one itself and answers that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplesRecipe {
    /// Every this many optimizer steps, and at a stage's end; 0 for never.
    pub every: usize,
    /// How many samples with one picture are drawn: from those to validate on, or else from those
    /// to train on. The recipe's seed decides.
    pub count: usize,
    /// These pictures in place of drawn ones; their paths start from the stage's folder of images.
    /// The model describes them.
    pub images: Vec<PathBuf>,
    /// Most tokens of a question and of an answer.
    pub max_new_tokens: usize,
}

impl ReportRecipe {
    /// Curves for TensorBoard, no samples.
    pub(super) fn standard() -> Self {
        Self {
            tensorboard: true,
            stall_seconds: 60.0,
            samples: SamplesRecipe {
                every: 0,
                count: 4,
                images: Vec::new(),
                max_new_tokens: 64,
            },
        }
    }

    pub(super) fn validate(&self) -> Result<(), TrainError> {
        let samples = &self.samples;
        within("report.stall_seconds", self.stall_seconds, 0.001, 1e6)?;
        count("report.samples.count", samples.count, 1, 64)?;
        let tokens = samples.max_new_tokens;
        count("report.samples.max_new_tokens", tokens, 1, 4096)?;
        if samples.images.len() > 64 {
            return Err(TrainError::Recipe(format!(
                "report.samples.images names {} pictures; at most 64 are shown",
                samples.images.len()
            )));
        }
        Ok(())
    }
}

impl Recipe {
    /// Keys below `report`, none of which changes what is learnt.
    pub(crate) fn is_report(key: &str) -> bool {
        key.starts_with("report.")
    }
}
