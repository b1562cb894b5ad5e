//! What real pretrained weights must give, on any backend.

use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Int, Tensor};
use golden::{Tensors, Value, assert_close};
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::ImageProcessor;
use sq_llava_model::Sample;
use sq_llava_model::config::ProjectorConfig;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{FreshParts, LoadOptions, load_model};

pub fn folder(name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("SQ_LLAVA_REAL_MODELS") else {
        eprintln!("skipped: SQ_LLAVA_REAL_MODELS names no folder of real models");
        return None;
    };
    let folder = PathBuf::from(root).join(name);
    assert!(folder.is_dir(), "{} is not there", folder.display());
    Some(folder)
}

pub fn ids(value: &Value) -> Vec<i64> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_i64().expect("id")).collect()
}

/// Token ids, and greedy ids with weights in each of the dtypes.
pub fn llm_tokenizes_and_answers<B: Backend>(dtypes: &[FloatDType], device: &B::Device) {
    let Some(folder) = folder("smollm2-135m") else {
        return;
    };
    let tokenizer = TextTokenizer::from_dir(&folder).unwrap();
    let cases = golden::json(&folder.join("golden.json"));
    let cases = cases.as_array().expect("cases");
    assert!(!cases.is_empty());
    let mut prompts = vec![];
    let mut expected = vec![];
    for case in cases {
        let prompt = case["prompt"].as_str().expect("prompt");
        let input = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(prompt, false).unwrap(), input);
        let mut greedy = ids(&case["greedy"]);
        // The reference may hold the end token; ours leaves it out.
        greedy.retain(|id| !tokenizer.eos_ids().contains(id));
        prompts.push(input);
        expected.push(greedy);
    }
    let config = GenerateConfig {
        stop_ids: tokenizer.eos_ids().to_vec(),
        ..GenerateConfig::greedy(40)
    };
    let samples: Vec<Sample<'_, B>> = prompts
        .iter()
        .map(|ids| Sample {
            ids,
            images: vec![],
        })
        .collect();
    for &dtype in dtypes {
        let options = LoadOptions {
            dtype,
            ..LoadOptions::default()
        };
        let loaded = load_model::<B>(&folder, &options, device).unwrap();
        // As one batch of unequal prompts, and each alone.
        for group in [samples.len(), 1] {
            for (samples, expected) in samples.chunks(group).zip(expected.chunks(group)) {
                let found = loaded
                    .model
                    .generate(samples, &config, &mut |_, _| ControlFlow::Continue(()))
                    .unwrap();
                for (found, expected) in found.iter().zip(expected) {
                    assert_eq!(&found.ids, expected, "{dtype:?}, {group} at a time");
                }
            }
        }
    }
}

/// Hidden states of the towers.
pub fn towers_see_their_picture<B: Backend>(device: &B::Device) {
    let Some(llm) = folder("smollm2-135m") else {
        return;
    };
    for (name, side) in [("dinov2s-clip336", 336), ("dinov2s-clip112", 112)] {
        let Some(folder) = folder(name) else {
            return;
        };
        let options = LoadOptions {
            vision: Some(folder.clone()),
            fresh: Some(FreshParts {
                projector: ProjectorConfig::Linear { bias: true },
                prototype: None,
            }),
            ..LoadOptions::default()
        };
        let loaded = load_model::<B>(&llm, &options, device).unwrap();
        let tower = loaded.model.vision_tower.expect("a vision tower");
        let picture = folder.join(format!("chelsea{side}.png"));
        let processor = ImageProcessor::from_dir(&folder, Some("crop")).unwrap();
        let pixels = processor.preprocess_path(&picture).unwrap();
        let pixels =
            Tensor::<B, 1>::from_floats(pixels.data.as_slice(), device).reshape([1, 3, side, side]);
        let golden = Tensors::read(&folder.join("golden.safetensors"));
        let states = tower.hidden_states(pixels);
        let rows = golden.i64("rows");
        let rows = Tensor::<B, 1, Int>::from_data(rows.as_slice(), device);

        let features = states[states.len() - 2].clone();
        let found = features.clone().select(1, rows.clone());
        let values = found.into_data().to_vec::<f32>().unwrap();
        assert_close(name, &values, &golden.f64("hidden_-2_rows"), 2e-4);
        let means = features.mean_dim(2).into_data().to_vec::<f32>().unwrap();
        assert_close(name, &means, &golden.f64("hidden_-2_mean"), 2e-4);

        let norm = tower.post_layernorm.as_ref().expect("a last norm");
        let last = norm
            .forward(states[states.len() - 1].clone())
            .select(1, rows);
        let values = last.into_data().to_vec::<f32>().unwrap();
        assert_close(name, &values, &golden.f64("last_rows"), 2e-4);
    }
}
