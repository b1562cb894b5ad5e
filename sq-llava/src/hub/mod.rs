//! Models by name: `org/name` or `org/name@revision`, as the Hugging Face hub has them.
//!
//! Files come from the cache that Python's `huggingface_hub` keeps (`models--org--name` with
//! `refs`, `snapshots` and `blobs`), and what is missing is downloaded into it, so that either
//! side uses what the other has. A path that exists always goes before a name.
//!
//! The crate `hf-hub` is not used: 1.0 starts a cut download anew, has no time-outs and no switch
//! for machines without network, and brings tokio and a second HTTP stack; 0.5 appends to a part
//! whatever the server sends, and takes any length for the whole.

mod name;

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod needed;
#[cfg(feature = "hub")]
mod online;
#[cfg(feature = "hub")]
mod settings;

#[cfg(not(feature = "hub"))]
mod off;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::name::ModelName;

#[cfg(feature = "hub")]
pub use self::online::Hub;
#[cfg(feature = "hub")]
pub use self::settings::{Settings, Token};

#[cfg(not(feature = "hub"))]
pub use self::off::Hub;

use thiserror::Error;

/// What is needed of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Configuration, tokenizer, picture processor and weights, of a whole model or of a run.
    Model,
    /// The tokenizer's files.
    Tokenizer,
}

/// Told of a download: the model, the bytes that are here, and the bytes that will be.
pub type Progress = Arc<dyn Fn(&ModelName, u64, u64) + Send + Sync>;

/// Finds models by the names that checkpoints give.
pub type LookUp = Arc<dyn Fn(&str) -> Result<Option<PathBuf>, String> + Send + Sync>;

impl Hub {
    /// For the towers and bases that a checkpoint names (`LoadOptions::look_up`): nothing for what
    /// has not the form of a name.
    pub fn look_up(&self) -> LookUp {
        let hub = self.clone();
        Arc::new(move |name| {
            let path = Path::new(name);
            if ModelName::of(path).is_none() {
                return Ok(None);
            }
            let found = hub.locate(path, Part::Model);
            found.map(Some).map_err(|error| error.to_string())
        })
    }
}

/// Why a name gave no model.
#[derive(Debug, Error)]
pub enum HubError {
    /// It is no path, and neither cache nor hub have it.
    #[error("{name}: no such file or folder; {cache}; {hub}")]
    Missing {
        /// What was asked for.
        name: ModelName,
        /// What the cache lacks.
        cache: String,
        /// What the hub said, and what to do.
        hub: String,
    },
    /// The hub has it, but it cannot be used or did not come.
    #[error("{name}: {reason}")]
    Unusable {
        /// What was asked for.
        name: ModelName,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The cache could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// This build takes paths only.
    #[error(
        "{name}: no such file or folder; this build does not look models up by name (build it \
         with --features hub), so give a folder"
    )]
    Disabled {
        /// What was asked for.
        name: ModelName,
    },
}
