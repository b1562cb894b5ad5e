//! The training step of PEFT's adapters, on any backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::{AutodiffModule, Module, Param};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{ElementConversion, Tensor, TensorData};
use burn::train::TrainStep;
use golden::{Case, Tensors, assert_close};
use sq_llava_model::SqLlava;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};
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

use super::rows::samples;

/// A case of part d with the adapter it belongs to: the one whose keys its gradients have.
pub fn cases_with(tensor: &str) -> Vec<(Case, PathBuf)> {
    let found: Vec<(Case, PathBuf)> = golden::cases("d_")
        .into_iter()
        .filter(|case| case.tensors.contains(tensor))
        .map(|case| {
            let first = case
                .tensors
                .names()
                .find_map(|name| name.strip_prefix("grad."))
                .expect("a gradient")
                .to_string();
            let adapter = golden::entries(&case.folder)
                .into_iter()
                .filter(|path| path.is_dir())
                .find(|path| {
                    let file = path.join("adapter_model.safetensors");
                    file.is_file() && Tensors::read(&file).contains(&first)
                });
            (case, adapter.expect("the adapter of the case"))
        })
        .collect();
    assert!(!found.is_empty(), "no case of part d has {tensor}");
    found
}

pub fn copy_adapter(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for path in golden::entries(from) {
        let name = golden::file_name(&path);
        if name.starts_with("adapter_") {
            std::fs::copy(&path, to.join(name)).expect("copied");
        }
    }
}

pub fn load<B: Backend>(run: &Path, base: &Path, device: &B::Device) -> SqLlava<B> {
    let options = LoadOptions {
        base: Some(base.to_path_buf()),
        ..LoadOptions::default()
    };
    match load_model::<B>(run, &options, device) {
        Ok(loaded) => loaded.model,
        Err(error) => panic!("{}: {error}", run.display()),
    }
}

/// The base with the LLM's adapter.
pub fn with_llm_adapter<B: Backend>(case: &Case, adapter: &Path, device: &B::Device) -> SqLlava<B> {
    let hint = case.json["base"].as_str().unwrap_or_default();
    let base = golden::base_folder(hint, None).join("orig");
    let run = tempfile::tempdir().expect("a folder");
    copy_adapter(adapter, run.path());
    load(run.path(), &base, device)
}

pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().expect("f32 values")
}

pub fn settings() -> LossSettings {
    LossSettings {
        question_weight: 1.0,
        answer_weight: 1.0,
        // Smaller than the batch, so that chunks are joined.
        chunk_tokens: 5,
    }
}

pub fn train_model<B: Backend>(
    model: SqLlava<B>,
    trains: Trains,
    checkpointing: GradientCheckpointing,
    failure: &Failure,
) -> TrainModel<B> {
    TrainModel {
        model,
        context: StepContext {
            objective: Objective::Text,
            loss: settings(),
            mask_weight: 0.0,
            trains,
            features: Arc::new(FeatureCache::new(0)),
            checkpointing,
            seed: 0,
            failure: failure.clone(),
        },
    }
}

/// Values of the adapters by PEFT's key, or their gradients.
pub struct Adapters<'a> {
    prefix: &'a str,
    grads: Option<&'a GradientsParams>,
    found: BTreeMap<String, Vec<f32>>,
}

impl<B: AutodiffBackend> ParamVisitor<B> for Adapters<'_> {
    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>) {
        let path = path.dotted();
        let Some((linear, factor)) = path.split_once(".lora.") else {
            return;
        };
        // A `TrainModel` holds the model in a field of its own.
        let linear = linear.strip_prefix("model.").unwrap_or(linear);
        let inside = linear
            .strip_prefix("language_model.")
            .or_else(|| linear.strip_prefix("vision_tower."))
            .expect("a tower");
        let key = format!(
            "{}{inside}.lora_{}.weight",
            self.prefix,
            factor.to_uppercase()
        );
        match self.grads {
            None => {
                self.found.insert(key, values(param.val()));
            }
            Some(grads) => {
                if let Some(grad) = grads.get::<B::InnerBackend, D>(param.id) {
                    self.found.insert(key, values(grad));
                }
            }
        }
    }
}

pub fn adapters<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    prefix: &str,
    grads: Option<&GradientsParams>,
) -> BTreeMap<String, Vec<f32>> {
    let mut visitor = Adapters {
        prefix,
        grads,
        found: BTreeMap::new(),
    };
    visit_params(module, &mut visitor);
    visitor.found
}

/// All tensors of a case whose name begins with `kind`, compared.
pub fn compare(case: &Case, kind: &str, found: &BTreeMap<String, Vec<f32>>, tolerance: f64) {
    let names: Vec<&str> = case
        .tensors
        .names()
        .filter_map(|name| name.strip_prefix(kind))
        .collect();
    assert!(!names.is_empty(), "{}: nothing called {kind}", case.name);
    for name in names {
        let reference = case.tensors.f64(&format!("{kind}{name}"));
        let size = reference.iter().map(|v| v.abs()).fold(0.0, f64::max);
        let what = format!("{} {kind}{name}", case.name);
        match found.get(name) {
            Some(values) if size > 0.0 => assert_close(&what, values, &reference, tolerance),
            Some(values) => assert!(values.iter().all(|v| *v == 0.0), "{what}"),
            // The last vision layer is not used: no gradient at all is zero as well.
            None => assert_eq!(size, 0.0, "{what} is missing"),
        }
    }
}

