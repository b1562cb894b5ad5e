//! The run directory: what training changed, in files that other tools load, written so that a
//! torn one is never taken for whole.
//!
//! ```text
//! RUN/
//!   adapter_model.safetensors, adapter_config.json   LLM adapters (PEFT)
//!   Vit-lora/                                        vision adapters (PEFT)
//!   mm_projector.safetensors                         projector and prototypes
//!   new_tokens.safetensors                           rows of the role tokens
//!   config.json, tokenizer files, preprocessor_config.json
//!   recipe.toml, log.jsonl, log.csv
//!   stage1/, checkpoint-S-N/                         the same, earlier
//! ```

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::ImageProcessorConfig;
use sq_llava_model::SqLlava;
use sq_llava_model::weights::{RunOrigin, save_adapters};

use crate::error::TrainError;
use crate::recipe::Recipe;

/// Where a directory is written before it gets its name.
const UNFINISHED: &str = ".unfinished";

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

/// A run directory.
#[derive(Debug, Clone)]
pub struct RunDirectory {
    path: PathBuf,
    recipe: String,
    keep: usize,
}

impl RunDirectory {
    /// Makes the directory and puts the recipe into it.
    ///
    /// # Errors
    /// If it cannot be written, or holds files already.
    pub fn create(path: &Path, recipe: &Recipe) -> Result<Self, TrainError> {
        std::fs::create_dir_all(path).map_err(|e| TrainError::io(path, e))?;
        let mut entries = std::fs::read_dir(path).map_err(|e| TrainError::io(path, e))?;
        if entries.next().is_some() {
            return Err(TrainError::RunDirectory {
                path: path.to_path_buf(),
                reason: "the directory is not empty; name another one, or remove what is there"
                    .into(),
            });
        }
        let run = Self {
            path: path.to_path_buf(),
            recipe: recipe.to_toml()?,
            keep: recipe.keep_checkpoints,
        };
        run.write_recipe(path)?;
        Ok(run)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a whole run into the directory `name` inside this one, under another name first.
    ///
    /// # Errors
    /// If a file cannot be written; then nothing of that name is left.
    pub fn save<B: Backend>(
        &self,
        name: &str,
        model: &SqLlava<B>,
        files: &RunFiles,
    ) -> Result<(), TrainError> {
        let staging = self.stage(model, files)?;
        let target = self.path.join(name);
        std::fs::rename(&staging, &target).map_err(|e| TrainError::io(target, e))
    }

    /// Saves the state after a step and removes the oldest checkpoints of the stage.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn checkpoint<B: Backend>(
        &self,
        stage: u8,
        step: usize,
        model: &SqLlava<B>,
        files: &RunFiles,
    ) -> Result<(), TrainError> {
        self.save(&format!("checkpoint-{stage}-{step}"), model, files)?;
        let mut steps = Vec::new();
        let entries = std::fs::read_dir(&self.path).map_err(|e| TrainError::io(&self.path, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| TrainError::io(&self.path, e))?;
            let name = entry.file_name();
            let of_stage = name
                .to_str()
                .and_then(|n| n.strip_prefix(&format!("checkpoint-{stage}-")));
            steps.extend(of_stage.and_then(|n| n.parse::<usize>().ok()));
        }
        steps.sort_unstable();
        for old in &steps[..steps.len().saturating_sub(self.keep)] {
            let path = self.path.join(format!("checkpoint-{stage}-{old}"));
            std::fs::remove_dir_all(&path).map_err(|e| TrainError::io(path, e))?;
        }
        Ok(())
    }

    /// Writes the end of the run into the directory itself; `config.json`, without which it does
    /// not load, comes last.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn finish<B: Backend>(
        &self,
        model: &SqLlava<B>,
        files: &RunFiles,
    ) -> Result<(), TrainError> {
        let staging = self.stage(model, files)?;
        let entries = std::fs::read_dir(&staging).map_err(|e| TrainError::io(&staging, e))?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(|e| TrainError::io(&staging, e))?.file_name());
        }
        names.sort_by_key(|name| name == "config.json");
        for name in names {
            let target = self.path.join(&name);
            std::fs::rename(staging.join(&name), &target).map_err(|e| TrainError::io(target, e))?;
        }
        std::fs::remove_dir(&staging).map_err(|e| TrainError::io(&staging, e))
    }

    /// Writes a whole run under a name that says that it is not finished.
    fn stage<B: Backend>(
        &self,
        model: &SqLlava<B>,
        files: &RunFiles,
    ) -> Result<PathBuf, TrainError> {
        let staging = self.path.join(UNFINISHED);
        if staging.exists() {
            std::fs::remove_dir_all(&staging).map_err(|e| TrainError::io(&staging, e))?;
        }
        std::fs::create_dir(&staging).map_err(|e| TrainError::io(&staging, e))?;
        save_adapters(model, &staging, &files.origin)?;
        files.tokenizer.save(&staging)?;
        files
            .processor
            .write(&staging.join("preprocessor_config.json"))?;
        self.write_recipe(&staging)?;
        Ok(staging)
    }

    fn write_recipe(&self, directory: &Path) -> Result<(), TrainError> {
        let path = directory.join("recipe.toml");
        std::fs::write(&path, &self.recipe).map_err(|e| TrainError::io(path, e))
    }
}
