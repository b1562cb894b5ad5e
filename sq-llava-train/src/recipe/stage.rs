//! Settings of one stage.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sq_llava_data::{Grouping, TemplateChoice};

use super::Recipe;
use super::objective::Objective;
use super::sources::SourceRecipe;

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// LLaVA JSON or JSONL, Parquet or tar files: a file, a folder of them, or a pattern
    /// (`train-*.parquet`, `shard-{000..012}.tar`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Folder that its image paths start from, and those of sources that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// What to validate on, of the same forms, in place of a part of the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Conversation template: `plain`, `v1`, `v1_sq`, `sq`, or `checkpoint` for the `chat_template`
    /// that the LLM's tokenizer brings.
    pub template: TemplateChoice,
    /// What is learnt of the text: `text`, to say it, through the LLM; or in stage 1 `words`, which
    /// of a batch's pictures has which words, without the LLM.
    #[serde(default)]
    pub objective: Objective,
    /// How pictures are prepared in this stage, in place of `model.image_aspect_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_aspect_ratio: Option<String>,
    /// Passes over the data. A fraction ends a pass early: 1.2 is one pass and the first fifth of
    /// another, rounded up to whole optimizer steps.
    pub epochs: f64,
    /// Samples that go through the model at once; with `packing` the most rows that do.
    pub batch_size: usize,
    /// Such batches in one optimizer step, which has `batch_size · accumulation` samples, packed or
    /// not.
    pub accumulation: usize,
    /// Which samples make a step: `random`; `length`, the longest of a step first, so that batches
    /// are padded little; or `modality_length`, the same with steps of samples with an image and
    /// steps of samples without. The last two read the data once before the first step.
    pub grouping: Grouping,
    /// Put samples of a step one behind the other into rows of up to `max_length` tokens, each seeing
    /// itself alone, in place of padding. A step learns the same.
    #[serde(default)]
    pub packing: bool,
    /// Put the turns of each conversation in another order in each epoch, except those with several
    /// images. For data whose questions stand on their own: each is then learnt without the others
    /// before it too.
    pub shuffle_turns: bool,
    /// Peak learning rate of the LLM's adapters; 0 freezes them.
    pub lr_llm: f64,
    /// Peak learning rate of projector, prototypes and the rows of new tokens.
    pub lr_projector: f64,
    /// Keep projector and prototypes as they are; the rows of new tokens still train.
    pub freeze_projector: bool,
    /// Peak learning rate of the vision tower's adapters; 0 freezes them, and then the tower runs
    /// without a graph.
    pub lr_vision: f64,
    /// Part of the steps over which the rates rise from 0.
    pub warmup_ratio: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of all gradients together; 0 leaves them as they are.
    pub clip_norm: f64,
    /// Longest sequence in tokens, image tokens included; longer ones are cut at a turn.
    pub max_length: usize,
    /// Several sources in place of `data`. Last, as TOML has tables behind values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRecipe>,
}

impl StageRecipe {
    /// Least samples of a batch whose words are learnt: two for each of the most groups of threads.
    pub(super) const LEAST_WORDS_BATCH: usize = 2 * Recipe::MOST_GROUPS;

    /// Samples of one optimizer step; the recipe's checks keep the product small enough.
    pub fn samples_per_step(&self) -> usize {
        self.batch_size * self.accumulation
    }

    /// The most pictures that are expected at once, one for each sample. Packed samples are dealt
    /// evenly to as many batches as without packing, and so are about as many; but a single row may
    /// be full of pictures of `tokens_per_image`.
    pub(crate) fn pictures_at_once(&self, tokens_per_image: usize) -> usize {
        if !self.packing {
            return self.batch_size;
        }
        let in_a_row = self.max_length / tokens_per_image.max(1);
        in_a_row.min(self.samples_per_step()).max(self.batch_size)
    }
}
