//! The processor and its kernels, through the real command.

#![allow(clippy::print_stderr)] // A measured share is said.

use std::process::{Command, Output};

use burn::tensor::FloatDType;
use burn_flex::{Flex, FlexDevice};
use sq_llava::model::processor::{KernelPath, VARIABLE};
use sq_llava::model::{AssistantOptions, Sample};
use sq_llava::{Assistant, LoadOptions};

fn limits(path: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command.args(["bench", "--device", "cpu", "--limits", "--repeat", "1"]);
    match path {
        Some(path) => command.env("SQ_LLAVA_CPU", path),
        None => command.env_remove("SQ_LLAVA_CPU"),
    };
    command.output().expect("the command starts")
}

#[test]
fn an_unknown_path_of_kernels_is_one_clear_error() {
    let output = limits(Some("sse"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "sse is taken");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    let expected = "SQ_LLAVA_CPU is \"sse\"; this processor has portable";
    assert!(error.contains(expected), "{error}");
}

/// Every unit has a speed or a line that says that it is not there.
#[test]
fn limits_name_the_processor_and_leave_nothing_out() {
    let output = limits(Some("portable"));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("processor: "), "{text}");
    assert!(text.contains("kernels: portable (of portable"), "{text}");
    let units = [
        "portable f32",
        "AVX2 f32",
        "AVX-512 f32",
        "AVX-512 bf16",
        "AVX-512 VNNI int8",
        "AMX bf16",
        "AMX int8",
    ];
    for unit in units {
        let line = text.lines().find(|l| l.contains(&format!("limit: {unit}")));
        let line = line.unwrap_or_else(|| panic!("{unit} is left out: {text}"));
        let there = line.contains("GFLOP/s") || line.contains("this processor has none");
        assert!(there, "{line}");
    }
    for read in ["32 MiB", "128 MiB", "512 MiB"] {
        assert!(text.contains(&format!("limit: read of {read}")), "{text}");
    }
}

/// Captions of made-up scenes, as the shipped language model read them by the thousand.
fn captions() -> Vec<String> {
    let words = |number: usize| {
        let pick = |of: &[&str], by: usize| of[number / by % of.len()].to_string();
        let size = pick(&["small", "big"], 1);
        let color = pick(&["red", "green", "blue", "yellow"], 2);
        let shape = pick(&["circle", "square", "triangle"], 3);
        let place = pick(&["top-left", "top", "center", "right", "bottom-left"], 1);
        format!("a {size} {color} {shape} at the {place}")
    };
    let caption = |first: usize| {
        let things: Vec<String> = (0..3).map(|next| words(7 * first + 5 * next)).collect();
        things.join(", ")
    };
    (0..40).map(caption).collect()
}

/// What stands behind each word of the captions, by the shipped language model in a dtype.
fn next_words(dtype: FloatDType) -> Vec<usize> {
    let options = AssistantOptions {
        load: LoadOptions {
            dtype,
            ..LoadOptions::default()
        },
        ..AssistantOptions::default()
    };
    let llm = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/world-towers/llm");
    let assistant = Assistant::<Flex>::load_on(llm, &options, &FlexDevice).expect("loads");
    let mut next = vec![];
    for caption in captions() {
        let ids = assistant.tokenizer.encode(&caption, true).expect("ids");
        let sample = Sample {
            ids: &ids,
            images: vec![],
        };
        let rows = assistant.model.embed(&[sample]).expect("embeddings");
        let logits = assistant.model.logits(rows[0].clone());
        let best = logits.argmax(1).into_data();
        next.extend(best.iter::<i64>().map(|id| id as usize));
    }
    next
}

/// PyTorch 2.15 in bf16 has 99 % of these words in common with itself in f32 (transformers 5.24).
const AGREEMENT: f64 = 0.97;

/// `--dtype auto` takes bf16 where the processor multiplies it: the model says the same.
#[test]
fn greedy_words_in_bf16() {
    let (full, brain) = (next_words(FloatDType::F32), next_words(FloatDType::BF16));
    let same = full.iter().zip(&brain).filter(|(a, b)| a == b).count();
    let share = same as f64 / full.len() as f64;
    eprintln!("{same} of {} words are the same", full.len());
    assert!(full.len() > 500 && share >= AGREEMENT, "{share}");
}

#[test]
fn greedy_words_on_every_path_that_multiplies_bf16() {
    for path in KernelPath::ALL {
        if path.multiplies_bf16() && path.is_available() {
            golden::again(VARIABLE, path.name(), "greedy_words_in_bf16");
        }
    }
}
