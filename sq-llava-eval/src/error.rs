//! The error of this crate.

use std::path::{Path, PathBuf};

use sq_llava_data::DataError;
use sq_llava_model::ModelError;

/// Why a model could not be measured. Every message names the file (or question) at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// Another program cannot be run, or fails.
    #[error("{}: {reason}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What went wrong and what to do.
        reason: String,
    },
    /// A benchmark's file is not in its format, or does not belong to the others.
    #[error("{}: {reason}", path.display())]
    Benchmark {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A line of a file is not a request to a judge.
    #[error("{}: line {line}: {reason}", path.display())]
    Judge {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The settings of a judge cannot be read, or have an impossible value.
    #[error("{}: {reason}", path.display())]
    JudgeSettings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A judge's endpoint refuses, is out of reach, or must not receive the key.
    #[error("{url}: {reason}")]
    Endpoint {
        /// Where it was asked.
        url: String,
        /// What it said and what to do.
        reason: String,
    },
    /// The model failed at a question, or cannot take a benchmark's.
    #[error("{what}: {source}")]
    Asking {
        /// The question or the benchmark.
        what: String,
        /// What the model says.
        source: ModelError,
    },
    /// A picture, a tokenizer or a manifest.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model that is measured, or the one that measures.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl EvalError {
    /// An [`EvalError::Io`].
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// An [`EvalError::Benchmark`].
    pub(crate) fn benchmark(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Benchmark {
            path: path.into(),
            reason: reason.into(),
        }
    }
}
