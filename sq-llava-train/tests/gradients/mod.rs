//! Tiny models in which everything trains, and the gradients of a step.

// Each test uses a part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use burn::train::TrainStep;
use burn_flex::Flex;
use sq_llava_data::TokenRole::{self, Answer, Ignore, Question};
use sq_llava_data::image::ImagePacking;
use sq_llava_model::SqLlava;
use sq_llava_model::config::PrototypeConfig;
use sq_llava_model::language::llama::NewTokens;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_train::data::batch::{MicroBatch, Picture, TrainSample};
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::recipe::Objective;
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::loss::{LossSettings, LossSums};
use sq_llava_train::step::report::StepReport;
use sq_llava_train::step::whole::{StepContext, TrainModel};
use sq_llava_train::{GradientCheckpointing, TrainError};

pub type Ad = Autodiff<Flex>;
/// Of samples whose pictures have labels.
pub const MASK_WEIGHT: f64 = 0.7;

pub type Gradients = BTreeMap<String, Vec<f32>>;

pub const ALL: Trains = Trains {
    llm: true,
    projector: true,
    new_tokens: true,
    vision: true,
};

/// Replaces what trains by numbers that are zero nowhere: a fresh adapter's B is.
struct Waves(f32);

impl ModuleMapper<Ad> for Waves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Ad, D>>) -> Param<Tensor<Ad, D>> {
        if !param.is_require_grad() {
            return param;
        }
        self.0 += 1.0;
        param.map(|tensor| {
            let shape = tensor.shape();
            let wave = |i| 0.1 * ((i as f32 + 0.5) * 0.618 + self.0).sin();
            let values: Vec<f32> = (0..shape.num_elements()).map(wave).collect();
            Tensor::from_data(TensorData::new(values, shape), &tensor.device()).require_grad()
        })
    }
}

/// A tiny LLaVA with everything that can train, dropout included.
pub fn model(trains: Trains) -> SqLlava<Ad> {
    over(&golden::base_folder("", None).join("orig"), trains)
}

pub fn over(base: &Path, trains: Trains) -> SqLlava<Ad> {
    with_dropout(base, trains, 0.1, 0.2)
}

/// The same with these shares of the inputs of the LLM's and of the tower's adapters dropped.
pub fn with_dropout(base: &Path, trains: Trains, llm: f64, vision: f64) -> SqLlava<Ad> {
    let device = Default::default();
    let loaded = match load_model::<Ad>(base, &LoadOptions::default(), &device) {
        Ok(loaded) => loaded,
        Err(error) => panic!("{}: {error}", base.display()),
    };
    let mut model = loaded
        .model
        .with_llm_lora(&LoraConfig::llm(4, 8.0, llm))
        .with_vision_lora(&LoraConfig::vision(4, 8.0, vision));
    // Pictures stand where LLaVA's own id does.
    model.config.image_token_index = None;
    if let Some(width) = model.config.feature_width() {
        let prototype = PrototypeConfig::new(width).with_num_centers(8);
        model.prototype = Some(prototype.init(&device));
    }
    let start = model.language_model.vocabulary();
    model.language_model.new_tokens = Some(NewTokens::init(&model.language_model, start, 4, 1));
    marked(model, trains)
}

/// A model of which these parts train, with numbers of their own.
pub fn marked(model: SqLlava<Ad>, trains: Trains) -> SqLlava<Ad> {
    ParamGroups::mark(model, trains).0.map(&mut Waves(0.0))
}

pub fn sample(id: &str, model: &SqLlava<Ad>, words: usize, pictures: &[usize]) -> TrainSample {
    let start = model.language_model.vocabulary() as i64 - 4;
    let mut ids = vec![1];
    ids.extend(pictures.iter().map(|_| -200));
    ids.push(start + 1);
    ids.extend((0..words).map(|i| 5 + (i * 7 % 40) as i64));
    ids.push(start + 3);
    let roles = (0..ids.len()).map(|i| -> TokenRole {
        match i {
            _ if ids[i] < 0 || i < 2 => Ignore,
            _ if i % 3 == 0 => Question,
            _ => Answer,
        }
    });
    let roles = roles.collect();
    let pictures = pictures.iter().map(|&n| picture(model, n));
    TrainSample {
        id: id.into(),
        ids,
        roles,
        pictures: pictures.collect(),
        source: None,
    }
}

/// A picture that differs from others of other numbers; where the model takes pictures of any shape,
/// its shape does too.
fn picture(model: &SqLlava<Ad>, n: usize) -> Picture {
    let side = model.config.vision.as_ref().expect("a tower").image_size;
    let packing = match &model.config.anyres {
        None => ImagePacking::One { newline: false },
        Some(anyres) => {
            let (side, shapes) = (side as u32, [(1, 1), (1, 3), (2, 1), (2, 2)]);
            let (height, width) = shapes[n % shapes.len()];
            ImagePacking::Grid {
                grid: anyres.grid((height * side, width * side), side),
                max_tiles: anyres.max_tiles,
                merge: anyres.merge,
            }
        }
    };
    let pixels = 0..packing.tiles() * 3 * side * side;
    let pixels = pixels.map(|i| ((i * (n + 3)) as f32 * 0.013).sin());
    let name = format!("{n}.png");
    let tokens = packing.tokens(model.config.tokens_per_image());
    Picture {
        packing,
        ..Picture::of_one_tile(&name, tokens.expect("a square"), Some(pixels.collect()))
    }
}

