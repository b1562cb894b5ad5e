//! `--shape train-step`: memory and speed of training steps of a LLaMA of 135M parameters, with and
//! without recompute of activations.

use std::process::Command;

use anyhow::{Result, bail};
use burn::backend::Autodiff;
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::kernels::Kernels;
use sq_llava_model::weights::init_random;
use sq_llava_train::recipe::Objective;
use sq_llava_train::step::memory::StepMemory;
use sq_llava_train::{Flavour, GradientCheckpointing, Recipe};

use super::shape::smollm2;
use super::train_step::{TrainShape, llm_adapters_only};
use super::{Bench, MemoryRow, Row};

/// Longest sequence of `--lengths`.
const LONGEST: usize = 8192;

/// A length of `--lengths`.
pub(super) fn length(text: &str) -> Result<usize> {
    match text.parse()? {
        tokens @ 2..=LONGEST => Ok(tokens),
        _ => bail!("a sequence has 2 to {LONGEST} tokens"),
    }
}

/// The way of `--gradient-checkpointing`, named as in a recipe.
pub(super) fn checkpointing(text: &str) -> Result<GradientCheckpointing> {
    match text {
        "none" => Ok(GradientCheckpointing::None),
        "blocks" => Ok(GradientCheckpointing::Blocks),
        _ => bail!("choose none or blocks"),
    }
}

fn name(checkpointing: GradientCheckpointing) -> &'static str {
    match checkpointing {
        GradientCheckpointing::None => "none",
        GradientCheckpointing::Blocks => "blocks",
    }
}

impl Bench {
    /// The step to measure, if the arguments leave one alone.
    pub(super) fn one_step(&self) -> Option<TrainShape> {
        let (&[tokens], Some(checkpointing)) = (&self.lengths[..], self.gradient_checkpointing)
        else {
            return None;
        };
        let recipe = Recipe::published(Flavour::Paper);
        Some(TrainShape {
            dropout: 0.05,
            chunk_tokens: recipe.loss.chunk_tokens,
            checkpointing,
            ..TrainShape::new(128, 1, tokens)
        })
    }

    /// Measures every length and way in a process of its own: memory that one has given back would
    /// hide what the next takes.
    pub(super) fn steps_apart(&self) -> Result<()> {
        let ways = [GradientCheckpointing::None, GradientCheckpointing::Blocks];
        for tokens in &self.lengths {
            for way in ways {
                if self.gradient_checkpointing.is_some_and(|one| one != way) {
                    continue;
                }
                let mut process = Command::new(std::env::current_exe()?);
                process
                    .args(["bench", "--shape", "train-step"])
                    .args(["--lengths", &tokens.to_string()])
                    .args(["--gradient-checkpointing", name(way)])
                    .args(["--repeat", &self.repeat.to_string()])
                    .args(["--device", &self.model.device.to_string()])
                    .args(self.json.then_some("--json"));
                let status = process.status()?;
                if !status.success() {
                    bail!("the measurement of {tokens} tokens ended with {status}");
                }
            }
        }
        Ok(())
    }

    /// Time of a step, and the growth of memory by its forward and backward pass beside the
    /// estimate.
    pub(super) fn step_memory<B: Backend>(
        &self,
        shape: &TrainShape,
        device: &B::Device,
    ) -> Result<()> {
        let config = SqLlavaConfig::new(smollm2().with_max_position_embeddings(LONGEST));
        let model = config.init::<Autodiff<B>>(device)?;
        let model = init_random(model, FloatDType::F32, 0)?;
        let lora = shape.lora();
        let estimate = StepMemory {
            config: &config,
            base_bytes: 4,
            quantize: None,
            trains: llm_adapters_only(),
            trainable: config.llama.lora_parameters(&lora),
            llm: Some(lora),
            vision: None,
            rows: shape.batch,
            tokens: shape.tokens,
            pictures: 0,
            accumulates: false,
            thread_groups: 1,
            chunk_tokens: shape.chunk_tokens,
            objective: Objective::Text,
            kernels: Kernels::of::<B>(),
        }
        .estimate(shape.checkpointing);
        let cost = self.train_step(model, shape, device)?;
        self.report(&Row {
            memory: Some(MemoryRow {
                measured_bytes: cost.grown_bytes,
                activation_bytes: estimate.activations,
                expected_bytes: estimate.activations + estimate.gradients + estimate.logits,
            }),
            ..shape.row("", cost.seconds)
        })
    }
}
