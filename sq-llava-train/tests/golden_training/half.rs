//! Gradients of adapters on a base in 16 bits, by the operations that every backend has, beside
//! what PyTorch loses there (`scripts/half_gradients.py`).

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::FloatDType;
use burn::train::TrainStep;
use burn_flex::Flex;
use golden::{Tensors, Value};
use sq_llava_model::SqLlava;
use sq_llava_model::kernels::blocks::is_native;
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_train::GradientCheckpointing;
use sq_llava_train::data::batch::MicroBatch;
use sq_llava_train::failure::Failure;
use sq_llava_train::step::groups::ParamGroups;

use super::adapter::{LLM, adapters, copy_adapter, settings, train_model};
use super::rows::samples;

/// Flex behind a graph that its kernels do not know: the outer one runs the portable operations.
type Portable = Autodiff<Autodiff<Flex>>;

/// The golden LLM in a dtype, its adapter in f32.
fn model(dtype: FloatDType) -> SqLlava<Portable> {
    let data = golden::repository();
    let run = tempfile::tempdir().expect("a folder");
    copy_adapter(&data.join("d_lora/llm_adapter"), run.path());
    let options = LoadOptions {
        base: Some(data.join("a_llava_gqa/orig")),
        dtype,
        trainable_f32: true,
        freeze_base: true,
        ..LoadOptions::default()
    };
    let loaded = load_model::<Portable>(run.path(), &options, &Default::default());
    loaded.expect("loads").model
}

/// Loss and gradients of the step of part d as one of a step of `factor` times its tokens.
fn step(dtype: FloatDType, factor: usize) -> (f64, BTreeMap<String, Vec<f32>>) {
    let case = golden::cases_in(&golden::repository().join("d_lora"));
    let case = case.iter().find(|case| case.tensors.contains("input_ids"));
    let samples = samples(&case.expect("a case").tensors, "input_ids", "labels", None);
    let (model, _) = ParamGroups::mark(model(dtype), LLM);
    let failure = Failure::default();
    let model = train_model(model, LLM, GradientCheckpointing::None, &failure);
    let mut batch = MicroBatch::whole_step(samples);
    batch.step_tokens *= factor;
    let output = TrainStep::step(&model, batch);
    assert!(failure.take().is_none());
    let found = adapters::<Portable, _>(&model, "base_model.model.", Some(&output.grads));
    (output.item.sums.mean(&settings()), found)
}

/// Relative distance of each gradient, times `factor`, from the golden one in f32.
fn errors(found: &BTreeMap<String, Vec<f32>>, factor: usize) -> BTreeMap<String, f64> {
    let golden = Tensors::read(&golden::repository().join("d_lora/llm_step.safetensors"));
    let of = |(name, grad): (&String, &Vec<f32>)| {
        let exact = golden.f64(&format!("grad.{name}"));
        assert_eq!(exact.len(), grad.len(), "{name}");
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let pairs = grad.iter().zip(&exact);
        let far = square(&mut pairs.map(|(g, e)| f64::from(*g) * factor as f64 - e));
        let error = (far / square(&mut exact.iter().copied())).sqrt();
        (name.clone(), error)
    };
    found.iter().map(of).collect()
}

fn compare_with_pytorch(dtype: FloatDType, name: &str) {
    assert!(!is_native::<Portable>(), "the kernels would run");
    let file = golden::repository().join("k_half_gradients/half_gradients.json");
    let reference: &Value = &golden::json(&file)[name];
    let theirs = reference["relative_error"].as_object().expect("errors");
    let (loss, found) = step(dtype, 1);
    let expected = reference["loss"].as_f64().expect("a loss");
    // Both are away from the exact loss by what the dtype rounds.
    assert!((loss - expected).abs() < 2e-2, "{loss} for {expected}");
    let ours = errors(&found, 1);
    assert!(ours.keys().eq(theirs.keys()), "other adapters");
    for (key, error) in &ours {
        let theirs = theirs[key].as_f64().expect("an error");
        assert!(
            *error < 1.5 * theirs,
            "{key}: away by {error}, PyTorch by {theirs}"
        );
        // Products in f32 would be closer by far.
        assert!(*error > theirs / 20.0, "{key}: {error} and {theirs}");
    }
}

#[test]
fn fault_12_gradients_in_bf16_are_as_near_as_pytorch_s() {
    compare_with_pytorch(FloatDType::BF16, "bfloat16");
}

#[test]
fn fault_12_gradients_in_f16_are_as_near_as_pytorch_s() {
    compare_with_pytorch(FloatDType::F16, "float16");
}

/// A published step has tens of thousands of tokens, and each gradient is so much smaller: bf16 has
/// room for that and f16 has not, which is why training in f16 is refused off the CPU.
#[test]
fn fault_12_the_gradients_of_a_large_step_survive_in_bf16_and_not_in_f16() {
    let factor = 1 << 20;
    let worst = |dtype| {
        let found = errors(&step(dtype, factor).1, factor);
        found.into_values().fold(0.0, f64::max)
    };
    let (bf16, f16) = (worst(FloatDType::BF16), worst(FloatDType::F16));
    assert!(bf16 < 0.06, "{bf16}");
    assert!(f16 > 0.5, "{f16}");
}