/// Two samples share a picture, one has two, one has none; lengths differ.
pub fn samples(model: &SqLlava<Ad>) -> Vec<TrainSample> {
    vec![
        sample("a", model, 9, &[0]),
        sample("b", model, 4, &[0, 1]),
        sample("c", model, 14, &[]),
    ]
}

pub fn batch(samples: Vec<TrainSample>, step: usize, step_tokens: usize) -> MicroBatch {
    MicroBatch {
        step,
        step_tokens,
        ..MicroBatch::whole_step(samples)
    }
}

/// Gradients of everything that trains, by path.
struct Read<'a> {
    grads: &'a GradientsParams,
    found: Gradients,
}

impl ParamVisitor<Ad> for Read<'_> {
    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<Ad, D>>) {
        if let Some(grad) = self.grads.get::<Flex, D>(param.id) {
            let values = grad.into_data().to_vec().expect("f32 values");
            self.found.insert(path.dotted(), values);
        }
    }
}

pub fn step(
    model: &SqLlava<Ad>,
    trains: Trains,
    checkpointing: GradientCheckpointing,
    batch: MicroBatch,
) -> (Gradients, LossSums) {
    let (gradients, report) = report(model, trains, checkpointing, batch);
    (gradients, report.sums)
}

/// Gradients of a step and what is told of it.
pub fn report(
    model: &SqLlava<Ad>,
    trains: Trains,
    checkpointing: GradientCheckpointing,
    batch: MicroBatch,
) -> (Gradients, StepReport) {
    weighted(model, trains, checkpointing, batch, MASK_WEIGHT)
}

/// The same with another weight of masks.
pub fn weighted(
    model: &SqLlava<Ad>,
    trains: Trains,
    checkpointing: GradientCheckpointing,
    batch: MicroBatch,
    mask_weight: f64,
) -> (Gradients, StepReport) {
    let found = run(model, trains, checkpointing, batch, mask_weight);
    found.unwrap_or_else(|error| panic!("{error}"))
}

/// Why a step cannot be taken.
pub fn failed(
    model: &SqLlava<Ad>,
    trains: Trains,
    checkpointing: GradientCheckpointing,
    batch: MicroBatch,
) -> TrainError {
    let found = run(model, trains, checkpointing, batch, MASK_WEIGHT);
    found.expect_err("an error")
}

fn run(
    model: &SqLlava<Ad>,
    trains: Trains,
    checkpointing: GradientCheckpointing,
    batch: MicroBatch,
    mask_weight: f64,
) -> Result<(Gradients, StepReport), TrainError> {
    let failure = Failure::default();
    let model = TrainModel {
        model: model.clone(),
        context: StepContext {
            objective: Objective::Text,
            loss: LossSettings {
                question_weight: 0.5,
                answer_weight: 1.0,
                chunk_tokens: 6,
            },
            mask_weight,
            trains,
            features: Arc::new(FeatureCache::new(1 << 20)),
            checkpointing,
            seed: 3,
            failure: failure.clone(),
        },
    };
    let output = TrainStep::step(&model, batch);
    if let Some(error) = failure.take() {
        return Err(error);
    }
    let mut read = Read {
        grads: &output.grads,
        found: Gradients::new(),
    };
    visit_params(&model, &mut read);
    assert_eq!(read.found.len(), output.grads.len());
    Ok((read.found, output.item))
}

/// Gradients and losses of the parts of a step, added up.
pub fn sum_of(parts: impl Iterator<Item = (Gradients, LossSums)>) -> (Gradients, LossSums) {
    let (mut sum, mut sums) = (Gradients::new(), LossSums::default());
    for (gradients, part) in parts {
        sums.merge(&part);
        for (path, values) in gradients {
            let all = sum.entry(path).or_insert_with(|| vec![0.0; values.len()]);
            for (all, value) in all.iter_mut().zip(values) {
                *all += value;
            }
        }
    }
    (sum, sums)
}

/// Largest relative error over all parameters. What is below a thousandth of the whole gradient is
/// measured against that: some biases cancel, and their gradients are rounding alone.
pub fn difference(a: &Gradients, b: &Gradients) -> f64 {
    assert!(!a.is_empty());
    let missing: Vec<_> = b.keys().filter(|path| !a.contains_key(*path)).collect();
    let extra: Vec<_> = a.keys().filter(|path| !b.contains_key(*path)).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "no gradient of {missing:?}, but of {extra:?}"
    );
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let whole = norm(&mut b.values().flatten().map(|&v| f64::from(v)));
    assert!(whole > 0.0 && whole.is_finite());
    let error = |(path, a): (&String, &Vec<f32>)| {
        let b = &b[path];
        assert_eq!(a.len(), b.len());
        let own = norm(&mut b.iter().map(|&v| f64::from(v)));
        let delta = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
        norm(&mut { delta }) / own.max(1e-3 * whole)
    };
    a.iter().map(error).fold(0.0, f64::max)
}
