//! What is done with pictures that cannot be used.

use serde::{Deserialize, Serialize};

/// What is done with a sample whose picture is missing, damaged or no picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadImagePolicy {
    /// The training stops and names it.
    #[default]
    Error,
    /// The sample is left out of its step, whose loss is then the mean over the tokens of the
    /// others. To know them beforehand, the pictures of a whole step are decoded before its first
    /// batch, and held in eight bits.
    Skip,
    /// The sample stays, with a picture of nothing but the padding's colour.
    Blank,
}
