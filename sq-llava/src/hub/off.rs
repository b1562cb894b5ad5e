//! A build that takes paths only.

use std::path::{Path, PathBuf};

use super::{HubError, ModelName, Part, Progress};

/// Refuses names.
#[derive(Debug, Clone, Default)]
pub struct Hub;

impl Hub {
    /// Nothing is read from the environment.
    pub fn from_env() -> Self {
        Self
    }

    /// Nothing is downloaded.
    #[must_use]
    pub fn with_progress(self, _progress: Progress) -> Self {
        self
    }

    /// The path itself.
    ///
    /// # Errors
    /// If there is none and it has the form of a name.
    pub fn locate(&self, given: &Path, _part: Part) -> Result<PathBuf, HubError> {
        match ModelName::of(given) {
            Some(name) if !given.exists() => Err(HubError::Disabled { name }),
            _ => Ok(given.to_path_buf()),
        }
    }
}
