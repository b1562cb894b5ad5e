//! What a checkpoint knows beside weights and moments: where the run stands and what it was
//! trained from.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sq_llava_data::atomic::write_atomic;
use sq_llava_data::{DataSet, files};

use crate::error::TrainError;
use crate::run::base::TrainPaths;
use crate::run::manifest::{FileSum, entries, sum};
use crate::step::adaptive::AskingState;

/// Name of the file in a checkpoint.
pub(crate) const STATE: &str = "trainer_state.json";

/// Version of the file.
const FORMAT: u32 = 1;

/// Where a stage stands, between two steps. Order of the data, asking draws, dropout and learning
/// rates are functions of the recipe's seed and the step, so the step is their state; of adaptive
/// asking draws it is what was measured, too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageProgress {
    /// Optimizer steps taken.
    pub step: usize,
    /// Whether the stage is over, by its last step or by early stopping.
    pub complete: bool,
    /// Samples seen.
    pub samples: usize,
    /// Tokens seen, images in place.
    pub tokens: usize,
    /// Samples cut to the longest length allowed.
    pub truncated: usize,
    /// Samples left out.
    pub skipped: usize,
    /// Seconds of training, over all sittings.
    pub seconds: f64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// The best validation so far.
    pub best: Option<BestValidation>,
    /// What adaptive asking has measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asking: Option<AskingState>,
}

/// The best validation of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestValidation {
    /// Its weighted loss per token.
    pub loss: f64,
    /// After which step.
    pub step: usize,
    /// Validations since then, none of them better.
    pub since: usize,
}

/// What a stage did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageOutcome {
    /// 1 or 2.
    pub stage: u8,
    /// Optimizer steps.
    pub steps: usize,
    /// Loss of the last step; `None` if there was none.
    pub loss: Option<f64>,
    /// Tokens seen, images in place.
    pub tokens: usize,
    /// Samples seen.
    pub samples: usize,
    /// Samples that were cut to the longest length allowed.
    pub truncated: usize,
    /// Samples that were left out.
    pub skipped: usize,
    /// Seconds of training.
    pub seconds: f64,
    /// Trainable values of each group, in the order of [`crate::step::groups::ParamGroup::ALL`].
    pub trainable: [usize; 3],
    /// The best validation; `None` without a validation split.
    pub best: Option<BestValidation>,
}

impl StageOutcome {
    pub(crate) fn new(stage: u8, progress: &StageProgress, trainable: [usize; 3]) -> Self {
        Self {
            stage,
            steps: progress.step,
            loss: progress.loss,
            tokens: progress.tokens,
            samples: progress.samples,
            truncated: progress.truncated,
            skipped: progress.skipped,
            seconds: progress.seconds,
            trainable,
            best: progress.best,
        }
    }
}

/// What a run was trained from, as far as files can tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// `config.json` and the sizes of the weights of the LLM.
    pub llm: ModelSum,
    /// The same of the vision tower, where it is apart.
    pub vision: Option<ModelSum>,
    /// The data files by their recipe keys.
    pub data: BTreeMap<String, DataSum>,
}

/// A model's directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSum {
    /// The path as it was given.
    pub path: String,
    /// `config.json`; a GGUF file has none beside it.
    config: Option<FileSum>,
    /// Bytes of each weight file.
    weights: BTreeMap<String, u64>,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSum {
    /// The path as it was given.
    pub path: String,
    sum: FileSum,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    format: u32,
    /// The stage at hand, 1 or 2.
    pub stage: u8,
    /// Where it stands.
    pub progress: StageProgress,
    /// The stages before it.
    pub done: Vec<StageOutcome>,
    /// What the run was trained from.
    pub sources: Sources,
}

impl RunState {
    /// The state after a step.
    pub fn new(stage: u8, progress: StageProgress, done: &[StageOutcome], from: &Sources) -> Self {
        Self {
            format: FORMAT,
            stage,
            progress,
            done: done.to_vec(),
            sources: from.clone(),
        }
    }

    /// Writes it into a checkpoint.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| TrainError::Internal(format!("the state is not JSON: {e}")))?;
        let path = directory.join(STATE);
        write_atomic(&path, text + "\n").map_err(|e| TrainError::io(path, e))
    }

    /// Reads it from a checkpoint.
    ///
    /// # Errors
    /// If the file cannot be read or is another version's.
    pub fn read(directory: &Path) -> Result<Self, TrainError> {
        let path = directory.join(STATE);
        let text = files::read_to_string(&path)?;
        let fail = |reason: String| TrainError::RunDirectory {
            path: path.clone(),
            reason,
        };
        let state: Self = serde_json::from_str(&text)
            .map_err(|e| fail(format!("not the state of a run of this version: {e}")))?;
        if state.format != FORMAT {
            return Err(fail(format!(
                "format {}, this version reads {FORMAT}",
                state.format
            )));
        }
        Ok(state)
    }
}

