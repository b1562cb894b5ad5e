//! `--shape train`: a whole step of stage 2, as `sq-llava train` takes it, on random weights.

use std::sync::Arc;

use anyhow::Result;
use burn::backend::Autodiff;
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use sq_llava_data::{IMAGE_TOKEN_INDEX, TokenRole};
use sq_llava_model::config::{PrototypeConfig, VisionFamily};
use sq_llava_model::kernels::Kernels;
use sq_llava_model::language::llama::NewTokens;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::weights::init_random;
use sq_llava_model::{SqLlava, SqLlavaConfig};
use sq_llava_train::data::batch::{MicroBatch, Picture, TrainSample};
use sq_llava_train::recipe::Objective;
use sq_llava_train::step::groups::Trains;
use sq_llava_train::step::memory::StepMemory;

use super::shape::smollm2;
use super::train_step::TrainShape;
use super::{Bench, MemoryRow, Row};

/// Samples, each with a picture of its own.
const SAMPLES: usize = 8;
/// Tokens of each, the picture's included.
const TOKENS: usize = 170;
/// Of those, the last ones: an asked question and an answer.
const ASKED: usize = 18;
const ANSWERED: usize = 20;
/// Side of the pictures in pixels.
const SIDE: usize = 112;
/// Centres of the prototypes.
const CENTERS: usize = 64;
/// Rank of the adapters.
const RANK: usize = 16;
/// Their dropout: that of the LLM's as published.
const DROPOUT: f64 = 0.05;
/// Rows of the role tokens of template `sq`.
const NEW_TOKENS: usize = 4;

/// Everything that trains in stage 2.
const TRAINS: Trains = Trains {
    llm: true,
    projector: true,
    new_tokens: true,
    vision: true,
};

impl Bench {
    /// Time of the step, and the growth of this process by its forward and backward pass beside the
    /// estimate.
    pub(super) fn whole_step<B: Backend>(&self, device: &B::Device) -> Result<()> {
        let shape = TrainShape {
            dropout: DROPOUT,
            chunk_tokens: 128,
            ..TrainShape::new(RANK, SAMPLES, TOKENS)
        };
        let config = config();
        let lora = shape.lora();
        let vision = LoraConfig::vision(RANK, 2.0 * RANK as f64, DROPOUT);
        let model = model::<Autodiff<B>>(&config, &lora, &vision, device)?;
        let batch = batch(&config);
        let cost = self.step_cost(model, TRAINS, &shape, &batch, device)?;
        let estimate = StepMemory {
            config: &config,
            base_bytes: 4,
            quantize: None,
            trains: TRAINS,
            trainable: cost.trainable,
            llm: Some(lora),
            vision: Some(vision),
            rows: SAMPLES,
            tokens: TOKENS,
            pictures: SAMPLES,
            accumulates: cost.thread_groups > 1,
            thread_groups: cost.thread_groups,
            chunk_tokens: shape.chunk_tokens,
            objective: Objective::Text,
            kernels: Kernels::of::<B>(),
        }
        .estimate(shape.checkpointing);
        let tokens = (SAMPLES * TOKENS) as f64;
        let name = format!("stage 2 step, rank {RANK}, {SAMPLES}×{TOKENS} tokens");
        self.report(&Row {
            memory: Some(MemoryRow {
                measured_bytes: cost.grown_bytes,
                activation_bytes: estimate.activations,
                expected_bytes: estimate.activations + estimate.gradients + estimate.logits,
            }),
            ..Row::new(name, cost.seconds, tokens, "tokens/s")
        })
    }
}

fn config() -> SqLlavaConfig {
    let vision = VisionFamily::Dinov2
        .preset()
        .with_hidden_size(384)
        .with_intermediate_size(1536)
        .with_num_attention_heads(6)
        .with_num_hidden_layers(12)
        .with_image_size(SIDE);
    let prototype = PrototypeConfig::new(384).with_num_centers(CENTERS);
    SqLlavaConfig::new(smollm2())
        .with_vision(Some(vision))
        .with_prototype(Some(prototype))
}

/// Weights and adapters, and the rows of the role tokens behind the vocabulary.
fn model<B: Backend>(
    config: &SqLlavaConfig,
    lora: &LoraConfig,
    vision: &LoraConfig,
    device: &B::Device,
) -> Result<SqLlava<B>> {
    let mut model = init_random(config.init::<B>(device)?, FloatDType::F32, 0)?;
    let llama = &mut model.language_model;
    let start = config.llama.vocab_size;
    llama.new_tokens = Some(NewTokens::init(llama, start, NEW_TOKENS, 0));
    Ok(model.with_llm_lora(lora).with_vision_lora(vision))
}

/// Ids and pixels that differ from sample to sample.
fn batch(config: &SqLlavaConfig) -> MicroBatch {
    let (per_image, vocabulary) = (config.tokens_per_image(), config.llama.vocab_size);
    let text = TOKENS - per_image;
    let sample = |row: usize| {
        let id = |i: usize| ((row * TOKENS + i) * 7919 % vocabulary) as i64;
        let mut ids: Vec<i64> = (0..=text).map(id).collect();
        ids[1] = IMAGE_TOKEN_INDEX;
        // The role that asks.
        ids[text - ASKED - ANSWERED] = vocabulary as i64;
        let role = |i: usize| match text - i {
            left if left < ANSWERED => TokenRole::Answer,
            left if left < ANSWERED + ASKED => TokenRole::Question,
            _ => TokenRole::Ignore,
        };
        let pixel = |i: usize| ((row * 31 + i * 7919) % 255) as f32 / 64.0 - 2.0;
        let pixels: Arc<[f32]> = (0..3 * SIDE * SIDE).map(pixel).collect();
        let name = format!("picture {row}");
        TrainSample {
            id: format!("row {row}").into(),
            roles: (0..=text).map(role).collect(),
            ids,
            pictures: vec![Picture::of_one_tile(&name, per_image, Some(pixels))],
            source: None,
        }
    };
    MicroBatch::whole_step((0..SAMPLES).map(sample).collect())
}
