//! `--shape`: parts of known sizes with random weights, without files, so that other
//! implementations can be timed on the same work.

use anyhow::Result;
use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Distribution, FloatDType, Int, Tensor, backend::Backend};
use clap::ValueEnum;
use sq_llava_model::config::{LlamaConfig, PrototypeConfig, VisionConfig};
use sq_llava_model::language::cache::KvCache;
use sq_llava_model::language::llama::Llama;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::ops::settle::settle;
use sq_llava_model::vision::tower::VisionTower;
use sq_llava_model::weights::init_random;
use sq_llava_model::{SqLlava, SqLlavaConfig};
use sq_llava_train::GradientCheckpointing;

use super::limits::Limits;
use super::train_step::TrainShape;
use super::{Bench, Row, sync};

/// A part of known size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// LLaMA of 168 M parameters: hidden 1024, 8 layers, MLP 2816, 32000 tokens.
    #[value(name = "llama-168m")]
    Llama168m,
    /// LLaMA of 7 B parameters, in `--dtype`: hidden 4096, 32 layers, MLP 11008, 32000 tokens. Its
    /// steps are of one and four sequences of 2048 tokens, each with and without recompute.
    #[value(name = "llama-7b")]
    Llama7b,
    /// The same steps with two layers of 64 and sequences of 64 tokens: a rehearsal of `llama-7b`.
    LlamaTiny,
    /// SmolLM2-135M: hidden 576, 30 layers, 9 heads on 3, 49152 tokens.
    #[value(name = "smollm2-135m")]
    Smollm2,
    /// CLIP ViT-L/14 at 336 pixels.
    VitL,
    /// CLIP ViT-B/16 at 224 pixels.
    VitB,
    /// ViT-S/14 at 336 pixels.
    VitS,
    /// The paper's prototype extractor: 576 tokens of 1024, K 256, T 2.
    Prototype,
    /// Training steps of SmolLM2-135M, f32, with adapters of rank 128 and dropout on one sequence
    /// of each of `--lengths`: tokens/s, and memory beside the estimate, with and without
    /// recompute.
    TrainStep,
    /// A whole step of stage 2 on SmolLM2-135M and a DINOv2 ViT-S/14 at 112 pixels: eight pictures,
    /// each in a conversation of 170 tokens, prototypes and projector, adapters of rank 16 with
    /// dropout on both towers, the loss of asking and answering, the optimizer.
    Train,
    /// Preprocessing: the picture `--image` to 336 pixels, padded and normalised.
    Image,
}

/// Tokens of a prompt: an image of 576 and a question.
const PROMPT: usize = 640;

/// SmolLM2-135M's sizes.
pub(super) fn smollm2() -> LlamaConfig {
    LlamaConfig::new()
        .with_hidden_size(576)
        .with_intermediate_size(1536)
        .with_num_hidden_layers(30)
        .with_num_attention_heads(9)
        .with_num_key_value_heads(3)
        .with_vocab_size(49_152)
        .with_tie_word_embeddings(true)
}

impl Shape {
    /// Those that are made in `--dtype` alone: sizes, and tokens of a training sequence.
    fn in_one_dtype(self) -> Option<(LlamaConfig, usize)> {
        let config = LlamaConfig::new().with_rms_norm_eps(1e-5);
        match self {
            Self::Llama7b => Some((config, 2048)),
            Self::LlamaTiny => Some((
                config
                    .with_hidden_size(64)
                    .with_intermediate_size(172)
                    .with_num_hidden_layers(2)
                    .with_num_attention_heads(4)
                    .with_num_key_value_heads(4)
                    .with_vocab_size(512),
                64,
            )),
            _ => None,
        }
    }

    fn llama(self) -> Option<(LlamaConfig, TrainShape)> {
        match self {
            Self::Llama168m => Some((
                LlamaConfig::new()
                    .with_hidden_size(1024)
                    .with_intermediate_size(2816)
                    .with_num_hidden_layers(8)
                    .with_num_attention_heads(16)
                    .with_num_key_value_heads(16)
                    .with_rms_norm_eps(1e-5),
                TrainShape::new(128, 1, 256),
            )),
            Self::Smollm2 => Some((smollm2(), TrainShape::new(16, 4, 128))),
            _ => None,
        }
    }

