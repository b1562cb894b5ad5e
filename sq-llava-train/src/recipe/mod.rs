//! What to train and how: a TOML file, every field of it documented here, with the published
//! settings as defaults.
//!
//! A recipe names only what differs from its flavour. `key=value` on the command line changes one
//! field (`stage2.lr_llm=1e-4`); a key that does not exist is an error.

mod adapters;
mod bad_images;
mod checkpointing;
mod layers;
mod model;
mod objective;
mod published;
mod report;
mod sources;
mod stage;
#[cfg(test)]
mod tests;
mod validate;

pub use adapters::{AdapterRecipe, LoraRecipe};
pub use bad_images::BadImagePolicy;
pub use checkpointing::GradientCheckpointing;
pub use model::{FeatureLayers, MaskRecipe, ModelRecipe};
pub use objective::{AskingRecipe, AskingRoleKind, LossRecipe, Objective, ValidationRecipe};
pub use report::{ReportRecipe, SamplesRecipe};
pub use sources::{Shards, SourceRecipe};
pub use stage::StageRecipe;

use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sq_llava_data::{AskingRole, TemplateChoice, files};
use sq_llava_model::language::quantize::Quantize;

use self::layers::{apply, merge};
use crate::error::TrainError;

/// Which of the two variants of the method the defaults follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavour {
    /// arXiv 2403.11299: prototype extractor φ before `mlp2x_gelu`, role tokens of template `sq`,
    /// LoRA on both towers.
    Paper,
    /// The released code: the `cluster` projector, template `v1_sq`, first turn never asked,
    /// vision adapters that do not train.
    Released,
}

/// Number format of the frozen base weights. What trains is always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// 32 bits.
    F32,
    /// 16 bits; on the CPU alone, whose gradients are still f32.
    F16,
    /// 16 bits with the range of f32; slow on CPUs.
    Bf16,
}

impl BaseDtype {
    /// The format as Burn calls it.
    pub fn float(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

/// A whole training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Variant that gives the defaults of all other fields.
    pub flavour: Flavour,
    /// Stages to run, in order: `[1]`, `[2]` or `[1, 2]`.
    pub stages: Vec<u8>,
    /// Seed of everything random: initial weights, order, asking draws, dropout.
    pub seed: u64,
    /// Number format of the frozen base weights.
    pub dtype: BaseDtype,
    /// `none`, or `blocks`: keep only the input of each layer and compute its activations again on
    /// the way back. A third more work, a fraction of the memory, the same gradients.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Keep the frozen base of the LLM in int8 (`"q8"`) or int4 (`"q4"`), or on the CPU in the blocks of
    /// a GGUF file (`"stored"`); there a base that is stored in blocks stays so in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// A run directory whose projector (and prototypes) a run without stage 1 starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// One progress line every this many steps where there is no terminal.
    pub log_every: usize,
    /// A checkpoint every this many steps; 0 for none but the last.
    pub save_every: usize,
    /// How many of those checkpoints are kept.
    pub keep_checkpoints: usize,
    /// Threads that read and decode images.
    pub workers: usize,
    /// What is done with a picture that is missing or damaged: `error` stops the training, `skip`
    /// leaves its sample out, `blank` shows the padding's colour. Both list it in `skipped.jsonl`.
    pub bad_images: BadImagePolicy,
    /// The part of the samples so far that may be lost to such pictures before a step that is left
    /// with nothing to learn (`skip`), or with no picture but blank ones (`blank`), stops the
    /// training. Ten are always accepted.
    pub max_bad_images: f64,
    /// Whether `</s>` in the text of the data is the end token, as in LLaVA's code. By default it
    /// is plain text, as the names of all other special tokens are in any case.
    pub spoken_end_tokens: bool,
    /// Devices that share the batches of each optimizer step, by their numbers among those of the
    /// kind that the run is on; none for the one that it is on.
    pub devices: Vec<usize>,
    /// On the CPU: groups of threads that share the samples of each batch, which is cut into so many
    /// parts of equal numbers of samples; `batch_size` is a multiple of it. Each group has a part of the
    /// threads to itself, so none waits for another within a layer. By default up to
    /// [`Recipe::MOST_GROUPS`], one for each thread; a run keeps the number that it began with. On other
    /// devices the parts follow one another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_groups: Option<usize>,
    /// Memory for features of images while the vision tower does not train, in MiB.
    pub feature_cache_mib: usize,
    /// What stands between the vision tower and the LLM.
    pub model: ModelRecipe,
    /// Stage 1: the projector and the prototypes learn captions; both towers are frozen.
    pub stage1: StageRecipe,
    /// Stage 2: adapters on both towers; the joint loss of asking and answering.
    pub stage2: StageRecipe,
    /// Adapters of stage 2.
    pub lora: LoraRecipe,
    /// Visual self-questioning.
    pub asking: AskingRecipe,
    /// The loss.
    pub loss: LossRecipe,
    /// Samples that are not trained on, to measure on.
    pub validation: ValidationRecipe,
    /// What the run tells beside its logs.
    pub report: ReportRecipe,
}

impl Recipe {
    /// Reads a recipe and applies `key=value` changes.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, has a key that does not exist or a value that
    /// cannot be used.
    pub fn read(path: &Path, changes: &[String]) -> Result<Self, TrainError> {
        let text = files::read_to_string(path)?;
        Self::parse(&text, changes).map_err(|error| match error {
            TrainError::Recipe(reason) => {
                TrainError::Recipe(format!("{}: {reason}", path.display()))
            }
            other => other,
        })
    }

