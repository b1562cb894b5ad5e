//! What is learnt: asking and answering, and the weight of each; and how it is measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sq_llava_data::{AskingPolicy, AskingRole, DeltaSchedule};

/// What a stage learns of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// To say it: the joint loss of asking and answering, through the LLM.
    #[default]
    Text,
    /// Which of a batch's pictures has which words: the projector alone, compared with the LLM's
    /// embeddings ([`crate::step::words`]). Stage 1 only.
    Words,
}

/// What tells an asked question from a given one in a checkpoint's own template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskingRoleKind {
    /// The token `[vusr]`, which the tokenizer and the model learn.
    Token,
    /// The text `VUSER:`, where the vocabulary is to stay or cannot grow.
    Text,
}

impl AskingRoleKind {
    /// The role.
    pub fn role(self) -> AskingRole {
        match self {
            Self::Token => AskingRole::token(),
            Self::Text => AskingRole::text(),
        }
    }
}

/// Visual self-questioning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskingRecipe {
    /// Probability δ that an eligible human turn is asked by the model. 0 switches asking off,
    /// whatever `schedule`, `delta_end` and `sources` say: a schedule that rises from nothing starts at a small
    /// number such as 1e-6.
    pub delta: f64,
    /// How δ changes over a stage: `constant`; `linear` or `cosine`, by optimizer step / all steps;
    /// `adaptive`, by how far the questions of each data source have been learnt against its
    /// answers.
    pub schedule: DeltaSchedule,
    /// What a `linear` or `cosine` δ ends at.
    pub delta_end: f64,
    /// The least that an `adaptive` δ becomes: what is never asked cannot be measured.
    pub delta_min: f64,
    /// The most that an `adaptive` δ becomes.
    pub delta_max: f64,
    /// Optimizer steps that an `adaptive` δ is measured over, and after which it moves.
    pub every: usize,
    /// The part of its means that an `adaptive` δ keeps each time, from 0.
    pub smoothing: f64,
    /// The power of the measured ratio that an `adaptive` δ follows: 0 keeps it where it starts, 1
    /// moves it in proportion.
    pub strength: f64,
    /// Whether the first turn is eligible (paper) or not (released code).
    pub first_turn: bool,
    /// How template `checkpoint` tells an asked question from a given one: `token` (`[vusr]`) or
    /// `text` (`VUSER:`). Our own templates have roles of their own.
    pub role: AskingRoleKind,
    /// A constant δ of its own for single data sources, such as `coco = 0.5`. A source is called by
    /// the first folder of a sample's first image path, or else by the file name of its manifest.
    pub sources: BTreeMap<String, f64>,
}

impl AskingRecipe {
    /// Whether a δ of 0 stands against others that would ask.
    pub(crate) fn is_overruled(&self) -> bool {
        let later = match self.schedule {
            DeltaSchedule::Constant => false,
            DeltaSchedule::Linear | DeltaSchedule::Cosine => self.delta_end > 0.0,
            DeltaSchedule::Adaptive => true,
        };
        self.delta == 0.0 && (later || self.sources.values().any(|&delta| delta > 0.0))
    }

    /// Whether δ follows what is measured.
    pub fn is_adaptive(&self) -> bool {
        self.delta > 0.0 && self.schedule == DeltaSchedule::Adaptive
    }

    /// How questions are drawn; `None` where none ever is.
    pub fn policy(&self, seed: u64) -> Option<AskingPolicy> {
        if self.delta == 0.0 {
            return None;
        }
        Some(AskingPolicy {
            delta: self.delta,
            schedule: self.schedule,
            delta_end: self.delta_end,
            sources: self.sources.clone(),
            first_turn: self.first_turn,
            seed,
        })
    }
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
    /// Validate every this many optimizer steps, and at a stage's end; 0 for never.
    pub every: usize,
    /// Part of a stage's samples that is held out, where the stage names no `validation` file.
    pub fraction: f64,
    /// End a stage after this many validations without a better loss; 0 for never. The run's own
    /// files are always the last step's; the best are in `best-S`.
    pub patience: usize,
}