pub const LLM: Trains = Trains {
    llm: true,
    projector: false,
    new_tokens: false,
    vision: false,
};

/// Loss, gradients and AdamW's steps of the LLM's adapter.
pub fn llm_gradients_and_adamw<A: AutodiffBackend>(
    checkpointing: GradientCheckpointing,
    device: &A::Device,
) {
    for (case, adapter) in cases_with("logits_lora_unmerged") {
        let model = with_llm_adapter::<A>(&case, &adapter, device);
        let (model, groups) = ParamGroups::mark(model, LLM);
        let adamw = &case.json["adamw"];
        let mut stage = Recipe::published(Flavour::Paper).stage2;
        stage.lr_llm = adamw["lr"].as_f64().expect("lr");
        stage.betas = [0, 1].map(|i| adamw["betas"][i].as_f64().expect("beta"));
        stage.eps = adamw["eps"].as_f64().expect("eps");
        stage.weight_decay = adamw["weight_decay"].as_f64().expect("weight_decay");
        stage.clip_norm = 0.0;
        let mut optimizer = GroupedAdamW::<A>::new(&stage, Arc::new(groups));
        let failure = Failure::default();
        let mut model = train_model(model, LLM, checkpointing, &failure);
        let samples = samples(&case.tensors, "input_ids", "labels", None);
        let losses = case.json["losses_step0_1_2_3"].as_array().expect("losses");
        for (step, expected) in losses.iter().enumerate() {
            let output = TrainStep::step(&model, MicroBatch::whole_step(samples.clone()));
            assert!(failure.take().is_none());
            let loss = output.item.sums.mean(&settings());
            let expected = expected.as_f64().expect("loss");
            // The first step is the loss alone, the others follow what AdamW did.
            let tolerance = if step == 0 { 1e-5 } else { 2e-4 };
            assert!(
                (loss - expected).abs() < tolerance,
                "step {step}: {loss} for {expected}"
            );
            if step == 0 {
                let found = adapters::<A, _>(&model, "base_model.model.", Some(&output.grads));
                compare(&case, "grad.", &found, 1e-3);
            }
            model = optimizer.step(1.0, model, output.grads);
            if step == 0 {
                let norm = case.json["grad_norm"].as_f64().expect("grad_norm");
                assert!((optimizer.norms().total - norm).abs() < 1e-3 * norm);
                let found = adapters::<A, _>(&model, "base_model.model.", None);
                compare(&case, "after1.", &found, 1e-3);
            }
        }
    }
}

/// Features, loss and gradients of the tower's adapter.
pub fn vision_features_loss_and_gradients<A: AutodiffBackend>(device: &A::Device) {
    for (case, adapter) in cases_with("feat_lora") {
        let base = golden::base_folder("", None).join("orig");
        let run = tempfile::tempdir().expect("a folder");
        // The tower's adapter stands in a folder of its own, beside the LLM's.
        let (_, llm) = cases_with("logits_lora_unmerged").remove(0);
        copy_adapter(&llm, run.path());
        copy_adapter(&adapter, &run.path().join("Vit-lora"));
        let trains = Trains {
            vision: true,
            ..Trains::default()
        };
        let (model, _) = ParamGroups::mark(load::<A>(run.path(), &base, device), trains);
        let tensor = |name: &str| TensorData::new(case.tensors.f32(name), case.tensors.shape(name));
        let pixels = Tensor::<A, 4>::from_data(tensor("pixel_values"), device);
        let features = model.vision_features(pixels.clone()).expect("features");
        let reference = case.tensors.f64("feat_lora");
        assert_close(&case.name, &values(features.clone()), &reference, 2e-4);

        let plain =
            load_model::<A::InnerBackend>(&base, &LoadOptions::default(), device).expect("loads");
        let without = plain
            .model
            .vision_features(pixels.inner())
            .expect("features");
        assert_close(
            &case.name,
            &values(without),
            &case.tensors.f64("feat_base"),
            2e-4,
        );
        let merged = model.valid().merge_lora();
        let pixels = Tensor::<A::InnerBackend, 4>::from_data(tensor("pixel_values"), device);
        let merged = merged.vision_features(pixels).expect("features");
        assert_close(&case.name, &values(merged), &reference, 2e-4);

        let w = Tensor::<A, 3>::from_data(tensor("w"), device);
        let numel = w.shape().num_elements() as f64;
        let loss = (features * w).sum().div_scalar(numel);
        let value = loss.clone().into_scalar().elem::<f64>();
        let expected = case.json["loss_value"].as_f64().expect("loss_value");
        assert!((value - expected).abs() < 1e-5, "{value} for {expected}");
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        let found = adapters::<A, _>(&model, "base_model.model.", Some(&grads));
        compare(&case, "grad.", &found, 1e-3);
    }
}
