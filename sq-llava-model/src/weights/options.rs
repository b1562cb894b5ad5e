//! How a model is loaded.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::FloatDType;

use crate::config::{ProjectorConfig, PrototypeConfig};
use crate::language::quantize::Quantize;

/// Called with the bytes read so far and the bytes to read.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Finds the model that a checkpoint names and that is no directory here; `None` if nobody could
/// mean one by that name, and the reason if it is not to be had.
pub type LookUp = Arc<dyn Fn(&str) -> Result<Option<PathBuf>, String> + Send + Sync>;

/// How a model is loaded.
#[derive(Clone)]
pub struct LoadOptions {
    /// Dtype of the weights in memory: f32, f16 or bf16.
    pub dtype: FloatDType,
    /// When weights of towers and language model that are stored in 16 bits are in those in memory,
    /// and not in `dtype`.
    pub narrow: Narrow,
    /// The LLM (or LLaVA) that a run directory was trained on.
    pub base: Option<PathBuf>,
    /// A vision tower's directory, for checkpoints without one inside. A run directory takes it
    /// before its base's.
    pub vision: Option<PathBuf>,
    /// Tower and projector in a GGUF file, for a language model without them.
    pub mmproj: Option<PathBuf>,
    /// Looks up the base and the tower that a checkpoint names, where none is given and no
    /// directory of that name is here.
    pub look_up: Option<LookUp>,
    /// A projector's file, or a directory that holds one, for a plain LLM with a vision tower.
    pub projector: Option<PathBuf>,
    /// Layers of the vision tower whose outputs are the image features, in place of those that the
    /// checkpoint says: for a plain LLM with a vision tower.
    pub select_layers: Option<Vec<i64>>,
    /// Keep adapters, projector, prototype extractor and new tokens in f32, as training needs.
    pub trainable_f32: bool,
    /// Let everything but those take no gradient.
    pub freeze_base: bool,
    /// Start training from new parts instead of the files'.
    pub fresh: Option<FreshParts>,
    /// Bring the language model's matrices into blocks of int8 or int4 while loading; on backends
    /// other than the CPU's the linears, and not for training.
    pub quantize: Option<Quantize>,
    /// Go on although the files hold weights or architecture keys that the model has no place for
    /// and that are not known to be harmless. What the model then computes may not be what it
    /// was trained to.
    pub allow_unused: bool,
    /// Told about the bytes read.
    pub progress: Option<Progress>,
}

/// When weights that are stored in 16 bits stay so in memory, if the device computes in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Narrow {
    /// Only if they are asked for in that dtype.
    #[default]
    Never,
    /// Always: half the memory of f32, and each number is that of the file.
    Stored,
    /// Always, and f16 as bf16 on processors that multiply bf16 faster than f32.
    Fastest,
}

/// Parts between vision tower and LLM that start from a random draw.
#[derive(Debug, Clone)]
pub struct FreshParts {
    /// The projector W.
    pub projector: ProjectorConfig,
    /// Draws the paper's φ; its width is set to the tower's.
    pub prototype: Option<PrototypeConfig>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: FloatDType::F32,
            narrow: Narrow::Never,
            base: None,
            vision: None,
            mmproj: None,
            look_up: None,
            projector: None,
            select_layers: None,
            trainable_f32: false,
            freeze_base: false,
            fresh: None,
            quantize: None,
            allow_unused: false,
            progress: None,
        }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("dtype", &self.dtype)
            .field("narrow", &self.narrow)
            .field("base", &self.base)
            .field("vision", &self.vision)
            .field("mmproj", &self.mmproj)
            .field("look_up", &self.look_up.is_some())
            .field("projector", &self.projector)
            .field("select_layers", &self.select_layers)
            .field("trainable_f32", &self.trainable_f32)
            .field("freeze_base", &self.freeze_base)
            .field("fresh", &self.fresh)
            .field("quantize", &self.quantize)
            .field("allow_unused", &self.allow_unused)
            .field("progress", &self.progress.is_some())
            .finish()
    }
}
