//! Recompute changes memory, not gradients; dropout drops the same however a step is divided.

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
use sq_llava_model::SqLlava;
use sq_llava_model::config::PrototypeConfig;
use sq_llava_model::language::llama::NewTokens;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_train::GradientCheckpointing::{self, Blocks, None as Keep};
use sq_llava_train::data::batch::{MicroBatch, Picture, TrainSample};
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::loss::{LossSettings, LossSums};
use sq_llava_train::step::whole::{StepContext, TrainModel};

type Ad = Autodiff<Flex>;
type Gradients = BTreeMap<String, Vec<f32>>;

const ALL: Trains = Trains {
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
fn model(trains: Trains) -> SqLlava<Ad> {
    over(&golden::base_folder("", None).join("orig"), trains)
}

fn over(base: &Path, trains: Trains) -> SqLlava<Ad> {
    let device = Default::default();
    let loaded = load_model::<Ad>(base, &LoadOptions::default(), &device).expect("loads");
    let mut model = loaded
        .model
        .with_llm_lora(&LoraConfig::llm(4, 8.0, 0.1))
        .with_vision_lora(&LoraConfig::vision(4, 8.0, 0.2));
    let width = model.config.feature_width().expect("a tower");
    // Pictures stand where LLaVA's own id does.
    model.config.image_token_index = None;
    let prototype = PrototypeConfig::new(width).with_num_centers(8);
    model.prototype = Some(prototype.init(&device));
    let start = model.language_model.vocabulary();
    model.language_model.new_tokens = Some(NewTokens::init(&model.language_model, start, 4, 1));
    ParamGroups::mark(model, trains).0.map(&mut Waves(0.0))
}

fn sample(id: &str, model: &SqLlava<Ad>, words: usize, pictures: &[usize]) -> TrainSample {
    let start = model.language_model.vocabulary() as i64 - 4;
    let side = model.config.vision.as_ref().expect("a tower").image_size;
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
    let tokens = model.config.tokens_per_image();
    let picture = |&n: &usize| {
        let pixels = 0..3 * side * side;
        let pixels = pixels.map(|i| ((i * (n + 3)) as f32 * 0.013).sin());
        Picture::of_one_tile(&format!("{n}.png"), tokens, Some(pixels.collect()))
    };
    TrainSample {
        id: id.into(),
        ids,
        roles,
        pictures: pictures.iter().map(picture).collect(),
    }
}

/// Two samples share a picture, one has two, one has none; lengths differ.
fn samples(model: &SqLlava<Ad>) -> Vec<TrainSample> {
    vec![
        sample("a", model, 9, &[0]),
        sample("b", model, 4, &[0, 1]),
        sample("c", model, 14, &[]),
    ]
}

fn batch(samples: Vec<TrainSample>, step: usize, step_tokens: usize) -> MicroBatch {
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

fn step(
    model: &SqLlava<Ad>,
    trains: Trains,
    checkpointing: GradientCheckpointing,
    batch: MicroBatch,
) -> (Gradients, LossSums) {
    let failure = Failure::default();
    let model = TrainModel {
        model: model.clone(),
        context: StepContext {
            loss: LossSettings {
                question_weight: 0.5,
                answer_weight: 1.0,
                chunk_tokens: 6,
            },
            trains,
            features: Arc::new(FeatureCache::new(1 << 20)),
            checkpointing,
            seed: 3,
            failure: failure.clone(),
        },
    };
    let output = TrainStep::step(&model, batch);
    if let Some(error) = failure.take() {
        panic!("{error}");
    }
    let mut read = Read {
        grads: &output.grads,
        found: Gradients::new(),
    };
    visit_params(&model, &mut read);
    assert_eq!(read.found.len(), output.grads.len());
    (read.found, output.item.sums)
}

/// Largest relative error over all parameters. What is below a thousandth of the whole gradient is
/// measured against that: some biases cancel, and their gradients are rounding alone.
fn difference(a: &Gradients, b: &Gradients) -> f64 {
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

#[test]
fn recompute_gives_the_same_gradients() {
    let parts: [(&str, Trains); 5] = [
        ("all", ALL),
        (
            "stage 1",
            Trains {
                projector: true,
                ..Trains::default()
            },
        ),
        (
            "the LLM alone",
            Trains {
                llm: true,
                ..Trains::default()
            },
        ),
        (
            "the tower alone",
            Trains {
                vision: true,
                ..Trains::default()
            },
        ),
        (
            "new tokens alone",
            Trains {
                new_tokens: true,
                ..Trains::default()
            },
        ),
    ];
    for (what, trains) in parts {
        let model = model(trains);
        let samples = samples(&model);
        let tokens = samples.iter().map(TrainSample::learnable).sum();
        let run = |way, at| step(&model, trains, way, batch(samples.clone(), at, tokens));
        let (kept, kept_sums) = run(Keep, 0);
        let (again, again_sums) = run(Blocks, 0);
        let towers = [
            "language_model.model",
            "vision_tower",
            "mm_projector",
            "new_tokens",
        ];
        let wanted = [
            trains.llm,
            trains.vision,
            trains.projector,
            trains.new_tokens,
        ];
        for (part, wanted) in towers.iter().zip(wanted) {
            let has = kept.keys().any(|path| path.contains(part));
            assert_eq!(has, wanted, "{what}: gradients of {part}");
        }
        let error = difference(&again, &kept);
        // Not a bit less: attention without a graph adds up in another order.
        assert!(error < 1e-5, "{what}: {error:e}");
        assert!((kept_sums.answer - again_sums.answer).abs() < 1e-4);
        // Dropout is on: another step drops other elements.
        let (other, _) = run(Blocks, 1);
        let moved = difference(&other, &kept);
        assert_eq!(moved > 1e-3, trains.llm || trains.vision, "{what}: {moved}");
        assert_eq!(run(Blocks, 0).0, again, "{what}: not repeatable");
    }
}

/// Towers of other families, and features joined from several layers, each of which sends a
/// gradient back into the tower.
#[test]
fn recompute_gives_the_same_gradients_for_every_tower() {
    let mut several = 0;
    for dir in golden::entries(&golden::repository().join("families")) {
        if !dir.join("lora_adapter").is_dir() || !golden::file_name(&dir).contains("llava") {
            continue;
        }
        for layers in [vec![-1], vec![-1, 2], vec![2, 2], vec![0, -1]] {
            let mut model = over(&dir.join("model"), ALL);
            if model.config.select_layers.len() != layers.len() {
                continue;
            }
            several += usize::from(layers.len() > 1);
            model.config.select_layers = layers.clone();
            let samples = samples(&model);
            let tokens = samples.iter().map(TrainSample::learnable).sum();
            let run = |way| step(&model, ALL, way, batch(samples.clone(), 0, tokens)).0;
            let (kept, again) = (run(Keep), run(Blocks));
            let towers = kept.keys().filter(|path| path.contains("vision_tower"));
            assert!(towers.count() > 0, "{}", dir.display());
            let error = difference(&again, &kept);
            assert!(error < 1e-5, "{} {layers:?}: {error:e}", dir.display());
        }
    }
    assert!(several > 1, "no model with features of several layers");
}

#[test]
fn a_step_drops_the_same_however_it_is_divided() {
    let model = model(ALL);
    let samples = samples(&model);
    let tokens = samples.iter().map(TrainSample::learnable).sum();
    let (whole, _) = step(&model, ALL, Keep, batch(samples.clone(), 4, tokens));
    // On a thread for each, as devices are.
    let parts: Vec<Gradients> = std::thread::scope(|scope| {
        let run = |sample: TrainSample| {
            let model = model.clone().fork(&Default::default());
            scope.spawn(move || step(&model, ALL, Blocks, batch(vec![sample], 4, tokens)).0)
        };
        let threads: Vec<_> = samples.into_iter().map(run).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let mut sum = Gradients::new();
    for (path, values) in parts.into_iter().flatten() {
        let all = sum.entry(path).or_insert_with(|| vec![0.0; values.len()]);
        for (all, value) in all.iter_mut().zip(values) {
            *all += value;
        }
    }
    let error = difference(&sum, &whole);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn a_batch_with_nothing_to_learn_contributes_nothing() {
    let model = model(ALL);
    let mut silent = sample("silent", &model, 5, &[0]);
    silent.roles.fill(Ignore);
    for way in [Keep, Blocks] {
        let (grads, sums) = step(&model, ALL, way, batch(vec![silent.clone()], 0, 0));
        assert!(grads.is_empty());
        assert_eq!(sums, LossSums::default());
    }
    // Beside another sample it changes nothing either.
    let speaks = sample("a", &model, 9, &[1]);
    let tokens = speaks.learnable();
    let both = vec![speaks.clone(), silent];
    let (alone, _) = step(&model, ALL, Blocks, batch(vec![speaks], 0, tokens));
    let (beside, _) = step(&model, ALL, Blocks, batch(both, 0, tokens));
    let error = difference(&beside, &alone);
    assert!(error < 1e-5, "{error:e}");
}
