//! Rotary scaling of every kind against transformers (`scripts/rope_fixtures.py`), and Phi-3's,
//! whose cache is computed anew where a text grows beyond its first length.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use golden::{Tensors, Value, assert_close};
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{LoadOptions, load_model};
use sq_llava_model::{Sample, SqLlava};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rope")
}

fn load(dir: &Path) -> SqLlava<Flex> {
    match load_model::<Flex>(dir, &LoadOptions::default(), &Default::default()) {
        Ok(loaded) => loaded.model,
        Err(error) => panic!("{}: {error}", dir.display()),
    }
}

/// The fixtures' weights under a configuration.
fn with_config(config: &Value) -> SqLlava<Flex> {
    let dir = tempfile::tempdir().expect("a folder");
    let weights = "model.safetensors";
    std::fs::copy(fixtures().join(weights), dir.path().join(weights)).expect("copied");
    let mut config = config.clone();
    config["model_type"] = "llama".into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
    load(dir.path())
}

fn integers(list: &Value) -> Vec<i64> {
    let list = list.as_array().expect("a list");
    list.iter().map(|id| id.as_i64().expect("an id")).collect()
}

/// Logits of rows of a text. `rows · vocabulary`
fn logits(model: &SqLlava<Flex>, ids: &[i64], rows: &[i64]) -> Vec<f32> {
    let images = vec![];
    let embedded = model.embed(&[Sample { ids, images }]).expect("embeds");
    let rows = TensorData::new(rows.to_vec(), [rows.len()]);
    let rows = Tensor::<Flex, 1, Int>::from_data(rows, &Default::default());
    let found = model.logits(embedded[0].clone()).select(0, rows);
    found.into_data().to_vec().expect("f32 values")
}

fn sample(ids: &[i64]) -> Sample<'_, Flex> {
    Sample {
        ids,
        images: vec![],
    }
}

fn greedy(model: &SqLlava<Flex>, prompts: &[&[i64]], tokens: usize) -> Vec<Vec<i64>> {
    let samples: Vec<_> = prompts.iter().map(|ids| sample(ids)).collect();
    let config = GenerateConfig::greedy(tokens);
    let found = model.generate(&samples, &config, &mut |_, _| ControlFlow::Continue(()));
    let found = found.expect("answers").into_iter();
    found.map(|answer| answer.ids).collect()
}

#[test]
fn golden_every_kind_of_scaling() {
    let told = golden::json(&fixtures().join("cases.json"));
    let (ids, rows) = (integers(&told["input_ids"]), integers(&told["rows"]));
    let short = integers(&told["short"]);
    let cases = told["cases"].as_object().expect("cases");
    assert!(cases.len() >= 10);
    for (name, case) in cases {
        let reference: Vec<f64> = case["logits"]
            .as_array()
            .expect("rows")
            .iter()
            .flat_map(|row| row.as_array().expect("a row"))
            .map(|value| value.as_f64().expect("a number"))
            .collect();
        let expected = integers(&case["greedy"]);
        let given = case["configs"].as_array().expect("configurations");
        let mut first = None;
        for config in given {
            let model = with_config(config);
            assert_close(name, &logits(&model, &ids, &rows), &reference, 2e-4);
            let found = greedy(&model, &[&short], expected.len());
            assert_eq!(found[0], expected, "{name}");
            // What we write is the same.
            let written = with_config(&model.config.to_hf());
            assert_eq!(written.config.llama, model.config.llama, "{name}");
            let other = first.get_or_insert_with(|| model.config.llama.clone());
            assert_eq!(*other, model.config.llama, "{name} of transformers 4");
        }
    }
}

/// Cases of the families whose short prompt grows beyond the length at which frequencies change.
fn crossing() -> Vec<(PathBuf, Value, Tensors)> {
    let mut found = Vec::new();
    for dir in golden::entries(&golden::families()) {
        let outputs = dir.join("outputs.safetensors");
        if !dir.join("lora_adapter").is_dir() || !outputs.is_file() {
            continue;
        }
        let tensors = Tensors::read(&outputs);
        if tensors.contains("short_input_ids") {
            found.push((
                dir.clone(),
                golden::json(&dir.join("outputs.json")),
                tensors,
            ));
        }
    }
    assert!(!found.is_empty(), "no case with a short prompt");
    found
}

#[test]
fn golden_short_prompts_and_the_crossing() {
    for (dir, json, tensors) in crossing() {
        let what = golden::file_name(&dir);
        let model = load(&dir.join("model"));
        let short = tensors.i64("short_input_ids");
        let rows: Vec<i64> = (0..short.len() as i64).collect();
        let reference = tensors.f64("short_logits");
        assert_close(&what, &logits(&model, &short, &rows), &reference, 2e-4);
        let expected = integers(&json["greedy"]["short_prompt"]["ids"]);
        assert_eq!(
            greedy(&model, &[&short], expected.len())[0],
            expected,
            "{what}"
        );

        // Beside a longer one, that is beyond from the start, and a shorter one that crosses later.
        let long = tensors.i64("input_ids");
        let prompts = [&short[..], &long[..], &short[..6]];
        let alone = prompts.map(|ids| greedy(&model, &[ids], 20).remove(0));
        assert_eq!(greedy(&model, &prompts, 20), alone, "{what} in a batch");
        assert_eq!(alone[0], expected[..20], "{what}");
    }
}

/// A prefix that is kept, added to and continued several times crosses as a whole prompt does.
#[test]
fn golden_a_kept_prefix_crosses_too() {
    for (dir, json, tensors) in crossing() {
        let what = golden::file_name(&dir);
        let model = load(&dir.join("model"));
        let short = tensors.i64("short_input_ids");
        let expected = integers(&json["greedy"]["short_prompt"]["ids"]);
        let config = GenerateConfig::greedy(expected.len());
        let mut go_on = |_, _| ControlFlow::Continue(());
        let mut prefix = model.prefix(&sample(&short[..7])).expect("a prefix");
        model.extend(&mut prefix, &short[7..]).expect("more of it");
        let found = model.continue_prefix(&prefix, 2, &config, &mut go_on);
        for answer in found.expect("answers") {
            assert_eq!(answer.ids, expected, "{what}");
        }
        // The crossing inside what is added.
        let longer = [&short[..], &expected[..10]].concat();
        let mut prefix = model.prefix(&sample(&short)).expect("a prefix");
        model
            .extend(&mut prefix, &expected[..10])
            .expect("more of it");
        let config = GenerateConfig::greedy(10);
        let found = model.continue_prefix(&prefix, 1, &config, &mut go_on);
        let whole = greedy(&model, &[&longer], 10);
        assert_eq!(found.expect("answers")[0].ids, whole[0], "{what}");
        assert_eq!(whole[0], expected[10..20], "{what}");
    }
}
