//! The run directory: what training changed, in files that other tools load, written so that a
//! torn one is never taken for whole.
//!
//! ```text
//! RUN/
//!   adapter_model.safetensors, adapter_config.json   LLM adapters (PEFT)
//!   Vit-lora/                                        vision adapters (PEFT)
//!   non_lora_trainables.safetensors                  projector and prototypes
//!   new_tokens.safetensors                           rows of the role tokens
//!   config.json, tokenizer files, preprocessor_config.json
//!   trainer_state.json, manifest.json                where the run stands; sums of the files
//!   recipe.toml, paths.json                          what it was asked to do
//!   log.*, validation.*, loss.svg                    its curves
//!   checkpoint-S-N/                                  the same after step N of stage S, with
//!                                                    optimizer.safetensors
//!   best-S/                                          the same after the best validation of stage S
//!   stageS/                                          the same at the end of stage S, without
//!                                                    optimizer.safetensors
//!   tensorboard/                                     its curves and samples as events
//!   samples.jsonl, samples/                          what the model asked and answered on the way
//!   report.html                                      a page about all of it
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::backend::Backend;
use sq_llava_data::atomic::{is_temporary, write_atomic};
use sq_llava_data::image::ImageProcessorConfig;
use sq_llava_data::{TextTokenizer, files};
use sq_llava_model::SqLlava;
use sq_llava_model::weights::{RunOrigin, save_adapters};

use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::run::base::TrainPaths;
use crate::run::manifest::{entries, seal, sync_directory};

/// Where a directory is written before it gets its name.
const UNFINISHED: &str = ".unfinished";
/// Where a directory goes before it is removed.
const REMOVED: &str = ".removed";
/// Held by the process that trains.
const LOCK: &str = ".lock";
/// The recipe.
pub(crate) const RECIPE: &str = "recipe.toml";
/// The towers and folders.
const PATHS: &str = "paths.json";

/// What belongs to a run beside the weights.
#[derive(Debug, Clone)]
pub struct RunFiles {
    /// The tokenizer, with the template's tokens.
    pub tokenizer: TextTokenizer,
    /// The image processor.
    pub processor: ImageProcessorConfig,
    /// The towers that the adapters belong to.
    pub origin: RunOrigin,
}

/// A run directory. One process has it at a time.
#[derive(Debug, Clone)]
pub struct RunDirectory {
    path: PathBuf,
    recipe: String,
    keep: usize,
    _lock: Arc<File>,
}

impl RunDirectory {
    /// Makes the directory and puts recipe and paths into it.
    ///
    /// # Errors
    /// If it cannot be written, or holds files already.
    pub fn create(path: &Path, recipe: &Recipe, paths: &TrainPaths) -> Result<Self, TrainError> {
        std::fs::create_dir_all(path).map_err(|e| TrainError::io(path, e))?;
        Self::check_unused(path)?;
        let run = Self::lock(path, recipe)?;
        let text = serde_json::to_string_pretty(paths)
            .map_err(|e| TrainError::Internal(format!("the paths are not JSON: {e}")))?;
        let file = path.join(PATHS);
        write_atomic(&file, text + "\n").map_err(|e| TrainError::io(file, e))?;
        run.write_recipe(path)?;
        Ok(run)
    }

    /// Whether a run can be made there: nothing is there, or an empty directory.
    ///
    /// # Errors
    /// If it holds files already.
    pub(crate) fn check_unused(path: &Path) -> Result<(), TrainError> {
        if !path.exists() {
            return Ok(());
        }
        // A run that never took a step leaves these.
        let unused = [RECIPE, PATHS, LOCK].map(|name| path.join(name));
        let used = |found: &PathBuf| !unused.contains(found) && !is_temporary(found);
        if entries(path)?.iter().any(used) {
            return Err(TrainError::RunDirectory {
                path: path.to_path_buf(),
                reason:
                    "the directory is not empty; go on with --resume, name another one, or remove what is there"
                        .into(),
            });
        }
        Ok(())
    }

    /// Goes on in a directory that [`Self::create`] made.
    ///
    /// # Errors
    /// If another process trains in it, or it cannot be written.
    pub(crate) fn open(path: &Path, recipe: &Recipe) -> Result<Self, TrainError> {
        let run = Self::lock(path, recipe)?;
        // What a killed process left.
        run.clear(UNFINISHED)?;
        run.clear(REMOVED)?;
        run.write_recipe(path)?;
        Ok(run)
    }

