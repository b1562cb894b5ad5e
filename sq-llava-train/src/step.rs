//! One forward and backward pass: Burn's `TrainStep` for SQ-LLaVA.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{AutodiffModule, Module};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use sq_llava_model::{ModelError, Sample, SqLlava};

use crate::batch::{MicroBatch, Picture, Targets, TrainSample};
use crate::error::TrainError;
use crate::failure::Failure;
use crate::features::FeatureCache;
use crate::groups::Trains;
use crate::loss::{LossSettings, add_gradients, host};
use crate::metrics::StepReport;

/// What a step needs beside the weights.
#[derive(Debug, Clone)]
pub struct StepContext {
    /// Weights and chunks of the loss.
    pub loss: LossSettings,
    /// The parts that train.
    pub trains: Trains,
    /// Features of a frozen tower.
    pub features: Arc<FeatureCache>,
    /// Seed of the adapters' dropout.
    pub seed: u64,
    /// Where an error is left.
    pub failure: Failure,
}

/// The model as the Learner trains it.
#[derive(Module, Debug)]
pub struct TrainModel<B: Backend> {
    /// The weights.
    pub model: SqLlava<B>,
    /// The rest.
    #[module(skip)]
    pub context: StepContext,
}

/// Names of pictures and a tensor with a row for each; `None` if there are none.
type Pictures<B, const D: usize> = (Vec<Arc<str>>, Option<Tensor<B, D>>);

/// The batch's sequences after the layers.
struct Forward<B: Backend> {
    /// States that predict a learnable token `[n, hidden]`, before the last norm.
    hidden: Tensor<B, 2>,
    targets: Targets,
    /// Tokens without padding.
    tokens: usize,
}

impl<B: Backend> TrainModel<B> {
    /// Runs the layers over a batch. `images` are the LLM's image tokens by picture.
    fn forward(
        &self,
        batch: &MicroBatch,
        images: &HashMap<Arc<str>, Tensor<B, 2>>,
    ) -> Result<Forward<B>, TrainError> {
        let per_image = self.model.config.tokens_per_image();
        let samples: Vec<Sample<'_, B>> = batch
            .samples
            .iter()
            .map(|sample| Sample {
                ids: &sample.ids,
                images: sample
                    .pictures
                    .iter()
                    .filter_map(|p| images.get(&p.key).cloned())
                    .collect(),
            })
            .collect();
        let embedded = self.model.embed(&samples).map_err(|error| match error {
            // The model counts samples in the batch; the user knows them by id.
            ModelError::ImageCount {
                sample,
                images,
                tokens,
            } => TrainError::Sample {
                sample: batch
                    .samples
                    .get(sample)
                    .map_or_else(String::new, |s| s.id.to_string()),
                reason: format!("{images} image(s) for {tokens} image token(s) in the text"),
            },
            other => other.into(),
        })?;
        let tokens = batch.tokens(per_image);
        let (rows, targets) = (embedded.len(), batch.targets(per_image));
        let (hidden, used) = pad(embedded, tokens);
        let width = hidden.dims()[2];
        let llama = &self.model.language_model;
        // Padding is at the right: no token that counts sees it.
        let hidden = llama.forward_layers(hidden, &vec![0; rows], None);
        let index = TensorData::from(&targets.rows[..]);
        let index = Tensor::<B, 1, Int>::from_data(index, &hidden.device());
        Ok(Forward {
            hidden: hidden.reshape([rows * tokens, width]).select(0, index),
            targets,
            tokens: used,
        })
    }

    /// Pixels of the batch's pictures, each once, in order of appearance.
    fn pixels(&self, batch: &MicroBatch) -> Result<Pictures<B, 4>, TrainError> {
        let mut keys: Vec<Arc<str>> = Vec::new();
        let mut pixels: Vec<&[f32]> = Vec::new();
        for (sample, picture) in pictures(batch) {
            if keys.contains(&picture.key) {
                continue;
            }
            let Some(values) = &picture.pixels else {
                return Err(missing(sample, &picture.key));
            };
            keys.push(picture.key.clone());
            pixels.push(values);
        }
        let tensor = match pixels.is_empty() {
            true => None,
            false => Some(self.model.pixels(&pixels)?),
        };
        Ok((keys, tensor))
    }