impl Sources {
    /// Looks at the models of a run.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of(paths: &TrainPaths) -> Result<Self, TrainError> {
        Ok(Self {
            llm: ModelSum::of(&paths.llm)?,
            vision: paths.vision.as_deref().map(ModelSum::of).transpose()?,
            data: BTreeMap::new(),
        })
    }

    /// Adds the files of a data set: under `key`, or where there are several under `key[source]` or
    /// `key[source][file]`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn with_data(mut self, key: &str, set: &DataSet) -> Result<Self, TrainError> {
        let sums = set.sums()?;
        let one = sums.len() == 1;
        for files in sums.chunk_by(|a, b| a.source == b.source) {
            for (number, found) in files.iter().enumerate() {
                let sum = DataSum {
                    path: found.path.display().to_string(),
                    sum: FileSum {
                        bytes: found.bytes,
                        crc32: format!("{:08x}", found.crc32),
                    },
                };
                let source = found.source;
                let key = match (one, files.len()) {
                    (true, _) => key.to_owned(),
                    (false, 1) => format!("{key}[{source}]"),
                    (false, _) => format!("{key}[{source}][{number}]"),
                };
                self.data.insert(key, sum);
            }
        }
        Ok(self)
    }

    /// What differs, a sentence each. `labels` tell the two apart.
    pub fn differences(&self, now: &Self, [then, at_hand]: [&str; 2]) -> Vec<String> {
        let mut found = Vec::new();
        let mut models = |name: &str, before: Option<&ModelSum>, now: Option<&ModelSum>| {
            let same = match (before, now) {
                (Some(a), Some(b)) => a.config == b.config && a.weights == b.weights,
                (a, b) => a.is_none() && b.is_none(),
            };
            if !same {
                let path =
                    |sum: Option<&ModelSum>| sum.map_or("none", |s| s.path.as_str()).to_owned();
                found.push(format!(
                    "{name} is another model ({} {then}, {} {at_hand})",
                    path(before),
                    path(now)
                ));
            }
        };
        models("--llm", Some(&self.llm), Some(&now.llm));
        models("--vision", self.vision.as_ref(), now.vision.as_ref());
        let keys: std::collections::BTreeSet<&String> =
            self.data.keys().chain(now.data.keys()).collect();
        for key in keys {
            let (before, now) = (self.data.get(key), now.data.get(key));
            if before.map(|d| &d.sum) != now.map(|d| &d.sum) {
                let shown = |sum: Option<&DataSum>| match sum {
                    None => "none".to_owned(),
                    Some(d) => format!("{}, {} bytes, crc32 {}", d.path, d.sum.bytes, d.sum.crc32),
                };
                found.push(format!(
                    "{key} has other content ({then} {}; {at_hand} {})",
                    shown(before),
                    shown(now)
                ));
            }
        }
        found
    }
}

impl ModelSum {
    fn of(model: &Path) -> Result<Self, TrainError> {
        let (files, config) = if model.is_file() {
            (vec![model.to_path_buf()], None)
        } else {
            let config = model.join("config.json");
            let config_sum = sum(&config).map_err(|e| TrainError::io(&config, e))?;
            (entries(model)?, Some(config_sum))
        };
        let mut weights = BTreeMap::new();
        for path in files {
            let kind = path.extension().and_then(|e| e.to_str());
            if matches!(kind, Some("safetensors" | "bin" | "gguf")) {
                let meta = path.metadata().map_err(|e| TrainError::io(&path, e))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                weights.insert(name.into_owned(), meta.len());
            }
        }
        Ok(Self {
            path: model.display().to_string(),
            config,
            weights,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sq_llava_data::Source;

    use super::*;

    #[test]
    fn files_are_known_by_their_source() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "[]").unwrap();
            path
        };
        let [a, b, c] = ["a.json", "b.json", "c.json"].map(file);
        let of = |lists: Vec<Vec<PathBuf>>| {
            let source = |data: Vec<PathBuf>| Source {
                data,
                ..Source::new("", "")
            };
            let set = DataSet::open(lists.into_iter().map(source).collect()).unwrap();
            let none = Sources {
                llm: ModelSum {
                    path: String::new(),
                    config: None,
                    weights: BTreeMap::new(),
                },
                vision: None,
                data: BTreeMap::new(),
            };
            let found = none.with_data("stage1.sources", &set).unwrap().data;
            found.into_keys().collect::<Vec<_>>()
        };
        let key = |rest: &str| format!("stage1.sources{rest}");
        assert_eq!(of(vec![vec![a.clone()]]), [key("")]);
        assert_eq!(
            of(vec![vec![a.clone(), b.clone()], vec![c.clone()]]),
            [key("[0][0]"), key("[0][1]"), key("[1]")]
        );
        assert_eq!(
            of(vec![vec![a], vec![b, c]]),
            [key("[0]"), key("[1][0]"), key("[1][1]")]
        );
    }
}
