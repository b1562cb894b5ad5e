//! The vision tower: from pixels to what stands where. It learns numbers of attributes, no words.

use anyhow::{Result, ensure};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{AutodiffModule, Module};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::activation::log_sigmoid;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{ElementConversion, Tensor, TensorData};
use rand::RngExt;
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};
use sq_llava_model::config::VisionConfig;
use sq_llava_model::ops::cross_entropy::token_losses;
use sq_llava_model::ops::linear::Linear;
use sq_llava_model::vision::tower::VisionTower;

use super::{Lessons, rate};
use crate::world::{Color, MOST_THINGS, Place, SIDE, Scene, render, rng};

/// Peak learning rate.
const RATE: f64 = 2e-3;

/// Scenes of one step.
const BATCH: usize = 32;

/// What each patch tells, and in how many ways: shape and colour (or none), size (or none), cell,
/// things in the picture.
const PATCH: [usize; 5] = [5, 7, 3, 9, 9];

/// Weight in the loss of a patch that shows a thing; one without has 1.
const BUSY: f32 = 4.0;

/// Random numbers of scenes full of things.
const SCENE_STREAM: u64 = 6;

/// Kinds of things, by shape and colour.
const KINDS: usize = 24;

/// Side of a cell of the world's grid in the tower's pictures, in pixels.
pub const CELL: usize = 24;

/// About a million parameters; of the shipped one's patches there is one to a cell of the world's
/// grid.
pub fn config(patch: usize) -> VisionConfig {
    VisionConfig::new()
        .with_hidden_size(128)
        .with_intermediate_size(512)
        .with_num_hidden_layers(4)
        .with_num_attention_heads(4)
        .with_image_size(Place::ALL.len().isqrt() * CELL)
        .with_patch_size(patch)
}

/// The tower with what it is examined by.
#[derive(Module, Debug)]
struct Pupil<B: Backend> {
    tower: VisionTower<B>,
    /// Answers of a patch `[Σ PATCH]`, from the layer whose features the LLM will get.
    patch: Linear<B>,
    /// Kinds that the picture holds `[KINDS]`, from the class token.
    picture: Linear<B>,
}

/// Trains a tower from nothing.
///
/// # Errors
/// If the loss is no longer a number.
pub fn train<B: AutodiffBackend>(
    config: &VisionConfig,
    processor: &ImageProcessorConfig,
    lessons: Lessons,
    device: &B::Device,
    say: &mut dyn FnMut(String),
) -> Result<VisionTower<B::InnerBackend>> {
    B::seed(device, lessons.seed);
    let processor = ImageProcessor::new(processor.clone())?;
    let width = config.hidden_size;
    let mut pupil = Pupil::<B> {
        tower: config.init(device),
        patch: Linear::init(width, PATCH.iter().sum(), true, device),
        picture: Linear::init(width, KINDS, true, device),
    };
    say(format!(
        "vision tower: {} parameters, {} steps",
        pupil.tower.num_params(),
        lessons.vision_steps
    ));
    let mut optimizer = AdamWConfig::new()
        .with_weight_decay(0.01)
        .with_epsilon(1e-8)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init::<B, Pupil<B>>();
    for step in 0..lessons.vision_steps {
        let scenes: Vec<Scene> = (0..BATCH)
            .map(|i| scene(lessons.seed, (step * BATCH + i) as u64))
            .collect();
        let (loss, right) = pupil.lesson(&scenes, &processor, device);
        let value: f64 = loss.clone().into_scalar().elem();
        ensure!(
            value.is_finite(),
            "vision tower, step {step}: the loss is {value}"
        );
        let grads = GradientsParams::from_grads(loss.backward(), &pupil);
        pupil = optimizer.step(rate(RATE, step, lessons.vision_steps), pupil, grads);
        if step % 50 == 49 || step + 1 == lessons.vision_steps {
            let right = right.map(|part| format!("{:.1}", 100.0 * part)).join(", ");
            say(format!(
                "vision tower, step {}: loss {value:.4}; shape, color, size, cell, count right in {right} % of patches",
                step + 1
            ));
        }
    }
    Ok(pupil.tower.valid())
}

/// Every second scene is full of things: there is more to see in it.
fn scene(seed: u64, number: u64) -> Scene {
    if number.is_multiple_of(2) {
        return Scene::draw(seed, number);
    }
    let mut rng = rng(seed, SCENE_STREAM, number);
    let count = rng.random_range(MOST_THINGS + 1..=Place::ALL.len());
    Scene::with_things(count, &mut rng)
}

