//! What activations cost memory.

use serde::{Deserialize, Serialize};

/// Which activations are computed again on the way back, to save memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientCheckpointing {
    /// None: all of them are kept.
    #[default]
    None,
    /// Those of every layer of a tower that trains; a layer's input is kept.
    Blocks,
}
