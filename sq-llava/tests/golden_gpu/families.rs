//! Today's families: decoders, a vision tower and a whole model against transformers.

use std::path::PathBuf;

use golden::{Tensors, Value, assert_close};
use sq_llava_model::config::ProjectorConfig;
use sq_llava_model::weights::{FreshParts, LoadOptions, load_model};
use sq_llava_model::{Sample, SqLlava};

use super::tensors::{float, values};
use crate::{B, Device, device};

/// A case and its reference.
struct Case {
    dir: PathBuf,
    json: Value,
    tensors: Tensors,
}

/// The first case of a kind that fits.
fn case(kind: &str, fits: impl Fn(&Value) -> bool) -> Case {
    for dir in golden::entries(&golden::families()) {
        let outputs = dir.join("outputs.json");
        if !outputs.is_file() {
            continue;
        }
        let json = golden::json(&outputs);
        if json["kind"] == kind && fits(&json) {
            let tensors = Tensors::read(&dir.join("outputs.safetensors"));
            return Case { dir, json, tensors };
        }
    }
    panic!("no case of kind {kind} that fits");
}

fn decoder_of(family: &str) -> Case {
    case("llm", |json| json["family"] == family)
}

fn load(case: &Case, options: &LoadOptions, device: &Device) -> SqLlava<B> {
    match load_model::<B>(&case.dir.join("model"), options, device) {
        Ok(loaded) => loaded.model,
        Err(error) => panic!("{}: {error}", case.dir.display()),
    }
}

/// Gemma 2 has windows and soft limits, Phi-3 joined matrices and heads that rotate in part.
#[test]
fn golden_gpu_decoders_of_families() {
    let Some(device) = device() else {
        return;
    };
    for family in ["qwen3", "gemma2", "phi3"] {
        let case = decoder_of(family);
        let model = load(&case, &LoadOptions::default(), &device);
        let (ids, images) = (case.tensors.i64("input_ids"), vec![]);
        let sample = Sample { ids: &ids, images };
        let embedded = model.embed(&[sample]).expect("embeds").remove(0);
        let found = values(model.logits(embedded));
        assert_close(family, &found, &case.tensors.f64("logits"), 2e-4);
    }
}

#[test]
fn golden_gpu_tower_of_families() {
    let Some(device) = device() else {
        return;
    };
    let tower = case("vision", |json| {
        json["model_type_in_config"] == "clip_vision_model"
    });
    let options = LoadOptions {
        vision: Some(tower.dir.join("model")),
        fresh: Some(FreshParts {
            projector: ProjectorConfig::Linear { bias: true },
            prototype: None,
        }),
        ..LoadOptions::default()
    };
    let model = load(&decoder_of("qwen3"), &options, &device);
    let pixels = float::<B, 4>(&tower.tensors, "pixel_values", &device);
    let found = values(model.vision_features(pixels).expect("features"));
    let reference = tower.tensors.f64("llava_patch_features_-2");
    assert_close("features", &found, &reference, 2e-4);
}

#[test]
fn golden_gpu_whole_model_of_families() {
    let Some(device) = device() else {
        return;
    };
    let case = case("vlm", |json| {
        json["family"] == "llava"
            && json["vision"] == "clip_vision_model"
            && json["text"] == "qwen2"
    });
    let model = load(&case, &LoadOptions::default(), &device);
    let prompts = case.json["prompts"].as_array().expect("prompts");
    let seen = |prompt: &&Value| {
        let name = prompt["name"].as_str().unwrap_or_default();
        case.tensors.contains(&format!("{name}.pixel_values"))
    };
    let prompt = prompts.iter().find(seen).expect("a prompt with a picture");
    let name = prompt["name"].as_str().unwrap_or_default();
    let key = |part: &str| format!("{name}.{part}");
    let pixels = float::<B, 4>(&case.tensors, &key("pixel_values"), &device);
    let images = model.encode_images(pixels).expect("image tokens");
    let ids = case.tensors.i64(&key("input_ids"));
    let sample = Sample { ids: &ids, images };
    let embedded = model.embed(&[sample]).expect("embeds").remove(0);
    let found = values(model.logits(embedded));
    let vocabulary = model.language_model.vocabulary();
    let rows = case.tensors.i64(&key("logits_rows"));
    let row = |&row: &i64| &found[row as usize * vocabulary..][..vocabulary];
    let found: Vec<f32> = rows.iter().flat_map(row).copied().collect();
    assert_close(name, &found, &case.tensors.f64(&key("logits")), 2e-4);
}
