//! Real pretrained weights against their references.
//!
//! The folder that `SQ_LLAVA_REAL_MODELS` names holds `smollm2-135m` (a LLaMA-type model with
//! tokenizer.json and golden.json) and DINOv2 towers in CLIP names (`dinov2s-clip336`,
//! `dinov2s-clip112`, each with golden.safetensors and its picture), and where it is a folder
//! `smollm2-135m-gguf` with the GGUF file that `smollm2-135m` was made from. Without them the
//! tests say so and do nothing: the weights are too large for the repository.
#![allow(clippy::print_stderr)] // A skipped test says so.

#[path = "real_models/reference.rs"]
mod reference;

use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::FloatDType;
use burn_flex::Flex;
use reference::{folder, ids};
use sq_llava_data::TextTokenizer;
use sq_llava_model::Sample;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{LoadOptions, load_model};

#[test]
fn real_llm_tokenizes_and_answers_as_the_reference() {
    let dtypes = [FloatDType::F32, FloatDType::F16];
    reference::llm_tokenizes_and_answers::<Flex>(&dtypes, &Default::default());
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
    reference::towers_see_their_picture::<Flex>(&Default::default());
}