    fn vision(self) -> Option<VisionConfig> {
        let sizes = |hidden, layers, heads, mlp, side, patch| {
            VisionConfig::new()
                .with_hidden_size(hidden)
                .with_num_hidden_layers(layers)
                .with_num_attention_heads(heads)
                .with_intermediate_size(mlp)
                .with_image_size(side)
                .with_patch_size(patch)
        };
        match self {
            Self::VitL => Some(sizes(1024, 24, 16, 4096, 336, 14)),
            Self::VitB => Some(sizes(768, 12, 12, 3072, 224, 16)),
            Self::VitS => Some(sizes(384, 12, 6, 1536, 336, 14)),
            _ => None,
        }
    }
}

/// A model with random weights of a dtype, or quantised.
fn base<B: Backend>(
    config: &SqLlavaConfig,
    dtype: FloatDType,
    quantize: Option<Quantize>,
    device: &B::Device,
) -> Result<SqLlava<B>> {
    let mut model = init_random(config.init::<B>(device)?, dtype, 0)?;
    if let Some(wanted) = quantize {
        model.language_model.quantize_here(wanted)?;
    }
    Ok(model)
}

impl Bench {
    pub(super) fn shape<B: Backend>(
        &self,
        shape: Shape,
        limits: &Limits,
        device: &B::Device,
    ) -> Result<()> {
        if let Some((config, length)) = shape.in_one_dtype() {
            return self.in_one_dtype::<B>(&config, length, limits, device);
        }
        if let Some((config, train)) = shape.llama() {
            return self.llama_shape::<B>(config, &train, limits, device);
        }
        if let Some(config) = shape.vision() {
            let tower = config.init::<B>(device);
            self.vision_shape(&config, &tower, "", limits.gflop_per_s, device)?;
            if B::supports_dtype(device, DType::BF16) {
                let tower = tower.map(&mut Weights(DType::BF16));
                let limit = limits.bf16_gflop_per_s;
                self.vision_shape(&config, &tower, ", bf16", limit, device)?;
            }
            return Ok(());
        }
        self.prototype_shape::<B>(device)
    }

    /// Prefill, decoding and steps of training in all that weights are held in.
    fn llama_shape<B: Backend>(
        &self,
        config: LlamaConfig,
        train: &TrainShape,
        limits: &Limits,
        device: &B::Device,
    ) -> Result<()> {
        let llama = config.init::<B>(device).map(&mut Weights(DType::F32));
        self.prefill_shape(&config, &llama, "", limits.gflop_per_s, device)?;
        let contexts = [64, PROMPT];
        self.decode_shapes(&config, &llama, "f32", &contexts, limits, device)?;
        if B::supports_dtype(device, DType::F16) {
            let half = llama.clone().map(&mut Weights(DType::F16));
            self.decode_shapes(&config, &half, "f16", &contexts, limits, device)?;
        }
        if B::supports_dtype(device, DType::BF16) {
            let half = llama.clone().map(&mut Weights(DType::BF16));
            let limit = limits.bf16_gflop_per_s;
            self.prefill_shape(&config, &half, ", bf16", limit, device)?;
            self.decode_shapes(&config, &half, "bf16", &contexts, limits, device)?;
        }
        for (wanted, name) in [(Quantize::Q8, "q8"), (Quantize::Q4, "q4")] {
            let mut blocks = llama.clone();
            blocks.quantize_here(wanted)?;
            self.decode_shapes(&config, &blocks, name, &contexts, limits, device)?;
        }
        drop(llama);
        let config = SqLlavaConfig::new(config);
        let bases = [
            (FloatDType::F32, None, ""),
            (FloatDType::BF16, None, ", bf16 base"),
            (FloatDType::F32, Some(Quantize::Q8), ", q8 base"),
            (FloatDType::F32, Some(Quantize::Q4), ", q4 base"),
        ];
        for (dtype, quantize, name) in bases {
            if B::supports_dtype(device, dtype.into()) {
                let model = base::<Autodiff<B>>(&config, dtype, quantize, device)?;
                self.train_shape(model, train, name, device)?;
            }
        }
        Ok(())
    }

