//! The crate's one error type.

use std::path::PathBuf;

use sq_llava_data::DataError;
use sq_llava_model::ModelError;

/// What can go wrong when a model is trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The recipe, or a `key=value` given beside it, asks for something that cannot be done.
    #[error("recipe: {0}")]
    Recipe(String),
    /// A sample cannot be used.
    #[error("sample {sample}: {reason}")]
    Sample {
        /// Id of the sample, or its place in the file.
        sample: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// So many pictures are bad that a step had nothing else.
    #[error(
        "{what} {step}: nothing is left of it, and bad pictures cost {lost} of the {seen} samples so \
         far, the last one {last}; look whether the folder of the pictures is all there, or raise \
         max_bad_images above {most}"
    )]
    BadImages {
        /// What is counted: `step`, or a batch of the validation.
        what: &'static str,
        /// Its number, from 1.
        step: usize,
        /// Samples that were left out or shown blank.
        lost: usize,
        /// Samples so far.
        seen: usize,
        /// A sample, its picture and what is wrong with it.
        last: String,
        /// The part that may be lost.
        most: f64,
    },
    /// A whole stage learnt nothing.
    #[error(
        "stage {stage}: not one token was learnt: all samples were left out because of their \
         pictures, and {list} names them; or words were to be learnt, and no batch had two samples with pictures"
    )]
    NothingLearnt {
        /// 1 or 2.
        stage: u8,
        /// Name of the list.
        list: &'static str,
    },
    /// The loss or a gradient is no longer a number.
    #[error(
        "step {step}: {what} is not finite; nothing was changed by this step. Lower the learning \
         rate, lengthen the warm-up or set clip_norm"
    )]
    NotFinite {
        /// The optimizer step, from 1.
        step: usize,
        /// `the loss` or `the gradient norm`.
        what: &'static str,
    },
    /// The run directory cannot be used.
    #[error("{}: {reason}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Several processes were started that cannot train together.
    #[error("{0}")]
    Ranks(String),
    /// The nodes of a run are not about to do the same; all of them have this error.
    #[error("the nodes differ: {0}")]
    NodesDiffer(String),
    /// A part of the training stopped without saying why.
    #[error("{0}")]
    Internal(String),
    /// From the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// From the data.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl TrainError {
    /// An input/output error with the path that it concerns.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}
