//! A training step of a LLaMA with adapters: forward, loss, backward, optimizer.

use std::sync::Arc;

use anyhow::Result;
use burn::optim::{GradientsAccumulator, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use sq_llava_data::TokenRole;
use sq_llava_model::SqLlava;
use sq_llava_model::kernels::DeviceMemory;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_train::data::batch::{MicroBatch, TrainSample};
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::recipe::Objective;
use sq_llava_train::run::devices::{DevicePool, Seat, groups_for};
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::loss::LossSettings;
use sq_llava_train::step::optimizer::GroupedAdamW;
use sq_llava_train::step::whole::{StepContext, TrainModel};
use sq_llava_train::{Flavour, GradientCheckpointing, Recipe};

use super::{Bench, Row, sync};
use crate::memory::MemoryBefore;

/// A step: all seven linears of every layer adapted, every token but the first learnt.
pub(super) struct TrainShape {
    pub rank: usize,
    pub dropout: f64,
    pub batch: usize,
    pub tokens: usize,
    /// Tokens whose logits are in memory at once.
    pub chunk_tokens: usize,
    pub checkpointing: GradientCheckpointing,
}

impl TrainShape {
    /// Without dropout and recompute.
    pub(super) fn new(rank: usize, batch: usize, tokens: usize) -> Self {
        Self {
            rank,
            dropout: 0.0,
            batch,
            tokens,
            chunk_tokens: 512,
            checkpointing: GradientCheckpointing::None,
        }
    }

    pub(super) fn lora(&self) -> LoraConfig {
        LoraConfig::llm(self.rank, 2.0 * self.rank as f64, self.dropout)
    }

    /// The row of a step; `base` says what its frozen weights are.
    pub(super) fn row(&self, base: &str, seconds: f64) -> Row {
        let recompute = match self.checkpointing {
            GradientCheckpointing::None => "",
            GradientCheckpointing::Blocks => ", recompute",
        };
        let name = format!(
            "LoRA step, rank {}, {}×{} tokens{recompute}{base}",
            self.rank, self.batch, self.tokens
        );
        Row::new(name, seconds, (self.batch * self.tokens) as f64, "tokens/s")
    }
}

/// What a step costs.
pub(super) struct StepCost {
    /// Median of the repetitions.
    pub seconds: f64,
    /// Growth of memory by the first forward and backward pass, where the system says: of the
    /// device's, or of the process where tensors are there.
    pub grown_bytes: Option<u64>,
    /// What steps took of the device's memory, weights included.
    pub device_bytes: Option<u64>,
    /// Trainable values.
    pub trainable: usize,
    /// Groups of threads that shared the batch.
    pub thread_groups: usize,
}

pub(super) fn llm_adapters_only() -> Trains {
    Trains {
        llm: true,
        ..Trains::default()
    }
}

impl Bench {
    /// Reports the time of a step; `base` says what the frozen weights are.
    pub(super) fn train_shape<B: AutodiffBackend>(
        &self,
        model: SqLlava<B>,
        shape: &TrainShape,
        base: &str,
        device: &B::Device,
    ) -> Result<()> {
        let cost = self.train_step(model, shape, device)?;
        self.report(&Row {
            device_bytes: cost.device_bytes,
            ..shape.row(base, cost.seconds)
        })
    }

    pub(super) fn train_step<B: AutodiffBackend>(
        &self,
        model: SqLlava<B>,
        shape: &TrainShape,
        device: &B::Device,
    ) -> Result<StepCost> {
        let batch = batch(shape, model.config.llama.vocab_size);
        let model = model.with_llm_lora(&shape.lora());
        self.step_cost(model, llm_adapters_only(), shape, &batch, device)
    }

    /// Cost of steps of a model with its adapters on one batch.
    pub(super) fn step_cost<B: AutodiffBackend>(
        &self,
        model: SqLlava<B>,
        trains: Trains,
        shape: &TrainShape,
        batch: &MicroBatch,
        device: &B::Device,
    ) -> Result<StepCost> {
        let (model, groups) = ParamGroups::mark(model, trains);
        let trainable = groups.iter().map(|(_, param)| param.values).sum();
        let stage = Recipe::published(Flavour::Paper).stage2;
        let groups = Arc::new(groups);
        let mut optimizer = GroupedAdamW::<B>::new(&stage, groups.clone());
        let failure = Failure::default();
        let context = StepContext {
            objective: Objective::Text,
            loss: LossSettings {
                question_weight: 1.0,
                answer_weight: 1.0,
                chunk_tokens: shape.chunk_tokens,
            },
            mask_weight: 0.0,
            trains,
            features: Arc::new(FeatureCache::new(0)),
            checkpointing: shape.checkpointing,
            seed: 0,
            failure: failure.clone(),
        };
        let model = TrainModel { model, context };
        // As training does it.
        let thread_groups = groups_for::<B>(&[batch.samples.len()]);
        let parts = batch.clone().cut(thread_groups);
        let seats = Seat::of_threads(device, thread_groups);
        let pool = (seats.len() > 1).then(|| DevicePool::new(&seats, &model, &groups));
        let mut pool = pool.transpose()?;
        let mut model = Some(model);
        sync::<B>(device)?;
        let before = MemoryBefore::now::<B>(device);
        let mut grown_bytes = None;
        let seconds = self.time(|| {
            // Put back below, unless the step failed.
            if let Some(trained) = model.take() {
                let mut grads = GradientsAccumulator::new();
                for part in parts.clone() {
                    let outputs = match &mut pool {
                        Some(pool) => pool.step(part, &trained)?,
                        None => vec![TrainStep::step(&trained, part)],
                    };
                    for output in outputs {
                        grads.accumulate::<B>(&trained, output.grads);
                    }
                }
                if grown_bytes.is_none() {
                    sync::<B>(device)?;
                    grown_bytes = before.growth::<B>(device);
                }
                if let Some(error) = failure.take() {
                    return Err(error.into());
                }
                let after = optimizer.step(1.0, trained, grads.grads());
                if let Some(pool) = &pool {
                    pool.update(&after)?;
                }
                model = Some(after);
            }
            sync::<B>(device)
        })?;
        Ok(StepCost {
            seconds,
            grown_bytes,
            device_bytes: DeviceMemory::of::<B>(device).map(|memory| memory.reserved),
            trainable,
            thread_groups,
        })
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
            source: None,
        }
    };
    MicroBatch::whole_step((0..shape.batch).map(sample).collect())
}
