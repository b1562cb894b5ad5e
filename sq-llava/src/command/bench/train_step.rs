//! A training step of a LLaMA with adapters: forward, loss, backward, optimizer.

use std::sync::Arc;

use anyhow::Result;
use burn::optim::Optimizer;
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use sq_llava_data::TokenRole;
use sq_llava_model::SqLlava;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_train::data::batch::{MicroBatch, TrainSample};
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::loss::LossSettings;
use sq_llava_train::step::optimizer::GroupedAdamW;
use sq_llava_train::step::whole::{StepContext, TrainModel};
use sq_llava_train::{Flavour, GradientCheckpointing, Recipe};

use super::{Bench, Row, sync};

/// Size of a step.
pub(super) struct TrainShape {
    pub rank: usize,
    pub batch: usize,
    pub tokens: usize,
    pub checkpointing: GradientCheckpointing,
}

impl TrainShape {
    /// Without recompute.
    pub(super) fn new(rank: usize, batch: usize, tokens: usize) -> Self {
        Self {
            rank,
            batch,
            tokens,
            checkpointing: GradientCheckpointing::None,
        }
    }
}

impl Bench {
    /// All seven linears of every layer adapted, no dropout, every token but the first learnt.
    pub(super) fn train_shape<B: AutodiffBackend>(
        &self,
        model: SqLlava<B>,
        shape: &TrainShape,
        base: &str,
        device: &B::Device,
    ) -> Result<()> {
        let trains = Trains {
            llm: true,
            ..Trains::default()
        };
        let vocabulary = model.config.llama.vocab_size;
        let lora = LoraConfig::llm(shape.rank, 2.0 * shape.rank as f64, 0.0);
        let (model, groups) = ParamGroups::mark(model.with_llm_lora(&lora), trains);
        let stage = Recipe::published(Flavour::Paper).stage2;
        let mut optimizer = GroupedAdamW::<B>::new(&stage, Arc::new(groups));
        let failure = Failure::default();
        let context = StepContext {
            loss: LossSettings {
                question_weight: 1.0,
                answer_weight: 1.0,
                chunk_tokens: 512,
            },
            trains,
            features: Arc::new(FeatureCache::new(0)),
            checkpointing: shape.checkpointing,
            seed: 0,
            failure: failure.clone(),
        };
        let mut model = Some(TrainModel { model, context });
        let batch = batch(shape, vocabulary);
        let seconds = self.time(|| {
            // Put back below, unless the step failed.
            if let Some(before) = model.take() {
                let output = TrainStep::step(&before, batch.clone());
                if let Some(error) = failure.take() {
                    return Err(error.into());
                }
                model = Some(optimizer.step(1.0, before, output.grads));
            }
            sync::<B>(device)
        })?;
        let tokens = shape.batch * shape.tokens;
        let recompute = match shape.checkpointing {
            GradientCheckpointing::None => "",
            GradientCheckpointing::Blocks => ", recompute",
        };
        let name = format!(
            "LoRA step, rank {}, {}×{} tokens{recompute}{base}",
            shape.rank, shape.batch, shape.tokens
        );
        self.report(&Row::new(name, seconds, tokens as f64, "tokens/s"))
    }
}

/// Ids that differ from row to row.
fn batch(shape: &TrainShape, vocabulary: usize) -> MicroBatch {
    let sample = |row: usize| {
        let id = |i: usize| ((row * shape.tokens + i) * 7919 % vocabulary) as i64;
        TrainSample {
            id: format!("row {row}").into(),
            ids: (0..shape.tokens).map(id).collect(),
            roles: vec![TokenRole::Answer; shape.tokens],
            pictures: vec![],
        }
    };
    MicroBatch::whole_step((0..shape.batch).map(sample).collect())
}