    /// [`Self::read`] from text.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, changes: &[String]) -> Result<Self, TrainError> {
        let mut given: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| TrainError::Recipe(e.to_string().trim_end().into()))?;
        for change in changes {
            apply(&mut given, change)?;
        }
        let flavour = match given.get("flavour") {
            None => Flavour::Paper,
            Some(value) => value.clone().try_into().map_err(|_| {
                TrainError::Recipe(format!(
                    "flavour is {value}; known are \"paper\" and \"released\""
                ))
            })?,
        };
        let defaults = toml::Table::try_from(Self::published(flavour))
            .map_err(|e| TrainError::Internal(format!("the default recipe is not TOML: {e}")))?;
        let mut whole = defaults;
        merge(&mut whole, given);
        let recipe: Self = whole
            .try_into()
            .map_err(|e: toml::de::Error| TrainError::Recipe(e.to_string().trim_end().into()))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as TOML, with every field.
    ///
    /// # Errors
    /// If a path in it is not Unicode.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string(self).map_err(|e| TrainError::Recipe(format!("cannot be written: {e}")))
    }

    /// The most groups of threads that nobody asked for: each has gradients of its own.
    pub const MOST_GROUPS: usize = 4;

    /// Into how many parts each batch is cut.
    pub(crate) fn groups(&self) -> usize {
        self.thread_groups.unwrap_or(1)
    }

    /// How pictures are prepared by published recipes.
    pub const IMAGE_ASPECT_RATIO: &str = "pad";

    /// How a picture becomes square in a stage, or is laid over tiles; the published way where the
    /// recipe leaves that to what training starts from.
    pub fn image_aspect_ratio(&self, stage: u8) -> &str {
        let own = self.stage(stage).image_aspect_ratio.as_deref();
        own.or(self.model.image_aspect_ratio.as_deref())
            .unwrap_or(Self::IMAGE_ASPECT_RATIO)
    }

    /// The role that asks in a stage, where its template is the checkpoint's own.
    pub fn asking_role(&self, stage: u8) -> Option<AskingRole> {
        let own = self.stage(stage).template == TemplateChoice::Checkpoint;
        own.then(|| self.asking.role.role())
    }

    /// The settings of stage 1 or 2.
    pub fn stage(&self, stage: u8) -> &StageRecipe {
        if stage == 1 {
            &self.stage1
        } else {
            &self.stage2
        }
    }
}
