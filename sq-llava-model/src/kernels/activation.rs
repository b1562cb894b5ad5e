//! Activation functions by their Hugging Face names.

use serde::{Deserialize, Serialize};

/// Non-linearity of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · σ(1.702 x)`, OpenAI CLIP.
    QuickGelu,
    /// Exact GELU.
    Gelu,
    /// GELU, tanh approximation.
    #[serde(alias = "gelu_new")]
    GeluPytorchTanh,
    /// `x · σ(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// `max(x, 0)`.
    Relu,
}
