//! A step of training on language models of today's families: loss, gradient norm and AdamW against
//! peft, torch and the clipping of transformers' Trainer (`scripts/adamw_fixtures.py`).

#[path = "golden_training/rows.rs"]
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::optim::Optimizer;
use burn::train::TrainStep;
use burn_flex::Flex;
use golden::{Tensors, Value, relative_error};
use rows::samples;
use sq_llava_model::SqLlava;
use sq_llava_model::config::Family;
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_train::data::batch::MicroBatch;
use sq_llava_train::data::features::FeatureCache;
use sq_llava_train::failure::Failure;
use sq_llava_train::recipe::Objective;
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::loss::LossSettings;
use sq_llava_train::step::optimizer::GroupedAdamW;
use sq_llava_train::step::whole::{StepContext, TrainModel};
use sq_llava_train::{Flavour, GradientCheckpointing, Recipe};

type Ad = Autodiff<Flex>;

const LLM: Trains = Trains {
    llm: true,
    projector: false,
    new_tokens: false,
    vision: false,
};

const LOSS: LossSettings = LossSettings {
    question_weight: 1.0,
    answer_weight: 1.0,
    // Smaller than the batch, so that chunks are joined.
    chunk_tokens: 5,
};

/// A language model of the families with the adapter that peft made on it.
fn adapted(dir: &Path) -> SqLlava<Ad> {
    let options = LoadOptions {
        base: Some(dir.join("model")),
        freeze_base: true,
        ..LoadOptions::default()
    };
    match load_model::<Ad>(&dir.join("lora_adapter"), &options, &Default::default()) {
        Ok(loaded) => loaded.model,
        Err(error) => panic!("{}: {error}", dir.display()),
    }
}

/// A model in training, and its optimizer.
struct Training {
    model: TrainModel<Ad>,
    optimizer: GroupedAdamW<Ad>,
    batch: MicroBatch,
    failure: Failure,
}

impl Training {
    fn new(dir: &Path, settings: &Value, checkpointing: GradientCheckpointing) -> Self {
        let number = |key: &str| settings[key].as_f64().expect("a number");
        let mut stage = Recipe::published(Flavour::Paper).stage2;
        stage.lr_llm = number("lr");
        stage.betas = [0, 1].map(|i| settings["betas"][i].as_f64().expect("a number"));
        stage.eps = number("eps");
        stage.weight_decay = number("weight_decay");
        stage.clip_norm = number("clip_norm");
        let (model, groups) = ParamGroups::mark(adapted(dir), LLM);
        let failure = Failure::default();
        let context = StepContext {
            objective: Objective::Text,
            loss: LOSS,
            mask_weight: 0.0,
            trains: LLM,
            features: Arc::new(FeatureCache::new(0)),
            checkpointing,
            seed: 0,
            failure: failure.clone(),
        };
        let tensors = Tensors::read(&dir.join("outputs.safetensors"));
        Self {
            model: TrainModel { model, context },
            optimizer: GroupedAdamW::new(&stage, Arc::new(groups)),
            batch: MicroBatch::whole_step(samples(
                &tensors,
                "lora_input_ids",
                "lora_labels",
                Some("lora_attention_mask"),
            )),
            failure,
        }
    }

    /// One step; loss and norm of the gradients before it.
    fn step(&mut self) -> [f64; 2] {
        let output = TrainStep::step(&self.model, self.batch.clone());
        assert!(self.failure.take().is_none());
        let loss = output.item.sums.mean(&LOSS);
        self.model = self.optimizer.step(1.0, self.model.clone(), output.grads);
        [loss, self.optimizer.norms().total]
    }

    /// Values of the adapters by peft's names.
    fn factors(&self) -> BTreeMap<String, Vec<f32>> {
        let mut found = BTreeMap::new();
        for (path, linear) in self.model.model.language_model.linears() {
            let Some(lora) = &linear.lora else { continue };
            for (part, param) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                let values = param.val().into_data().to_vec().expect("f32 values");
                found.insert(format!("base_model.model.{path}.{part}.weight"), values);
            }
        }
        found
    }
}

fn close(what: &str, found: f64, expected: f64, tolerance: f64) {
    let error = (found - expected).abs();
    assert!(
        error <= tolerance * expected,
        "{what}: {found} for {expected}"
    );
}

/// Every case of the families: loss and norm of the gradients of a training step.
#[test]
fn golden_loss_and_gradient_norm_of_a_step() {
    let settings: Value = "{\"lr\": 0.0, \"betas\": [0.9, 0.99], \"eps\": 1e-8, \
        \"weight_decay\": 0.0, \"clip_norm\": 1.0}"
        .parse()
        .expect("JSON");
    let mut checked = 0;
    for dir in golden::entries(&golden::families()) {
        if !dir.join("lora_adapter").is_dir() {
            continue;
        }
        let json = golden::json(&dir.join("outputs.json"));
        if json["kind"] != "llm" {
            continue;
        }
        if Family::of(json["family"].as_str().expect("a family")).is_none() {
            continue;
        }
        let told = |key: &str| json["lora"][key].as_f64().expect("a number");
        for checkpointing in [GradientCheckpointing::None, GradientCheckpointing::Blocks] {
            let what = format!("{}, {checkpointing:?}", golden::file_name(&dir));
            let [loss, norm] = Training::new(&dir, &settings, checkpointing).step();
            close(&what, loss, told("loss_f64"), 1e-5);
            close(&what, norm, told("gradient_norm"), 1e-4);
        }
        checked += 1;
    }
    assert!(checked > 0, "no language model with an adapter");
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adamw")
}

/// What three steps of AdamW with clipping change, against torch's on peft's parameters.
#[test]
fn golden_steps_of_adamw() {
    let mut families = Vec::new();
    for path in golden::entries(&fixtures()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let (settings, after) = (golden::json(&path), path.with_extension("safetensors"));
        let after = Tensors::read(&after);
        let name = golden::file_name(&path.with_extension(""));
        let dir = golden::repository().join("families").join(&name);
        let mut training = Training::new(&dir, &settings, GradientCheckpointing::None);
        let before = training.factors();
        for step in 1..=3 {
            let [loss, norm] = training.step();
            let told = |key: &str| settings[key][step - 1].as_f64().expect("a number");
            close(&format!("{name} loss {step}"), loss, told("losses"), 1e-4);
            close(&format!("{name} norm {step}"), norm, told("norms"), 1e-3);
            let kept = format!("after{step}.");
            let keys = after.names().filter_map(|key| key.strip_prefix(&kept));
            let found = training.factors();
            let mut compared = 0;
            for key in keys {
                let start = &before[key];
                let change = |values: &[f64]| -> Vec<f64> {
                    let pairs = values.iter().zip(start);
                    pairs
                        .map(|(value, start)| value - f64::from(*start))
                        .collect()
                };
                let expected = change(&after.f64(&format!("{kept}{key}")));
                let values: Vec<f64> = found[key].iter().map(|v| f64::from(*v)).collect();
                let values: Vec<f32> = change(&values).iter().map(|v| *v as f32).collect();
                let error = relative_error(&values, &expected);
                assert!(error <= 2e-3, "{name} step {step} {key}: {error:.2e}");
                compared += 1;
            }
            assert_eq!(compared > 0, step != 2, "{name}");
        }
        families.push(name);
    }
    for family in ["qwen2", "qwen3", "gemma2", "phi3"] {
        assert!(
            families.iter().any(|name| name.contains(family)),
            "{family}"
        );
    }
}
