//! What is learnt: asking and answering, and the weight of each.

use serde::{Deserialize, Serialize};

/// Visual self-questioning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskingRecipe {
    /// Probability δ that an eligible human turn is asked by the model; 0 switches asking off.
    pub delta: f64,
    /// Whether the first turn is eligible (paper) or not (released code).
    pub first_turn: bool,
}

/// The loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRecipe {
    /// Weight of the tokens of asked questions.
    pub question_weight: f64,
    /// Weight of the tokens of answers.
    pub answer_weight: f64,
    /// Tokens whose logits are in memory at once.
    pub chunk_tokens: usize,
}
