//! Adapters of both parts of whole models, of SigLIP and DINOv2 too, against peft. The cases are
//! the repository's own (`lora_llava_*`).

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use golden::{Tensors, assert_close};
use sq_llava_model::ops::cross_entropy::token_losses;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::weights::{RunOrigin, save_adapters};
use sq_llava_model::{Sample, SqLlava};

use super::{Case, all_in, load, text, values};

fn cases() -> Vec<Case> {
    let found = all_in(&golden::repository().join("families"), "vlm_lora");
    assert!(!found.is_empty(), "no adapters of whole models");
    found
}

fn adapted<B: Backend>(case: &Case) -> SqLlava<B> {
    load(&case.dir.join("lora_adapter"), Some(case.dir.join("model")))
}

/// Logits of the case's prompt. `[tokens, vocabulary]`
fn logits<B: Backend>(case: &Case, model: &SqLlava<B>) -> Tensor<B, 2> {
    let shape: [usize; 4] = case.tensors.shape("pixel_values").try_into().expect("four");
    let data = TensorData::new(case.tensors.f32("pixel_values"), shape);
    let images = model
        .encode_images(Tensor::from_data(data, &Default::default()))
        .expect("features");
    let ids = case.ids("input_ids");
    let sample = Sample { ids: &ids, images };
    model.logits(model.embed(&[sample]).expect("embeds").remove(0))
}

#[test]
fn golden_whole_models_with_adapters_beside_and_merged() {
    for case in cases() {
        let close = |kind: &str, model: &SqLlava<Flex>, name: &str| {
            let what = format!("{} {kind}", case.name());
            let reference = case.tensors.f64(name);
            assert_close(&what, &values(logits(&case, model)), &reference, 2e-4);
        };
        close("without", &load(&case.dir.join("model"), None), "logits");
        let model = adapted::<Flex>(&case);
        close("beside", &model, "lora_logits");
        close("merged", &model.clone().merge_lora(), "lora_logits");

        // Saved by us, under the names that PEFT has.
        let dir = tempfile::tempdir().expect("a folder");
        save_adapters(&model, dir.path(), &RunOrigin::default()).expect("saved");
        let mut again = load::<Flex>(dir.path(), Some(case.dir.join("model")));
        // A run has LLaVA's own id for pictures; the case has its placeholders.
        again.config.image_token_index = model.config.image_token_index;
        close("saved", &again, "lora_logits");
        let tail = |name: &str| {
            name.split("vision_tower.")
                .nth(1)
                .map(|n| n.replace("vision_model.", ""))
        };
        let names = |path: &Path| -> Vec<String> {
            let mut names: Vec<_> = Tensors::read(path).names().filter_map(tail).collect();
            names.sort();
            names
        };
        let theirs = names(&case.dir.join("lora_adapter/adapter_model.safetensors"));
        assert!(!theirs.is_empty());
        let ours = names(&dir.path().join("Vit-lora/adapter_model.safetensors"));
        assert_eq!(ours, theirs, "{}", case.name());
    }
}

/// PEFT's path of a linear in the model.
fn peft_path(case: &Case, path: &str) -> String {
    let Some(inner) = path.strip_prefix("vision_tower.") else {
        return path.replace("language_model.model.", "model.language_model.");
    };
    let inner = match text(&case.json, "vision") {
        "dinov2" => inner
            .replace("encoder.layers.", "encoder.layer.")
            .replace("self_attn.out_proj", "attention.o_proj")
            .replace("self_attn.", "attention.")
            .replace("mlp.fc2", "mlp.down_proj"),
        _ => inner.to_owned(),
    };
    format!("model.vision_tower.{inner}")
}

#[test]
fn golden_gradients_of_adapters_in_both_parts() {
    type Ad = Autodiff<Flex>;
    for case in cases() {
        let model = adapted::<Ad>(&case);
        let labels = case.ids("labels");
        let learnt: Vec<usize> = (1..labels.len()).filter(|&t| labels[t] != -100).collect();
        let places: Vec<i64> = learnt.iter().map(|&t| t as i64 - 1).collect();
        let targets: Vec<i64> = learnt.iter().map(|&t| labels[t]).collect();
        let places = TensorData::new(places, [learnt.len()]);
        let places = Tensor::<Ad, 1, Int>::from_data(places, &Default::default());
        let loss = token_losses(logits(&case, &model).select(0, places), &targets).mean();
        let expected = case.json["loss"].as_f64().expect("a loss");
        let found = f64::from(loss.clone().into_scalar());
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "{found} {expected}"
        );
        let grads = loss.backward();
        let mut compared = 0;
        for (path, linear) in model.linears() {
            let Some(lora) = &linear.lora else { continue };
            for (part, param) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                let path = peft_path(&case, &path);
                let key = format!("lora_grad.base_model.model.{path}.{part}.weight");
                if !case.tensors.contains(&key) {
                    // Behind the layer whose tokens are features.
                    assert!(param.val().grad(&grads).is_none(), "{key}");
                    continue;
                }
                let grad = param.val().grad(&grads).expect("a gradient");
                let reference = case.tensors.f64(&key);
                assert_close(
                    &format!("{} {key}", case.name()),
                    &values(grad),
                    &reference,
                    1e-4,
                );
                compared += 1;
            }
        }
        let all = case
            .tensors
            .names()
            .filter(|name| name.starts_with("lora_grad."));
        assert_eq!(compared, all.count(), "{}", case.name());
    }
}

/// New adapters go to linears by our names or by those of the tower's own files.
#[test]
fn golden_new_adapters_by_either_name() {
    for case in cases() {
        let model = load::<Flex>(&case.dir.join("model"), None);
        let vision = model.config.vision.clone().expect("a tower");
        let mut lora = LoraConfig::vision(2, 4.0, 0.0);
        let paths = |lora: &LoraConfig| -> Vec<String> {
            let model = model.clone().with_vision_lora(lora);
            let adapted = model.linears().filter(|(_, linear)| linear.lora.is_some());
            let count: usize = adapted
                .map(|(_, linear)| {
                    linear.lora.as_ref().map_or(0, |l| {
                        l.a.shape().num_elements() + l.b.shape().num_elements()
                    })
                })
                .sum();
            assert_eq!(count, vision.lora_parameters(lora), "{}", case.name());
            let adapted = model.linears().filter(|(_, linear)| linear.lora.is_some());
            adapted.map(|(path, _)| path).collect()
        };
        let all = paths(&lora);
        assert!(!all.is_empty());
        let names = lora.target_modules.iter().map(|name| {
            let path = format!(
                "encoder.layers.0.{}.{name}",
                if name.starts_with("fc") {
                    "mlp"
                } else {
                    "self_attn"
                }
            );
            vision
                .file_name(&path)
                .rsplit('.')
                .next()
                .expect("a name")
                .to_owned()
        });
        lora.target_modules = names.collect();
        assert_eq!(paths(&lora), all, "{}", case.name());
    }
}
