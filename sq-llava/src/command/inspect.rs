//! `sq-llava inspect`.

mod mmproj;

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use clap::Args;
use serde_json::{Value, json};
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::weights::{LoadOptions, LoadReport, load_model, mmproj_config};
use sq_llava_train::recipe::{BaseDtype, FeatureLayers};
use sq_llava_train::step::groups::Trains;
use sq_llava_train::step::memory::{MemoryEstimate, StepMemory};
use sq_llava_train::{Flavour, GradientCheckpointing, Recipe};

use crate::device::{DeviceChoice, Work};
use crate::model::preset;
use crate::names;

/// Show what a checkpoint or preset is made of.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Checkpoint or run directory, or a name on the hub (org/name).
    #[arg(value_name = "DIR", required_unless_present = "preset")]
    model: Option<PathBuf>,
    /// sq-llava-7b, sq-llava-13b, siglip-so400m-qwen3-1.7b, llava-v1.6-7b, onevision-qwen2-0.5b or
    /// tiny.
    #[arg(long, conflicts_with = "model")]
    preset: Option<String>,
    /// Model that a run was trained on.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Vision tower, for checkpoints without one inside.
    #[arg(long, value_name = "DIR")]
    vision: Option<PathBuf>,
    /// Vision tower and projector in a GGUF file of llama.cpp, for a language model alone. Such a file
    /// can also be shown by itself.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vision", "preset"])]
    mmproj: Option<PathBuf>,
    /// Go on although the checkpoint holds weights or settings that this program has no place for.
    #[arg(long)]
    allow_unused: bool,
    /// Machine-readable output.
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        if let Some(name) = &self.preset {
            show(&preset(name)?, None, self.json);
            return Ok(());
        }
        // Reading the weights needs no accelerator.
        DeviceChoice::Cpu.run(self)
    }
}

impl Work for Inspect {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let Some(dir) = names::given_model(self.model.as_deref())? else {
            bail!("give a directory or --preset");
        };
        if self.mmproj.is_none()
            && let Some(pictures) = mmproj_config(&dir, self.allow_unused)?
        {
            mmproj::show(&pictures, self.json);
            return Ok(());
        }
        let options = LoadOptions {
            dtype: FloatDType::F16,
            mmproj: self.mmproj.clone(),
            base: names::given_model(self.base.as_deref())?,
            vision: names::given_model(self.vision.as_deref())?,
            look_up: Some(names::hub().look_up()),
            allow_unused: self.allow_unused,
            ..LoadOptions::default()
        };
        let loaded = load_model::<B>(&dir, &options, device)?;
        show(&loaded.model.config, Some(&loaded.report), self.json);
        Ok(())
    }
}

/// Bytes of the weights, and of a full context of keys and values for one sample.
fn memory(config: &SqLlavaConfig, bytes: usize) -> (usize, usize) {
    let llama = &config.llama;
    let per_token = 2 * llama.num_hidden_layers * llama.num_key_value_heads * llama.head_dim();
    let cache = per_token * llama.context_window() * bytes;
    (config.parameters().total() * bytes, cache)
}

/// Parameters of the adapters of a tower at a rank, if the model has the tower.
struct Adapters {
    tower: &'static str,
    rank: usize,
    parameters: Option<usize>,
}

/// The adapters at the published ranks.
fn published_adapters(config: &SqLlavaConfig) -> [Adapters; 3] {
    let llm = LoraConfig::llm(128, 256.0, 0.05);
    let vision = |rank| Adapters {
        tower: "vision",
        rank,
        parameters: vision_adapters(config, rank),
    };
    let llm = Adapters {
        tower: "llm",
        rank: 128,
        parameters: Some(config.llama.lora_parameters(&llm)),
    };
    [llm, vision(32), vision(64)]
}

fn show(config: &SqLlavaConfig, report: Option<&LoadReport>, as_json: bool) {
    if as_json {
        println!("{}", as_value(config, report));
        return;
    }
    show_towers(config);
    show_parameters(config);
    show_memory(config);
    if let Some(report) = report {
        println!("{report}");
    }
}

fn as_value(config: &SqLlavaConfig, report: Option<&LoadReport>) -> Value {
    let adapters: Vec<Value> = published_adapters(config)
        .iter()
        .map(|a| json!({"tower": a.tower, "rank": a.rank, "parameters": a.parameters}))
        .collect();
    let memory_of = |bytes| {
        let (weights, cache) = memory(config, bytes);
        json!({"weights": weights, "cache": cache})
    };
    let count = config.parameters();
    json!({
        "config": config.to_hf(),
        "parameters": count,
        "total": count.total(),
        "adapters": adapters,
        "memory_bytes": {"f32": memory_of(4), "f16": memory_of(2)},
        "training_bytes": training(config)
            .map(|[kept, again]| json!({"none": kept.total(), "blocks": again.total()})),
        "report": report,
    })
}

