//! Files that a benchmark's server or script takes.

use std::path::Path;

use serde::Serialize;

use crate::EvalError;
use sq_llava_data::atomic::write_atomic;

/// A file to be submitted: its name and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmissionFile {
    /// Name, where several belong together with a folder.
    pub name: String,
    /// Contents.
    pub bytes: Vec<u8>,
}

impl SubmissionFile {
    /// One file of JSON.
    pub(crate) fn json(name: &str, value: &impl Serialize) -> Result<Vec<Self>, EvalError> {
        let bytes = serde_json::to_vec(value).map_err(|source| EvalError::Json {
            path: name.into(),
            source,
        })?;
        Ok(Self::one(name, bytes))
    }

    /// One file.
    pub(crate) fn one(name: &str, bytes: Vec<u8>) -> Vec<Self> {
        vec![Self {
            name: name.to_owned(),
            bytes,
        }]
    }

    /// Writes it into a folder, which is made; a reader never sees half of it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), EvalError> {
        let path = folder.join(&self.name);
        let io = |source| EvalError::io(&path, source);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        write_atomic(&path, &self.bytes).map_err(io)
    }
}
