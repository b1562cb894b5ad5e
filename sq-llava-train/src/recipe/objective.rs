//! What is learnt: asking and answering, and the weight of each; and how it is measured.

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

/// Samples that are not trained on, to measure on: loss, accuracy of answers, the best model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationRecipe {
    /// Validate every so many optimizer steps, and at a stage's end; 0 for never.
    pub every: usize,
    /// Part of a stage's samples that is held out, where the stage names no `validation` file.
    pub fraction: f64,
    /// End a stage after so many validations without a better loss; 0 for never. The run's own
    /// files are always the last step's; the best are in `best-S`.
    pub patience: usize,
}