fn show_towers(config: &SqLlavaConfig) {
    let llama = &config.llama;
    println!(
        "LLaMA: hidden {}, {} layers, {} heads ({} for keys and values), MLP {}, vocabulary {}, context {}",
        llama.hidden_size,
        llama.num_hidden_layers,
        llama.num_attention_heads,
        llama.num_key_value_heads,
        llama.intermediate_size,
        llama.vocab_size,
        llama.context_window()
    );
    show_pictures(config);
    if let Some(prototype) = &config.prototype {
        println!(
            "prototypes: {} centres, {} steps",
            prototype.num_centers, prototype.num_iterations
        );
    }
}

fn show_parameters(config: &SqLlavaConfig) {
    let count = config.parameters();
    println!("parameters:");
    for (name, n) in [
        ("vision tower", count.vision_tower),
        ("prototype extractor", count.prototype),
        ("projector", count.projector),
        ("language model", count.language_model),
        ("total", count.total()),
    ] {
        println!("  {name:<22}{:>16}", grouped(n));
    }
    println!("adapters at the published ranks:");
    for Adapters {
        tower,
        rank,
        parameters,
    } in published_adapters(config)
    {
        if let Some(n) = parameters {
            let name = format!("{tower}, rank {rank}");
            println!("  {name:<22}{:>16}", grouped(n));
        }
    }
    // Gradients stop at the feature layer: the tower's last layers train nothing.
    if let (Some(n), Some(vision), Some(layer)) = (
        vision_adapters(config, 32),
        &config.vision,
        config.feature_layer(),
    ) {
        let reached = n / vision.num_hidden_layers * layer;
        println!("  {:<22}{:>16}", "  with gradients", grouped(reached));
    }
}

fn show_memory(config: &SqLlavaConfig) {
    println!("memory:");
    for (name, bytes) in [("f32", 4), ("f16, bf16", 2)] {
        let (weights, cache) = memory(config, bytes);
        println!(
            "  {name:<10}{:>8.2} GiB weights, {:.2} GiB keys and values of a full context",
            gib(weights),
            gib(cache)
        );
    }
    if let Some([kept, again]) = training(config) {
        println!("training as published (stage 2, bf16, 8 × 2048 tokens at once):");
        println!("  {kept}");
        println!("  with recompute {again}");
    }
}

/// Tower, tiles and projector.
fn show_pictures(config: &SqLlavaConfig) {
    if let Some(vision) = &config.vision {
        println!(
            "vision: {}, hidden {}, {} layers, {} heads, {}×{} pixels, patch {}, {} tokens per image, {} {}",
            vision.family.model_type(),
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.num_attention_heads,
            vision.image_size,
            vision.image_size,
            vision.patch_size,
            config.tokens_per_image(),
            match config.select_layers.len() {
                1 => "layer",
                _ => "layers joined",
            },
            FeatureLayers::from(&config.select_layers[..])
        );
        if let Some(anyres) = &config.anyres {
            println!(
                "images of any shape: {}, joined by {}, {} resolutions, up to {} tiles of those tokens",
                anyres.aspect_name(),
                anyres.merge.name(),
                anyres.pinpoints.len(),
                config.most_tiles()
            );
        }
        println!("projector: {}", config.projector.name());
    }
}

/// Memory of a published step of stage 2, without recompute and with it.
fn training(config: &SqLlavaConfig) -> Option<[MemoryEstimate; 2]> {
    let mut recipe = Recipe::published(Flavour::Paper);
    recipe.dtype = BaseDtype::Bf16;
    let count = config.parameters();
    let trainable = count.projector
        + count.prototype
        + config.llama.lora_parameters(&recipe.lora.llm.config()?)
        + vision_adapters(config, recipe.lora.vision.r)?;
    let all = Trains {
        llm: true,
        projector: true,
        new_tokens: true,
        vision: true,
    };
    let memory = StepMemory::of_stage(config, &recipe, 2, all, trainable);
    let ways = [GradientCheckpointing::None, GradientCheckpointing::Blocks];
    Some(ways.map(|way| memory.estimate(way)))
}

fn vision_adapters(config: &SqLlavaConfig, rank: usize) -> Option<usize> {
    let lora = LoraConfig::vision(rank, 2.0 * rank as f64, 0.2);
    Some(config.vision.as_ref()?.lora_parameters(&lora))
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// 1234567 → "1,234,567".
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(319_815_680), "319,815,680");
    }
}