    /// Prefill, decoding, and unless left out steps of training, in `--dtype` or quantised.
    fn in_one_dtype<B: Backend>(
        &self,
        config: &LlamaConfig,
        length: usize,
        limits: &Limits,
        device: &B::Device,
    ) -> Result<()> {
        let bytes = 2 * config.parameters() as u64;
        let dtype = self.model.dtype.on::<B>(self.model.device, bytes, device)?;
        let quantize = self.model.blocks()?;
        let empty = SqLlavaConfig::new(config.clone());
        {
            let llama = base::<B>(&empty, dtype, quantize, device)?.language_model;
            let name = match quantize {
                Some(wanted) => format!("{wanted:?}"),
                None => format!("{dtype:?}"),
            };
            let name = name.to_lowercase();
            let limit = match dtype {
                FloatDType::BF16 => limits.bf16_gflop_per_s,
                _ => limits.gflop_per_s,
            };
            self.prefill_shape(config, &llama, "", limit, device)?;
            self.decode_shapes(config, &llama, &name, &[PROMPT], limits, device)?;
        }
        if self.skip_training {
            return Ok(());
        }
        let name = quantize.map(|wanted| format!(", {wanted:?} base").to_lowercase());
        let name = name.unwrap_or_default();
        let model = base::<Autodiff<B>>(&empty, dtype, quantize, device)?;
        // The largest last: a device may not hold it.
        for checkpointing in [GradientCheckpointing::Blocks, GradientCheckpointing::None] {
            for batch in [1, 4] {
                let step = TrainShape {
                    checkpointing,
                    ..TrainShape::new(128, batch, length)
                };
                self.train_shape(model.clone(), &step, &name, device)?;
            }
        }
        Ok(())
    }

    fn prefill_shape<B: Backend>(
        &self,
        config: &LlamaConfig,
        llama: &Llama<B>,
        weights: &str,
        limit: f64,
        device: &B::Device,
    ) -> Result<()> {
        for &batch in &self.batch {
            let prompt = prompt::<B>(batch, PROMPT, config, llama, device);
            let seconds = self.time(|| {
                prefill(config, llama, prompt.clone());
                sync::<B>(device)
            })?;
            let (tokens, layers) = (PROMPT as f64, layer_weights(config));
            let width = (config.num_attention_heads * config.head_dim()) as f64;
            let attention = 2.0 * tokens * tokens * width * config.num_hidden_layers as f64;
            let head = (config.vocab_size * config.hidden_size) as f64;
            let flop = batch as f64 * (2.0 * tokens * layers + attention + 2.0 * head);
            let gflop_per_s = flop / 1e9 / seconds;
            let name = batched(format!("prefill of {PROMPT} tokens{weights}"), batch);
            self.report(&Row {
                gflop_per_s: Some(gflop_per_s),
                share_of_limit: Some(gflop_per_s / limit),
                ..Row::new(name, seconds, batch as f64 * tokens, "tokens/s")
            })?;
        }
        Ok(())
    }

    fn decode_shapes<B: Backend>(
        &self,
        config: &LlamaConfig,
        llama: &Llama<B>,
        weights: &str,
        contexts: &[usize],
        limits: &Limits,
        device: &B::Device,
    ) -> Result<()> {
        for &context in contexts {
            for &batch in &self.batch {
                let name = format!("decode {weights} behind {context} tokens");
                let seconds = self.decode_shape(config, llama, batch, context, device)?;
                let steps = self.tokens as f64;
                // Every weight once a step, for all sequences together.
                let bytes = llama.bytes_per_token() as f64;
                let gb_per_s = bytes * steps / 1e9 / seconds;
                let tokens = batch as f64 * steps;
                self.report(&Row {
                    gb_per_s: Some(gb_per_s),
                    share_of_limit: Some(gb_per_s / limits.read(bytes)),
                    ..Row::new(batched(name, batch), seconds, tokens, "tokens/s")
                })?;
            }
        }
        Ok(())
    }

    /// Seconds for `--tokens` tokens of each of `batch` sequences behind `context` tokens.
    fn decode_shape<B: Backend>(
        &self,
        config: &LlamaConfig,
        llama: &Llama<B>,
        batch: usize,
        context: usize,
        device: &B::Device,
    ) -> Result<f64> {
        let prompt = prompt::<B>(batch, context, config, llama, device);
        let (mut cache, _) = prefill(config, llama, prompt);
        let (padding, ids) = (vec![0; batch], vec![5; batch]);
        self.time(|| {
            cache.truncate(context);
            for _ in 0..self.tokens {
                let ids = Tensor::<B, 1, Int>::from_data(&ids[..], device);
                let embedded = llama.embed(ids).unsqueeze_dim::<3>(1);
                let hidden = llama.forward_layers(embedded, &padding, Some(&mut cache));
                let logits = llama.logits(hidden.reshape([batch, config.hidden_size]));
                std::hint::black_box(logits.into_data());
            }
            Ok(())
        })
    }