impl<B: Backend> Pupil<B> {
    /// The loss, and the part of patches with a thing whose answers are right.
    fn lesson(
        &self,
        scenes: &[Scene],
        processor: &ImageProcessor,
        device: &B::Device,
    ) -> (Tensor<B, 1>, [f64; 5]) {
        let (height, width) = processor.input_size();
        let mut pixels = Vec::new();
        for scene in scenes {
            pixels.extend(processor.preprocess(&render(scene, SIDE)).data);
        }
        let shape = [scenes.len(), 3, height as usize, width as usize];
        let pixels = Tensor::<B, 4>::from_data(TensorData::new(pixels, shape), device);
        let states = self.tower.hidden_states(pixels);
        let last = states.len() - 1;
        let [images, tokens, hidden] = states[last].dims();
        let patches = tokens - 1;

        // Features as the LLM gets them: the patches of the last layer but one.
        let features = states[last - 1]
            .clone()
            .slice([0..images, 1..tokens, 0..hidden]);
        let logits = self
            .patch
            .forward(features.reshape([images * patches, hidden]));
        let side = patches.isqrt();
        let mut targets: [Vec<i64>; 5] = Default::default();
        for scene in scenes {
            for patch in 0..patches {
                let cell = patch / side * 3 / side * 3 + patch % side * 3 / side;
                for (list, target) in targets.iter_mut().zip(patch_targets(scene, cell)) {
                    list.push(target);
                }
            }
        }
        let busy: Vec<bool> = targets[0].iter().map(|&shape| shape > 0).collect();
        let weights: Vec<f32> = busy
            .iter()
            .map(|&busy| if busy { BUSY } else { 1.0 })
            .collect();
        let total: f32 = weights.iter().sum();
        let weights = Tensor::<B, 1>::from_data(TensorData::from(&weights[..]), device);
        let mut loss = Tensor::zeros([1], device);
        let mut right = [0.0; 5];
        let mut start = 0;
        for (part, (&ways, targets)) in PATCH.iter().zip(&targets).enumerate() {
            let own = logits
                .clone()
                .slice([0..images * patches, start..start + ways]);
            start += ways;
            right[part] = accuracy(own.clone(), targets, &busy);
            loss = loss + (token_losses(own, targets) * weights.clone()).sum() / total;
        }

        (
            loss - self.likelihood_of_kinds(&states[last], scenes),
            right,
        )
    }

    /// Mean log-likelihood of which kinds of things are in each picture, from its class token.
    fn likelihood_of_kinds(&self, last: &Tensor<B, 3>, scenes: &[Scene]) -> Tensor<B, 1> {
        let [images, _, hidden] = last.dims();
        let class = last.clone().slice([0..images, 0..1, 0..hidden]);
        let class = class.reshape([images, hidden]);
        let class = match &self.tower.post_layernorm {
            Some(norm) => norm.forward(class),
            None => class,
        };
        let kinds: Vec<f32> = scenes.iter().flat_map(kinds).collect();
        let kinds = TensorData::new(kinds, [images, KINDS]);
        let held = Tensor::<B, 2>::from_data(kinds, &last.device());
        let scores = self.picture.forward(class);
        let found = log_sigmoid(scores.clone()) * held.clone();
        let missing = log_sigmoid(scores.neg()) * (held.neg() + 1.0);
        (found + missing).mean()
    }
}

/// Right answers for a patch, in the order of [`PATCH`].
fn patch_targets(scene: &Scene, cell: usize) -> [i64; 5] {
    let place = Place::ALL.get(cell).copied();
    let thing = scene.find(None, None, place).first().copied();
    let or_none = |index: Option<usize>| index.map_or(0, |index| index as i64 + 1);
    [
        or_none(thing.map(|t| t.shape.index())),
        or_none(thing.map(|t| t.color.index())),
        or_none(thing.map(|t| t.size.index())),
        cell as i64,
        scene.things.len() as i64 - 1,
    ]
}

/// 1 for each kind that a scene holds.
fn kinds(scene: &Scene) -> [f32; KINDS] {
    let mut held = [0.0; KINDS];
    for thing in &scene.things {
        held[thing.shape.index() * Color::ALL.len() + thing.color.index()] = 1.0;
    }
    held
}

/// Part of the counted rows whose largest logit is the target's. `[n, ways]`
fn accuracy<B: Backend>(logits: Tensor<B, 2>, targets: &[i64], counted: &[bool]) -> f64 {
    let chosen: Vec<i64> = logits.argmax(1).into_data().iter::<i64>().collect();
    let rows = chosen.iter().zip(targets).zip(counted);
    let (mut right, mut all) = (0usize, 0usize);
    for ((chosen, target), &counted) in rows {
        right += usize::from(counted && chosen == target);
        all += usize::from(counted);
    }
    right as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Shape, Size};

    #[test]
    fn the_answers_cover_the_worlds_words() {
        let ways = [
            Shape::ALL.len() + 1,
            Color::ALL.len() + 1,
            Size::ALL.len() + 1,
        ];
        assert_eq!(PATCH[..3], ways);
        assert_eq!(PATCH[3], Place::ALL.len());
        assert_eq!(KINDS, Shape::ALL.len() * Color::ALL.len());
        assert_eq!(PATCH[4], Place::ALL.len());
        let scene = scene(0, 1);
        assert!(scene.things.len() > MOST_THINGS);
        assert_eq!(kinds(&scene).iter().sum::<f32>(), scene.things.len() as f32);
        for cell in 0..9 {
            let targets = patch_targets(&scene, cell);
            for (target, ways) in targets.into_iter().zip(PATCH) {
                assert!((0..ways as i64).contains(&target));
            }
        }
    }
}