    fn lock(path: &Path, recipe: &Recipe) -> Result<Self, TrainError> {
        let file = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&file)
            .map_err(|e| TrainError::io(&file, e))?;
        // Some network file systems have no locks; then no process is kept out.
        if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(TrainError::RunDirectory {
                path: path.to_path_buf(),
                reason: "another process trains in this directory".into(),
            });
        }
        Ok(Self {
            path: path.to_path_buf(),
            recipe: recipe.to_toml()?,
            keep: recipe.keep_checkpoints,
            _lock: Arc::new(lock),
        })
    }

    /// Whether a run has begun in a directory, so that it can go on there.
    pub fn begun(path: &Path) -> bool {
        first_missing(path).is_none()
    }

    /// Recipe and paths of the run in a directory.
    ///
    /// # Errors
    /// If there is no run, or its files cannot be read.
    pub fn asked(path: &Path) -> Result<(Recipe, TrainPaths), TrainError> {
        if let Some(missing) = first_missing(path) {
            return Err(TrainError::RunDirectory {
                path: path.to_path_buf(),
                reason: format!("there is no run here to go on with ({missing} is missing)"),
            });
        }
        let recipe = path.join(RECIPE);
        let recipe = Recipe::read(&recipe, &[])?;
        let file = path.join(PATHS);
        let text = files::read_to_string(&file)?;
        let mut paths: TrainPaths =
            serde_json::from_str(&text).map_err(|e| TrainError::RunDirectory {
                path: file,
                reason: e.to_string(),
            })?;
        paths.out = path.to_path_buf();
        Ok((recipe, paths))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a whole run into the directory `name` inside this one, under another name first;
    /// one of that name is replaced. `more` adds files.
    ///
    /// # Errors
    /// If a file cannot be written; then what was there stays.
    pub fn save<B: Backend>(
        &self,
        name: &str,
        model: &SqLlava<B>,
        files: &RunFiles,
        more: impl Fn(&Path) -> Result<(), TrainError>,
    ) -> Result<PathBuf, TrainError> {
        let staging = self.stage(model, files, more)?;
        let target = self.path.join(name);
        if target.exists() {
            self.remove(&target)?;
        }
        std::fs::rename(&staging, &target).map_err(|e| TrainError::io(&target, e))?;
        sync_directory(&self.path)?;
        Ok(target)
    }

    /// [`Self::save`]s the state after a step and removes the oldest checkpoints of the stage.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub(crate) fn checkpoint<B: Backend>(
        &self,
        stage: u8,
        step: usize,
        model: &SqLlava<B>,
        files: &RunFiles,
        more: impl Fn(&Path) -> Result<(), TrainError>,
    ) -> Result<PathBuf, TrainError> {
        let saved = self.save(&checkpoint_name(stage, step), model, files, more)?;
        let mut steps: Vec<usize> = checkpoints(&self.path)?
            .into_iter()
            .filter(|found| found.stage == stage && found.step <= step)
            .map(|found| found.step)
            .collect();
        steps.sort_unstable();
        for &old in &steps[..steps.len().saturating_sub(self.keep)] {
            self.remove(&self.path.join(checkpoint_name(stage, old)))?;
        }
        Ok(saved)
    }

    /// Writes the end of the run into the directory itself; `config.json`, without which it does
    /// not load, comes last. `more` adds files.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn finish<B: Backend>(
        &self,
        model: &SqLlava<B>,
        files: &RunFiles,
        more: impl Fn(&Path) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let staging = self.stage(model, files, more)?;
        let mut found = entries(&staging)?;
        found.sort_by_key(|path| path.ends_with("config.json"));
        for path in found {
            let target = self.path.join(path.file_name().unwrap_or_default());
            if target.is_dir() {
                self.remove(&target)?;
            }
            std::fs::rename(&path, &target).map_err(|e| TrainError::io(target, e))?;
        }
        std::fs::remove_dir(&staging).map_err(|e| TrainError::io(&staging, e))?;
        sync_directory(&self.path)
    }

    /// Removes a directory, so that a half removed one never has its name.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn remove(&self, directory: &Path) -> Result<(), TrainError> {
        self.clear(REMOVED)?;
        let target = self.path.join(REMOVED);
        std::fs::rename(directory, &target).map_err(|e| TrainError::io(directory, e))?;
        self.clear(REMOVED)
    }

    fn clear(&self, name: &str) -> Result<(), TrainError> {
        let path = self.path.join(name);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io(path, e)),
            _ => Ok(()),
        }
    }

    /// Writes a whole run under a name that says that it is not finished.
    fn stage<B: Backend>(
        &self,
        model: &SqLlava<B>,
        files: &RunFiles,
        more: impl Fn(&Path) -> Result<(), TrainError>,
    ) -> Result<PathBuf, TrainError> {
        self.clear(UNFINISHED)?;
        let staging = self.path.join(UNFINISHED);
        let write = || -> Result<(), TrainError> {
            std::fs::create_dir(&staging).map_err(|e| TrainError::io(&staging, e))?;
            save_adapters(model, &staging, &files.origin)?;
            files.tokenizer.save(&staging)?;
            files
                .processor
                .write(&staging.join("preprocessor_config.json"))?;
            self.write_recipe(&staging)?;
            more(&staging)?;
            seal(&staging)
        };
        let written = write();
        if written.is_err() {
            // The disk may be full: give back what was taken. The first error is the one to tell.
            let _ = self.clear(UNFINISHED);
        }
        written.map(|()| staging)
    }

    fn write_recipe(&self, directory: &Path) -> Result<(), TrainError> {
        let path = directory.join(RECIPE);
        write_atomic(&path, &self.recipe).map_err(|e| TrainError::io(path, e))
    }
}

/// The file that a run's directory must have and has not.
fn first_missing(path: &Path) -> Option<&'static str> {
    let missing = |name: &&str| !path.join(name).is_file();
    [RECIPE, PATHS].into_iter().find(missing)
}

/// Name of the best model of a stage.
pub(crate) fn best_name(stage: u8) -> String {
    format!("best-{stage}")
}

/// The last part of a path.
pub(crate) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn checkpoint_name(stage: u8, step: usize) -> String {
    format!("checkpoint-{stage}-{step}")
}

/// A checkpoint in a run directory; in order, the oldest first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CheckpointDir {
    pub stage: u8,
    pub step: usize,
    pub path: PathBuf,
}

/// The checkpoints in a run directory, in no order.
pub(crate) fn checkpoints(run: &Path) -> Result<Vec<CheckpointDir>, TrainError> {
    let read = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let (stage, step) = name.strip_prefix("checkpoint-")?.split_once('-')?;
        Some(CheckpointDir {
            stage: stage.parse().ok()?,
            step: step.parse().ok()?,
            path: path.clone(),
        })
    };
    Ok(entries(run)?.into_iter().filter_map(read).collect())
}
