//! `sq-llava bench-train`: memory and speed of a training step, with and without recompute.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::backend::Autodiff;
use burn::optim::Optimizer;
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use burn::train::TrainStep;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use sq_llava_data::TokenRole;
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::kernels::blocks::is_native;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::weights::init_random;
use sq_llava_train::data::batch::{MicroBatch, TrainSample};
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::report::resident::resident_bytes;
use sq_llava_train::step::groups::{ParamGroup, ParamGroups, Trains};
use sq_llava_train::step::loss::LossSettings;
use sq_llava_train::step::memory::{StepMemory, gib};
use sq_llava_train::step::optimizer::GroupedAdamW;
use sq_llava_train::step::whole::{StepContext, TrainModel};
use sq_llava_train::{Flavour, GradientCheckpointing, Recipe};

use crate::device::{DeviceChoice, Work};
use crate::model::peak_memory;

/// Measure memory and tokens/s of a training step of a LLaMA of 135M parameters with adapters of
/// rank 128, with and without recompute of activations.
#[derive(Debug, Args)]
pub struct BenchTrain {
    /// Lengths of the sequence.
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048")]
    tokens: Vec<usize>,
    /// Timed steps after a first one; the median is shown.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// One JSON object for each line.
    #[arg(long)]
    json: bool,
    /// `auto`, `cpu`, `cuda[:i]`, `vulkan[:i]`, `metal[:i]` or `webgpu[:i]`.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// One way alone. All ways run in processes of their own: memory that one has given back
    /// would hide what the next takes.
    #[arg(long, value_enum)]
    only: Option<Way>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// All activations are kept.
    None,
    /// Those of a layer are computed again.
    Blocks,
}

/// One measurement.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    tokens: usize,
    gradient_checkpointing: Way,
    /// Growth of the process's memory by a forward and a backward pass.
    measured_bytes: Option<u64>,
    /// What the layers keep, by arithmetic.
    activation_bytes: usize,
    /// That, gradients and the logits of a chunk.
    expected_bytes: usize,
    tokens_per_second: f64,
}

impl BenchTrain {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        if self.steps == 0 || self.tokens.is_empty() || self.tokens.iter().any(|&t| t < 2) {
            bail!("--steps must be at least 1 and --tokens at least 2");
        }
        if let ([_], Some(_)) = (&self.tokens[..], self.only) {
            return self.device.run(self);
        }
        if !self.json {
            println!(
                "| tokens | recompute | memory of a step | by arithmetic | of that activations | tokens/s |"
            );
            println!("|---|---|---|---|---|---|");
        }
        for &tokens in &self.tokens {
            for way in [Way::None, Way::Blocks] {
                if self.only.is_none_or(|only| only == way) {
                    self.report(&self.apart(tokens, way)?)?;
                }
            }
        }
        Ok(())
    }

    /// A measurement in a process of its own.
    fn apart(&self, tokens: usize, way: Way) -> Result<Row> {
        let name = way.to_possible_value().map(|v| v.get_name().to_owned());
        let output = Command::new(std::env::current_exe()?)
            .args(["bench-train", "--json", "--only"])
            .arg(name.unwrap_or_default())
            .args(["--tokens", &tokens.to_string()])
            .args(["--steps", &self.steps.to_string()])
            .args(["--device", &self.device.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            bail!(
                "the measurement of {tokens} tokens ended with {}",
                output.status
            );
        }
        serde_json::from_slice(&output.stdout).context("the measurement gave no row")
    }

    fn report(&self, row: &Row) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(row)?);
            return Ok(());
        }
        let measured = match row.measured_bytes {
            Some(bytes) => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
            None => "unknown".into(),
        };
        let recompute = match row.gradient_checkpointing {
            Way::None => "no",
            Way::Blocks => "yes",
        };
        println!(
            "| {} | {recompute} | {measured} | {:.2} GiB | {:.2} GiB | {:.0} |",
            row.tokens,
            gib(row.expected_bytes),
            gib(row.activation_bytes),
            row.tokens_per_second
        );
        Ok(())
    }
}