    fn vision_shape<B: Backend>(
        &self,
        config: &VisionConfig,
        tower: &VisionTower<B>,
        weights: &str,
        limit: f64,
        device: &B::Device,
    ) -> Result<()> {
        let (side, layers) = (config.image_size, config.num_hidden_layers);
        let pixels = Tensor::<B, 4>::random([1, 3, side, side], Distribution::Default, device);
        let seconds = self.time(|| {
            std::hint::black_box(tower.hidden_state(pixels.clone(), layers));
            sync::<B>(device)
        })?;
        let tokens = config.tokens() as f64;
        let hidden = config.hidden_size as f64;
        let layer = 4.0 * hidden * hidden + 2.0 * hidden * config.intermediate_size as f64;
        let flop = layers as f64 * (2.0 * tokens * layer + 4.0 * tokens * tokens * hidden);
        let gflop_per_s = flop / 1e9 / seconds;
        self.report(&Row {
            gflop_per_s: Some(gflop_per_s),
            share_of_limit: Some(gflop_per_s / limit),
            ..Row::new(
                format!("vision tower, {side}×{side}{weights}"),
                seconds,
                1.0,
                "images/s",
            )
        })
    }

    fn prototype_shape<B: Backend>(&self, device: &B::Device) -> Result<()> {
        let config = PrototypeConfig::new(1024);
        let tokens = |device| Tensor::<B, 3>::random([1, 576, 1024], Distribution::Default, device);
        let tokens = tokens(device);
        let extractor = config.init::<B>(device);
        let seconds = self.time(|| {
            std::hint::black_box(extractor.forward(tokens.clone()));
            sync::<B>(device)
        })?;
        self.report(&Row::new(
            "prototype extractor".into(),
            seconds,
            1.0,
            "images/s",
        ))?;
        let extractor = config.init::<Autodiff<B>>(device);
        let seconds = self.time(|| {
            let tokens = Tensor::<Autodiff<B>, 3>::from_inner(tokens.clone());
            let loss = extractor.forward(tokens).square().mean();
            std::hint::black_box(loss.backward());
            sync::<B>(device)
        })?;
        let name = "prototype extractor and gradients".into();
        self.report(&Row::new(name, seconds, 1.0, "images/s"))
    }
}

/// Parameters that a token is multiplied with, without the head.
fn layer_weights(config: &LlamaConfig) -> f64 {
    let head = config.vocab_size * config.hidden_size;
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    (config.parameters() - tables * head) as f64
}

/// The name of a row for a batch.
fn batched(name: String, batch: usize) -> String {
    match batch {
        1 => name,
        _ => format!("{name}, batch {batch}"),
    }
}

/// Embeddings of prompts. `[batch, tokens, hidden]`
fn prompt<B: Backend>(
    batch: usize,
    tokens: usize,
    config: &LlamaConfig,
    llama: &Llama<B>,
    device: &B::Device,
) -> Tensor<B, 3> {
    let shape = [batch, tokens, config.hidden_size];
    let drawn: Tensor<B, 3> = Tensor::random(shape, Distribution::Normal(0.0, 1.0), device);
    drawn.cast(llama.hidden_dtype())
}

/// Runs prompts: their cache, and the logits of their last positions.
fn prefill<B: Backend>(
    config: &LlamaConfig,
    llama: &Llama<B>,
    prompt: Tensor<B, 3>,
) -> (KvCache<B>, Tensor<B, 2>) {
    let [batch, tokens, width] = prompt.dims();
    let padding = vec![0; batch];
    let mut cache = KvCache::new(config.num_hidden_layers, padding.clone());
    let hidden = llama.forward_layers(prompt, &padding, Some(&mut cache));
    let last = hidden.slice([0..batch, tokens - 1..tokens, 0..width]);
    let logits = llama.logits(last.reshape([batch, width]));
    (cache, logits)
}

/// Brings every parameter to a dtype and where loading would put it.
struct Weights(DType);

impl<B: Backend> ModuleMapper<B> for Weights {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|tensor| {
            let (device, data) = (tensor.device(), tensor.cast(self.0).into_data());
            settle(data, &device, self.0)
        })
    }
}