    /// The LLM's image tokens of features, by picture.
    fn project(
        &self,
        keys: Vec<Arc<str>>,
        features: Option<Tensor<B, 3>>,
    ) -> HashMap<Arc<str>, Tensor<B, 2>> {
        let Some(features) = features else {
            return HashMap::new();
        };
        let projected = self.model.project(features);
        let [images, tokens, width] = projected.dims();
        keys.into_iter()
            .zip(0..images)
            .map(|(key, i)| {
                let one = projected.clone().slice([i..i + 1, 0..tokens, 0..width]);
                (key, one.reshape([tokens, width]))
            })
            .collect()
    }

    fn report(&self, batch: &MicroBatch, tokens: usize) -> StepReport {
        StepReport {
            samples: batch.samples.len(),
            tokens,
            truncated: batch.truncated,
            ..StepReport::default()
        }
    }
}

impl<B: AutodiffBackend> TrainModel<B> {
    fn train_step(&self, batch: &MicroBatch) -> Result<(GradientsParams, StepReport), TrainError> {
        let images = self.images(batch)?;
        let context = &self.context;
        // Does a gradient arrive anywhere below the head?
        let image_side = context.trains.projector || context.trains.vision;
        let trains =
            context.trains.llm || context.trains.new_tokens || (image_side && !images.is_empty());
        let forward = self.forward(batch, &images)?;
        let mut report = self.report(batch, forward.tokens);
        let llama = &self.model.language_model;
        if !trains {
            let targets = &forward.targets;
            (report.sums, _) = context.loss.evaluate(llama, forward.hidden, targets);
            return Ok((GradientsParams::new(), report));
        }
        let loss =
            context
                .loss
                .joint_loss(llama, forward.hidden, &forward.targets, batch.step_tokens);
        report.sums = loss.sums;
        let grads = match loss.surrogate {
            Some(surrogate) => GradientsParams::from_grads(surrogate.backward(), &self.model),
            None => GradientsParams::new(),
        };
        Ok((add_gradients(&self.model, [grads, loss.head]), report))
    }

    /// The LLM's image tokens by picture. A frozen tower runs without a graph, once per picture.
    fn images(&self, batch: &MicroBatch) -> Result<HashMap<Arc<str>, Tensor<B, 2>>, TrainError> {
        if self.context.trains.vision {
            let (keys, pixels) = self.pixels(batch)?;
            let features = match pixels {
                Some(pixels) => Some(self.model.vision_features(pixels)?),
                None => None,
            };
            return Ok(self.project(keys, features));
        }
        let (keys, features) = self.frozen_features(batch)?;
        Ok(self.project(keys, features))
    }

    /// Features of a frozen tower, those known from before and the new ones. `[images, tokens, d]`
    fn frozen_features(&self, batch: &MicroBatch) -> Result<Pictures<B, 3>, TrainError> {
        let cache = &self.context.features;
        let mut found: HashMap<Arc<str>, Arc<[f32]>> = HashMap::new();
        let mut keys: Vec<Arc<str>> = Vec::new();
        let mut fresh: Vec<(Arc<str>, &[f32])> = Vec::new();
        for (sample, picture) in pictures(batch) {
            if keys.contains(&picture.key) {
                continue;
            }
            keys.push(picture.key.clone());
            match (cache.get(&picture.key), &picture.pixels) {
                (Some(features), _) => {
                    found.insert(picture.key.clone(), features);
                }
                (None, Some(pixels)) => fresh.push((picture.key.clone(), pixels)),
                (None, None) => return Err(missing(sample, &picture.key)),
            }
        }
        let Some(first) = keys.first() else {
            return Ok((keys, None));
        };
        if !fresh.is_empty() {
            let pixels: Vec<&[f32]> = fresh.iter().map(|(_, pixels)| *pixels).collect();
            let features = self.inner_features(self.model.pixels(&pixels)?.inner())?;
            let each = features.dims()[1] * features.dims()[2];
            for ((key, _), values) in fresh.iter().zip(host(features).chunks_exact(each)) {
                let values: Arc<[f32]> = values.into();
                cache.insert(key, &values);
                found.insert(key.clone(), values);
            }
        }
        let tokens = self.model.config.tokens_per_image().max(1);
        let width = found.get(first).map_or(0, |f| f.len()) / tokens;
        let all: Vec<f32> = keys.iter().flat_map(|k| found[k].iter().copied()).collect();
        let data = TensorData::new(all, [keys.len(), tokens, width]);
        let features = Tensor::from_data(data, (&self.model.device(), DType::F32));
        Ok((keys, Some(features)))
    }