/// SmolLM2-135M's sizes.
fn config() -> Result<SqLlavaConfig> {
    let mut config = SqLlavaConfig::preset("tiny").context("there is no preset \"tiny\"")?;
    config.vision = None;
    config.prototype = None;
    config.llama = config
        .llama
        .with_hidden_size(576)
        .with_num_hidden_layers(30)
        .with_num_attention_heads(9)
        .with_num_key_value_heads(3)
        .with_intermediate_size(1536)
        .with_vocab_size(49_152)
        .with_max_position_embeddings(8192)
        .with_tie_word_embeddings(true);
    Ok(config)
}

impl Work for BenchTrain {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (Some(&tokens), Some(way)) = (self.tokens.first(), self.only) else {
            bail!("one length and one way at a time");
        };
        let checkpointing = match way {
            Way::None => GradientCheckpointing::None,
            Way::Blocks => GradientCheckpointing::Blocks,
        };
        let config = config()?;
        let recipe = Recipe::published(Flavour::Paper);
        let lora = LoraConfig::llm(128, 256.0, 0.05);
        let trains = Trains {
            llm: true,
            ..Trains::default()
        };
        let model = config.init::<Autodiff<B>>(device)?.with_llm_lora(&lora);
        let model = init_random(model, FloatDType::F32, 0)?;
        let (model, groups) = ParamGroups::mark(model, trains);
        let memory = StepMemory {
            config: &config,
            base_bytes: 4,
            trains,
            trainable: groups.count(ParamGroup::Llm),
            llm: Some(lora),
            vision: None,
            samples: 1,
            tokens,
            accumulates: false,
            chunk_tokens: recipe.loss.chunk_tokens,
            kernels: is_native::<B>(),
        };
        let mut optimizer = GroupedAdamW::<Autodiff<B>>::new(&recipe.stage2, Arc::new(groups));
        let failure = Failure::default();
        let mut model = TrainModel {
            model,
            context: StepContext {
                loss: LossSettings {
                    question_weight: 1.0,
                    answer_weight: 1.0,
                    chunk_tokens: recipe.loss.chunk_tokens,
                },
                trains,
                features: Arc::new(FeatureCache::new(0)),
                checkpointing,
                seed: 0,
                failure: failure.clone(),
            },
        };
        let vocabulary = config.llama.vocab_size as i64;
        let batch = MicroBatch::whole_step(vec![TrainSample {
            id: "bench".into(),
            ids: (0..tokens as i64).map(|i| i * 7919 % vocabulary).collect(),
            roles: vec![TokenRole::Answer; tokens],
            pictures: vec![],
        }]);
        B::sync(device).map_err(|e| anyhow::anyhow!("the device failed: {e:?}"))?;
        let before = resident_from_here();
        let mut output = TrainStep::step(&model, batch.clone());
        let measured_bytes = before.and_then(|before| Some(peak_memory()?.saturating_sub(before)));
        let mut seconds = Vec::with_capacity(self.steps);
        for _ in 0..self.steps {
            let start = Instant::now();
            model = optimizer.step(1.0, model, output.grads);
            output = TrainStep::step(&model, batch.clone());
            B::sync(device).map_err(|e| anyhow::anyhow!("the device failed: {e:?}"))?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        if let Some(error) = failure.take() {
            return Err(error.into());
        }
        seconds.sort_by(f64::total_cmp);
        let estimate = memory.estimate(checkpointing);
        self.report(&Row {
            tokens,
            gradient_checkpointing: way,
            measured_bytes,
            activation_bytes: estimate.activations,
            expected_bytes: estimate.activations + estimate.gradients + estimate.logits,
            tokens_per_second: tokens as f64 / seconds[seconds.len() / 2],
        })
    }
}

/// Memory of the process now, from which its peak is counted again; `None` where the system does
/// not tell.
fn resident_from_here() -> Option<u64> {
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    resident_bytes()
}
