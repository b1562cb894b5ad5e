//! The crate's one error type.

use std::path::PathBuf;

use burn::tensor::DType;
use thiserror::Error;

use crate::origin::{Origin, advice};

/// What can go wrong when a model is configured, loaded, run or saved.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A configuration file is missing, malformed or asks for something unknown.
    #[error("{path}: {reason}")]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A weight file is damaged or of an unknown kind.
    #[error("{path}: {reason}")]
    Weights {
        /// The weight file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A checkpoint lacks weights that the model needs, or has them in another shape.
    #[error("{0}")]
    Incomplete(String),
    /// The number of images given differs from the number of image tokens in the text.
    #[error(
        "sample {sample}: {images} image(s) were given for {tokens} image token(s) in the text"
    )]
    ImageCount {
        /// Index of the sample in the batch.
        sample: usize,
        /// Images given.
        images: usize,
        /// Image tokens found.
        tokens: usize,
    },
    /// The model has no vision tower but an image was given.
    #[error("this model has no vision tower: it cannot take an image")]
    NoVisionTower,
    /// A token id lies outside the vocabulary.
    #[error(
        "token id {id} is outside the vocabulary of {vocabulary} tokens; is this the model's own tokenizer?"
    )]
    Vocabulary {
        /// The id.
        id: i64,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// Prompt and answer do not fit into the context window.
    #[error(
        "{tokens} tokens do not fit into the context of {limit} tokens; shorten the conversation or use fewer images"
    )]
    ContextOverflow {
        /// Tokens of the prompt, image tokens included.
        tokens: usize,
        /// Size of the window.
        limit: usize,
    },
    /// The model computed NaN or infinity.
    #[error(
        "the model's numbers are not finite (NaN or infinity) from {origin} on: {}",
        advice(*.dtype)
    )]
    NotFinite {
        /// Index of the sample in the batch.
        sample: usize,
        /// Where it begins.
        origin: Origin,
        /// Dtype of the weights.
        dtype: DType,
    },
    /// An argument has an impossible value.
    #[error("{0}")]
    Argument(String),
    /// An error of images, tokenizers or templates.
    #[error(transparent)]
    Data(#[from] sq_llava_data::DataError),
}

impl ModelError {
    /// An input/output error with the path that it concerns.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }

    /// A configuration error.
    pub fn config(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Config {
            path: path.into(),
            reason: reason.into(),
        }
    }

    /// A weight file error.
    pub fn weights(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Weights {
            path: path.into(),
            reason: reason.into(),
        }
    }
}