    /// The frozen tower on the backend without a graph, its dropout off.
    fn inner_features(
        &self,
        pixels: Tensor<B::InnerBackend, 4>,
    ) -> Result<Tensor<B::InnerBackend, 3>, ModelError> {
        let config = &self.model.config;
        let (Some(tower), Some(layer)) = (&self.model.vision_tower, config.feature_layer()) else {
            return Err(ModelError::NoVisionTower);
        };
        let dropout = self.model.dropout.get();
        self.model.dropout.set(0);
        let features = tower.valid().features(pixels, layer, config.select_feature);
        self.model.dropout.set(dropout);
        Ok(features)
    }
}

impl<B: AutodiffBackend> TrainStep for TrainModel<B> {
    type Input = MicroBatch;
    type Output = StepReport;

    fn step(&self, batch: MicroBatch) -> TrainOutput<StepReport> {
        let seed = dropout_seed(self.context.seed, batch.step, batch.micro);
        self.model.dropout.set(seed);
        // Whatever else is drawn in a step (centres, for one) is a function of its number too.
        B::seed(&self.model.device(), seed);
        let result = self.train_step(&batch);
        self.model.dropout.set(0);
        let (grads, item) = result.unwrap_or_else(|error| {
            self.context.failure.set(error);
            (GradientsParams::new(), StepReport::default())
        });
        TrainOutput { grads, item }
    }
}

impl<B: Backend> InferenceStep for TrainModel<B> {
    type Input = MicroBatch;
    type Output = StepReport;

    fn step(&self, batch: MicroBatch) -> StepReport {
        let run = || -> Result<StepReport, TrainError> {
            let (keys, pixels) = self.pixels(&batch)?;
            let features = match pixels {
                Some(pixels) => Some(self.model.vision_features(pixels)?),
                None => None,
            };
            let forward = self.forward(&batch, &self.project(keys, features))?;
            let mut report = self.report(&batch, forward.tokens);
            let llama = &self.model.language_model;
            let loss = &self.context.loss;
            (report.sums, report.answers) = loss.evaluate(llama, forward.hidden, &forward.targets);
            Ok(report)
        };
        run().unwrap_or_else(|error| {
            self.context.failure.set(error);
            StepReport::default()
        })
    }
}

fn pictures(batch: &MicroBatch) -> impl Iterator<Item = (&TrainSample, &Picture)> {
    batch
        .samples
        .iter()
        .flat_map(|sample| sample.pictures.iter().map(move |picture| (sample, picture)))
}

fn missing(sample: &TrainSample, key: &str) -> TrainError {
    TrainError::Sample {
        sample: sample.id.to_string(),
        reason: format!("the picture {key} was not read"),
    }
}

/// Sequences side by side, padded at the right with zeros, and the number of tokens without
/// padding. Each `[tokens, hidden]` → `[batch, tokens, hidden]`
fn pad<B: Backend>(sequences: Vec<Tensor<B, 2>>, tokens: usize) -> (Tensor<B, 3>, usize) {
    let mut used = 0;
    let padded = sequences.into_iter().map(|sequence| {
        let [own, width] = sequence.dims();
        used += own;
        let sequence = match tokens - own {
            0 => sequence,
            missing => {
                let zeros = Tensor::zeros([missing, width], (&sequence.device(), sequence.dtype()));
                Tensor::cat(vec![sequence, zeros], 0)
            }
        };
        sequence.unsqueeze::<3>()
    });
    let padded: Vec<_> = padded.collect();
    (Tensor::cat(padded, 0), used)
}

/// Seed of the adapters' dropout in one batch; never 0, which means no dropout.
fn dropout_seed(seed: u64, step: usize, micro: usize) -> u64 {
    // Odd multipliers keep the three apart; the adapters mix the bits.
    let mixed = seed
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add((step as u64).wrapping_mul(0xD134_2543_DE82_EF95))
        .wrapping_add((micro as u64).wrapping_mul(0xAF25_1AF3_B0F0_25B5));
    mixed | 1 << 63
}
