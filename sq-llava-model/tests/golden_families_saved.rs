//! Language models of today's families, saved and loaded again: adapters in PEFT's format, merged
//! weights, and blocks of int8.

use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use burn_flex::Flex;
use golden::{Tensors, assert_close, relative_error};
use sq_llava_model::config::Family;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::weights::{
    LoadOptions, RunOrigin, SaveOptions, load_model, save_adapters, save_pretrained,
};
use sq_llava_model::{Sample, SqLlava};

/// Folders of language models that are built.
fn cases() -> Vec<PathBuf> {
    let mut found = golden::entries(&golden::families());
    found.retain(|dir| {
        dir.join("lora_adapter").is_dir() && {
            let json = golden::json(&dir.join("outputs.json"));
            json["family"].as_str().and_then(Family::of).is_some()
        }
    });
    assert!(!found.is_empty(), "no language model among the families");
    found
}

fn load(dir: &Path, base: Option<PathBuf>) -> SqLlava<Flex> {
    let options = LoadOptions {
        base,
        ..LoadOptions::default()
    };
    match load_model::<Flex>(dir, &options, &Default::default()) {
        Ok(loaded) => {
            assert!(loaded.report.is_clean(), "{}", loaded.report);
            loaded.model
        }
        Err(error) => panic!("{}: {error}", dir.display()),
    }
}

fn logits(model: &SqLlava<Flex>, ids: &[i64]) -> Vec<f32> {
    let images = vec![];
    let embedded = model.embed(&[Sample { ids, images }]).expect("embeds");
    let found = model.logits(embedded[0].clone());
    found.into_data().to_vec().expect("f32 values")
}

/// The first row of the adapter's batch, which has no padding, and its logits.
fn reference(dir: &Path) -> (Vec<i64>, Vec<f64>) {
    let tensors = Tensors::read(&dir.join("outputs.safetensors"));
    let width = tensors.shape("lora_input_ids")[1];
    assert!(
        tensors.i64("lora_attention_mask")[..width]
            .iter()
            .all(|&mask| mask == 1)
    );
    let vocabulary = tensors.shape("lora_logits")[2];
    let ids = tensors.i64("lora_input_ids")[..width].to_vec();
    (
        ids,
        tensors.f64("lora_logits")[..width * vocabulary].to_vec(),
    )
}

#[test]
fn golden_adapters_leave_as_peft_wrote_them() {
    for dir in cases() {
        let what = golden::file_name(&dir);
        let (base, source) = (dir.join("model"), dir.join("lora_adapter"));
        let model = load(&source, Some(base.clone()));
        let run = tempfile::tempdir().expect("a folder");
        save_adapters(&model, run.path(), &RunOrigin::default()).expect("saved");
        let file = "adapter_model.safetensors";
        let (ours, theirs) = (run.path().join(file), source.join(file));
        let (ours, theirs) = (Tensors::read(&ours), Tensors::read(&theirs));
        assert!(ours.names().eq(theirs.names()), "{what}");
        for name in theirs.names() {
            assert_eq!(ours.f32(name), theirs.f32(name), "{what} {name}");
        }
        let targets = |path: &Path| {
            let config = golden::json(&path.join("adapter_config.json"));
            let list = config["target_modules"].as_array().expect("a list").clone();
            let mut names: Vec<String> = list.iter().map(|name| name.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(targets(run.path()), targets(&source), "{what}");
        let (ids, expected) = reference(&dir);
        let again = load(run.path(), Some(base));
        assert_close(&what, &logits(&again, &ids), &expected, 2e-4);
    }
}

#[test]
fn golden_merged_models_leave_whole() {
    for dir in cases() {
        let what = golden::file_name(&dir);
        let model = load(&dir.join("lora_adapter"), Some(dir.join("model")));
        let (ids, expected) = reference(&dir);
        let merged = model.merge_lora();
        let out = tempfile::tempdir().expect("a folder");
        let options = SaveOptions {
            dtype: FloatDType::F32,
            ..SaveOptions::default()
        };
        save_pretrained(&merged, out.path(), &options).expect("saved");
        assert_close(
            &what,
            &logits(&load(out.path(), None), &ids),
            &expected,
            2e-4,
        );

        // In blocks: near, the same when loaded again, and every linear of a layer is in them.
        let mut blocks = merged.clone();
        blocks
            .language_model
            .quantize(Quantize::Q8)
            .expect("quantised");
        let linears = blocks.language_model.linears();
        assert!(
            linears
                .into_iter()
                .all(|(_, linear)| !linear.weight.is_dense())
        );
        let found = logits(&blocks, &ids);
        let error = relative_error(&found, &expected);
        assert!((1e-5..0.1).contains(&error), "{what}: {error}");
        let out = tempfile::tempdir().expect("a folder");
        save_pretrained(&blocks, out.path(), &options).expect("saved");
        assert_eq!(logits(&load(out.path(), None), &ids), found, "{what}");
    }
}
