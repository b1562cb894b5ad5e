//! Where the samples of a stage come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sq_llava_data::Source;
use sq_llava_data::source::Columns;

use super::StageRecipe;
use crate::error::TrainError;

/// Most times that a sample may come in a pass.
const MOST_REPEATS: f64 = 1000.0;

/// One of several sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecipe {
    /// A file, a folder of Parquet or tar files, a pattern, or a list of these.
    pub data: Shards,
    /// Folder that its image paths start from; without it the stage's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// How often each sample comes in a pass. 2 is twice; 0.3 three tenths of the samples, others in
    /// each pass; 2.5 is twice and half of them once more.
    #[serde(default = "once")]
    pub repeat: f64,
    /// What columns, or keys, are called that do not have LLaVA's names.
    #[serde(default, skip_serializing_if = "Columns::is_default")]
    pub columns: Columns,
}

/// One path, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "data is neither a path nor a list of paths")]
pub enum Shards {
    /// One.
    One(PathBuf),
    /// Several, in this order.
    Several(Vec<PathBuf>),
}

impl Shards {
    fn list(&self) -> Vec<PathBuf> {
        match self {
            Self::One(path) => vec![path.clone()],
            Self::Several(paths) => paths.clone(),
        }
    }
}

fn once() -> f64 {
    1.0
}

impl SourceRecipe {
    /// Refuses values that cannot be used; `key` is where they stand.
    pub(super) fn validate(&self, key: &str) -> Result<(), TrainError> {
        let fail = |reason: String| Err(TrainError::Recipe(reason));
        if self.data.list().is_empty() {
            return fail(format!("{key}.data names no file"));
        }
        if !(self.repeat > 0.0 && self.repeat <= MOST_REPEATS) {
            return fail(format!(
                "{key}.repeat is {}; it must be above 0 and at most {MOST_REPEATS}",
                self.repeat
            ));
        }
        self.columns
            .validate()
            .map_err(|reason| TrainError::Recipe(format!("{key}: {reason}")))
    }
}

impl StageRecipe {
    /// What the stage trains on: `data`, or its sources. Empty if it names none.
    pub fn sources(&self) -> Vec<Source> {
        let images =
            |own: Option<&PathBuf>| own.or(self.images.as_ref()).cloned().unwrap_or_default();
        match &self.data {
            Some(data) => vec![Source::new(data, images(None))],
            None => self
                .sources
                .iter()
                .map(|source| Source {
                    data: source.data.list(),
                    images: images(source.images.as_ref()),
                    columns: source.columns.clone(),
                    repeat: source.repeat,
                })
                .collect(),
        }
    }
}
