//! Real pretrained weights against their references.
//!
//! The folder that `SQ_LLAVA_REAL_MODELS` names holds `smollm2-135m` (a LLaMA-type model with
//! tokenizer.json and golden.json) and DINOv2 towers in CLIP names (`dinov2s-clip336`,
//! `dinov2s-clip112`, each with golden.safetensors and its picture), and where it is a folder
//! `smollm2-135m-gguf` with the GGUF file that `smollm2-135m` was made from. Without them the
//! tests say so and do nothing: the weights are too large for the repository.
#![allow(clippy::print_stderr)] // A skipped test says so.

use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::{FloatDType, Int, Tensor};
use burn_flex::Flex;
use golden::{Tensors, Value, assert_close};
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::ImageProcessor;
use sq_llava_model::Sample;
use sq_llava_model::config::ProjectorConfig;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{FreshParts, LoadOptions, load_model};

fn folder(name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("SQ_LLAVA_REAL_MODELS") else {
        eprintln!("skipped: SQ_LLAVA_REAL_MODELS names no folder of real models");
        return None;
    };
    let folder = PathBuf::from(root).join(name);
    assert!(folder.is_dir(), "{} is not there", folder.display());
    Some(folder)
}

fn ids(value: &Value) -> Vec<i64> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_i64().expect("id")).collect()
}

#[test]
fn real_llm_tokenizes_and_answers_as_the_reference() {
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
    let samples: Vec<Sample<'_, Flex>> = prompts
        .iter()
        .map(|ids| Sample {
            ids,
            images: vec![],
        })
        .collect();
    for dtype in [FloatDType::F32, FloatDType::F16] {
        let options = LoadOptions {
            dtype,
            ..LoadOptions::default()
        };
        let loaded = load_model::<Flex>(&folder, &options, &Default::default()).unwrap();
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

#[test]
fn real_gguf_tokenizes_and_answers_as_the_reference() {
    let Some(reference) = folder("smollm2-135m") else {
        return;
    };
    let gguf = reference.with_file_name("smollm2-135m-gguf");
    if !gguf.is_dir() {
        eprintln!("skipped: no folder smollm2-135m-gguf");
        return;
    }
    let options = LoadOptions::default();
    let loaded = load_model::<Flex>(&gguf, &options, &Default::default()).unwrap();
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    let tokenizer = TextTokenizer::from_dir(loaded.files.tokenizer.unwrap()).unwrap();
    let files = TextTokenizer::from_dir(&reference).unwrap();
    assert_eq!(tokenizer.len(), files.len());
    assert_eq!(tokenizer.eos_ids(), files.eos_ids());
    assert_eq!(tokenizer.adds_bos(), files.adds_bos());
    // Every source and text file of the repository is a text.
    let mut texts = vec![];
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")];
    while let Some(folder) = folders.pop() {
        for path in golden::entries(&folder) {
            let name = golden::file_name(&path);
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path)
                && text.len() < 60_000
            {
                texts.push(text);
            }
        }
    }
    assert!(texts.len() > 100);
    for text in &texts {
        let found = tokenizer.encode(text, true).unwrap();
        assert!(found == files.encode(text, true).unwrap(), "{text}");
    }
    for case in golden::json(&reference.join("golden.json"))
        .as_array()
        .expect("cases")
    {
        let prompt = tokenizer
            .encode(case["prompt"].as_str().expect("prompt"), false)
            .unwrap();
        assert_eq!(prompt, ids(&case["ids"]));
        let mut greedy = ids(&case["greedy"]);
        greedy.retain(|id| !tokenizer.eos_ids().contains(id));
        let config = GenerateConfig {
            stop_ids: tokenizer.eos_ids().to_vec(),
            ..GenerateConfig::greedy(40)
        };
        let sample = Sample {
            ids: &prompt,
            images: vec![],
        };
        let found = loaded
            .model
            .generate(&[sample], &config, &mut |_, _| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(found[0].ids, greedy);
    }
}

#[test]
fn real_towers_see_their_picture_as_the_reference() {
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
        let loaded = load_model::<Flex>(&llm, &options, &Default::default()).unwrap();
        let tower = loaded.model.vision_tower.expect("a vision tower");
        let picture = folder.join(format!("chelsea{side}.png"));
        let processor = ImageProcessor::from_dir(&folder, Some("crop")).unwrap();
        let pixels = processor.preprocess_path(&picture).unwrap();
        let pixels = Tensor::<Flex, 1>::from_floats(pixels.data.as_slice(), &Default::default())
            .reshape([1, 3, side, side]);
        let golden = Tensors::read(&folder.join("golden.safetensors"));
        let states = tower.hidden_states(pixels);
        let rows = golden.i64("rows");
        let rows = Tensor::<Flex, 1, Int>::from_data(rows.as_slice(), &Default::default());

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
