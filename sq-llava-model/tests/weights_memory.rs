//! Loading takes the model in its target dtype and little more. One test: it watches the process.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stderr)] // measurements are for the reader

#[path = "weights/gguf.rs"]
mod gguf;
mod weights;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::FloatDType;
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::weights::{LoadOptions, SaveOptions, init_random, save_pretrained};
use weights::*;

/// Beside the tensors.
const SLACK: u64 = 24 << 20;

/// Anonymous memory of this process in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Loads and returns the highest growth of the anonymous memory, and the time in seconds.
fn peak(dir: &Path, dtype: FloatDType, quantize: Option<Quantize>) -> (u64, f64) {
    let (before, clock) = (anonymous(), std::time::Instant::now());
    let highest = Arc::new(AtomicU64::new(before));
    let watched = highest.clone();
    let options = LoadOptions {
        dtype,
        quantize,
        progress: Some(Arc::new(move |_, _| {
            watched.fetch_max(anonymous(), Ordering::Relaxed);
        })),
        ..LoadOptions::default()
    };
    let loaded = load(dir, &options);
    highest.fetch_max(anonymous(), Ordering::Relaxed);
    assert!(loaded.report.is_clean(), "{}", loaded.report);
    let seconds = clock.elapsed().as_secs_f64();
    (highest.load(Ordering::Relaxed) - before, seconds)
}

#[test]
fn loading_takes_the_model_and_one_tensor() {
    // First the real ones, where they are: freed memory of the others would hide theirs.
    let real = std::env::var_os("SQ_LLAVA_REAL_MODELS");
    for (root, dtype) in real.iter().flat_map(|root| {
        [FloatDType::F16, FloatDType::BF16, FloatDType::F32].map(|dtype| (root, dtype))
    }) {
        let (growth, seconds) = peak(&Path::new(root).join("smollm2-135m"), dtype, None);
        eprintln!(
            "SmolLM2-135M as {dtype:?}: {} MB, {seconds:.2} s",
            growth / 1_000_000
        );
    }
    let llama = SqLlavaConfig::preset("tiny").unwrap().llama;
    let llama = llama
        .with_hidden_size(512)
        .with_intermediate_size(1536)
        .with_num_hidden_layers(12)
        .with_num_attention_heads(8)
        .with_num_key_value_heads(8)
        .with_vocab_size(8000);
    let config = SqLlavaConfig::new(llama);
    let parameters = config.llama.parameters() as u64;
    let largest = 8000 * 512;
    assert!(parameters * 2 > 3 * SLACK, "a second copy must be seen");

    for stored in [FloatDType::F16, FloatDType::F32] {
        let dir = tempfile::tempdir().unwrap();
        let model = config.init::<B>(&Default::default()).unwrap();
        let model = init_random(model, stored, 0).unwrap();
        let options = SaveOptions {
            dtype: stored,
            ..SaveOptions::default()
        };
        save_pretrained(&model, dir.path(), &options).unwrap();
        drop(model);
        stays_within(dir.path(), &format!("{stored:?}"), parameters + largest);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("llm.gguf");
    std::fs::write(&file, gguf::q8_0_file(&config.llama)).unwrap();
    stays_within(&file, "Q8_0", parameters + largest);
    // Kept in blocks, 34 bytes for 32 numbers.
    let (growth, _) = peak(&file, FloatDType::F16, Some(Quantize::Stored));
    let bound = (parameters + largest) * 34 / 32 + SLACK;
    assert!(
        growth <= bound,
        "in blocks: {growth} bytes are above {bound}"
    );
}

/// Loads in every dtype; `elements` may stand in memory at once.
fn stays_within(path: &Path, stored: &str, elements: u64) {
    for (wanted, size) in [
        (FloatDType::F16, 2),
        (FloatDType::BF16, 2),
        (FloatDType::F32, 4),
    ] {
        let (growth, _) = peak(path, wanted, None);
        let bound = elements * size + SLACK;
        assert!(
            growth <= bound,
            "{stored} as {wanted:?}: {growth} bytes are above {bound}"
        );
    }
}
