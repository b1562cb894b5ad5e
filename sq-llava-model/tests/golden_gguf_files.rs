//! Files that are written for llama.cpp: read again they are the models of transformers' numbers.

#![allow(clippy::print_stderr)] // What llama.cpp cannot compute is named.

mod weights;

use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};
use golden::{Tensors, Value, assert_close};
use serde_json::json;
use sq_llava_data::TextTokenizer;
use sq_llava_data::gguf::{GgufHeader, GgufValue};
use sq_llava_data::image::{ImageProcessor, PatchMerge};
use sq_llava_model::config::{Family, ProjectorConfig, SqLlavaConfig};
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::language::llama::NewTokens;
use sq_llava_model::weights::{
    GgufOptions, GgufType, LoadOptions, SavedGguf, mmproj_config, save_gguf,
};
use sq_llava_model::{Sample, SqLlava};
use weights::*;

/// Cases of a kind that load.
fn cases(kind: &str) -> Vec<(PathBuf, Value, SqLlava<B>)> {
    let mut found = Vec::new();
    for dir in golden::entries(&golden::families()) {
        let outputs = dir.join("outputs.json");
        if outputs.is_file() && golden::json(&outputs)["kind"] == kind {
            // What is not built is refused, which other tests look at.
            if let Ok(loaded) = try_load(&dir.join("model"), &LoadOptions::default()) {
                found.push((dir, golden::json(&outputs), loaded.model));
            }
        }
    }
    assert!(!found.is_empty(), "no case of {kind}");
    found
}

/// A tokenizer of a few letters.
fn letters() -> TextTokenizer {
    let dir = tempfile::tempdir().unwrap();
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [], "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    TextTokenizer::from_dir(dir.path()).unwrap()
}

struct Saving<'a> {
    tokenizer: &'a TextTokenizer,
    processor: Option<&'a ImageProcessor>,
    matrices: GgufType,
    context: Option<usize>,
}

impl<'a> Saving<'a> {
    /// A language model in f32, with its whole context.
    fn whole(tokenizer: &'a TextTokenizer) -> Self {
        Self {
            tokenizer,
            processor: None,
            matrices: GgufType::F32,
            context: None,
        }
    }

    fn save(&self, model: &SqLlava<B>, dir: &Path) -> Result<SavedGguf, String> {
        let options = GgufOptions {
            tokenizer: self.tokenizer,
            chat_template: None,
            processor: self.processor,
            matrices: self.matrices,
            context: self.context,
            name: "tiny",
        };
        save_gguf(model, dir, &options).map_err(|error| error.to_string())
    }
}

fn logits(model: &SqLlava<B>, ids: &[i64]) -> Vec<f32> {
    let sample = Sample {
        ids,
        images: vec![],
    };
    let embeddings = model.embed(&[sample]).unwrap().remove(0);
    model.logits(embeddings).into_data().to_vec().unwrap()
}

/// Each family at f32. What llama.cpp cannot compute is refused, and then written as far as it can:
/// in a context that no window leaves; with all layers rotating, against our own numbers.
#[test]
fn golden_language_models_are_read_as_they_were_written() {
    let tokenizer = letters();
    let mut families = Vec::new();
    for (dir, _, model) in cases("llm") {
        let what = golden::file_name(&dir);
        let reference = Tensors::read(&dir.join("outputs.safetensors"));
        let mut ids = reference.i64("input_ids");
        let mut expected = reference.f64("logits");
        let mut saving = Saving::whole(&tokenizer);
        let out = tempfile::tempdir().unwrap();
        let twin = tempfile::tempdir().unwrap();
        let mut model = model;
        let mut saved = saving.save(&model, out.path());
        if let Err(message) = &saved {
            assert!(message.contains("llama.cpp"), "{what}: {message}");
            if let Some(window) = &model.config.llama.sliding_window {
                let tokens = window.tokens;
                assert!(
                    message.contains(&format!("--context {tokens}")),
                    "{what}: {message}"
                );
                saving.context = Some(tokens);
                expected.truncate(expected.len() / ids.len() * tokens);
                ids.truncate(tokens);
            } else {
                assert!(message.contains("no_rope_layers"), "{what}: {message}");
                model = rotating_everywhere(&dir.join("model"), twin.path());
                expected = logits(&model, &ids).into_iter().map(f64::from).collect();
            }
            saved = saving.save(&model, out.path());
        }
        let saved = saved.unwrap_or_else(|message| panic!("{what}: {message}"));
        let loaded = load(&saved.files[0], &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{what}: {}", loaded.report);
        assert_close(&what, &logits(&loaded.model, &ids), &expected, 2e-4);
        families.push(model.config.llama.family);
    }
    for family in [Family::Llama, Family::Qwen2, Family::Gemma3Text] {
        let there = families.contains(&family);
        assert!(there || std::env::var_os("SQ_LLAVA_GOLDEN_FAMILIES").is_some());
    }
}

/// The same weights with a `config.json` in which all layers rotate.
fn rotating_everywhere(source: &Path, dir: &Path) -> SqLlava<B> {
    for path in golden::entries(source) {
        std::fs::copy(&path, dir.join(golden::file_name(&path))).unwrap();
    }
    let mut config = golden::json(&source.join("config.json"));
    let layers = config["num_hidden_layers"].as_u64().expect("a number");
    // llama.cpp's fourth layer never does.
    let rotates = (0..layers).map(|layer| u64::from(layer % 4 != 3));
    config["no_rope_layers"] = rotates.collect();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    load(dir, &LoadOptions::default()).model
}

/// Every kind of rotary scaling that llama.cpp computes, against transformers' logits; the others are
/// refused by name.
#[test]
fn golden_rotary_scaling_is_read_as_it_was_written() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rope");
    let told = golden::json(&fixtures.join("cases.json"));
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let integers = |value: &Value| -> Vec<i64> {
        let found = list(value).into_iter().map(|n| n.as_i64().expect("an id"));
        found.collect()
    };
    let (ids, rows) = (integers(&told["input_ids"]), integers(&told["rows"]));
    let tokenizer = letters();
    let mut written = Vec::new();
    for (name, case) in told["cases"].as_object().expect("cases") {
        let dir = tempfile::tempdir().unwrap();
        let mut config = case["configs"][0].clone();
        config["model_type"] = "llama".into();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let weights = "model.safetensors";
        std::fs::copy(fixtures.join(weights), dir.path().join(weights)).unwrap();
        let model = load(dir.path(), &LoadOptions::default()).model;
        let saving = Saving::whole(&tokenizer);
        let out = tempfile::tempdir().unwrap();
        let saved = match saving.save(&model, out.path()) {
            Ok(saved) => saved,
            Err(message) => {
                assert!(message.contains("rope scaling"), "{name}: {message}");
                continue;
            }
        };
        let loaded = load(&saved.files[0], &LoadOptions::default());
        assert!(loaded.report.is_clean(), "{name}: {}", loaded.report);
        let all = logits(&loaded.model, &ids);
        let width = all.len() / ids.len();
        let found = rows
            .iter()
            .flat_map(|&row| &all[row as usize * width..][..width]);
        let found: Vec<f32> = found.copied().collect();
        let reference = list(&case["logits"]);
        let reference = reference.iter().flat_map(&list);
        let reference: Vec<f64> = reference.map(|x| x.as_f64().expect("a number")).collect();
        assert_close(name, &found, &reference, 2e-4);
        written.push(name.as_str());
    }
    // The others have ends of the ramp that llama.cpp does not read.
    for name in [
        "linear",
        "llama3",
        "yarn_whole_context",
        "yarn_attention_factor",
    ] {
        assert!(written.contains(&name), "{name}: {written:?}");
    }
    assert!(!written.contains(&"yarn") && !written.contains(&"yarn_magnitudes"));
}

/// LLaVA-NeXT: the grid, the newline and what is made of a picture are those that were written.
#[test]
fn golden_models_with_tiles_are_read_as_they_were_written() {
    let pictures = golden::entries(&golden::families().join("images"));
    let mut compared = 0;
    for (dir, json, model) in cases("vlm") {
        let what = golden::file_name(&dir);
        let folder = dir.join("model");
        let tokenizer = TextTokenizer::from_dir(&folder).unwrap();
        let processor = model.config.image_processor(&folder).unwrap();
        let processor = ImageProcessor::new(processor).unwrap();
        let saving = Saving {
            processor: Some(&processor),
            ..Saving::whole(&tokenizer)
        };
        let out = tempfile::tempdir().unwrap();
        if json["family"] == "llava_onevision" {
            let message = saving.save(&model, out.path()).unwrap_err();
            assert!(message.contains("anyres_max_"), "{what}: {message}");
        }
        if json["family"] != "llava_next" {
            continue;
        }
        for merge in [PatchMerge::SpatialUnpad, PatchMerge::Flat] {
            let mut model = model.clone();
            let mut tiling = model.config.anyres.clone().expect("tiles");
            tiling.merge = merge;
            model.set_tiling(Some(tiling.clone()), 1);
            let out = tempfile::tempdir().unwrap();
            let saved = match saving.save(&model, out.path()) {
                Ok(saved) => saved,
                Err(message) => {
                    assert!(message.contains("--context"), "{what}: {message}");
                    continue;
                }
            };
            let notes = saved.notes.join("; ");
            assert_eq!(
                notes.contains("spatial_unpad"),
                merge != PatchMerge::Flat,
                "{notes}"
            );
            let options = LoadOptions {
                mmproj: Some(saved.files[1].clone()),
                ..LoadOptions::default()
            };
            let loaded = load(&saved.files[0], &options);
            assert!(loaded.report.is_clean(), "{what}: {}", loaded.report);
            assert_eq!(loaded.model.config.anyres.as_ref(), Some(&tiling));
            let alone = mmproj_config(&saved.files[1], false).unwrap().expect("one");
            assert_eq!(alone.anyres, Some(tiling.clone()));
            assert_eq!(alone.projector, model.config.projector);
            assert_eq!(alone.llama.hidden_size, model.config.llama.hidden_size);
            assert!(mmproj_config(&saved.files[0], false).unwrap().is_none());
            let config = processor.config().clone().with_tiling(tiling).unwrap();
            let theirs = ImageProcessor::new(config).unwrap();
            let ours = ImageProcessor::new(loaded.files.pictures.expect("pictures")).unwrap();
            for picture in &pictures {
                let image = theirs.open(picture).unwrap();
                let [found, expected] =
                    [(&loaded.model, &ours), (&model, &theirs)].map(|(model, processor)| {
                        let prepared = processor.prepare(&image, 1);
                        let tokens = model.encode_prepared(&[&prepared]).unwrap().remove(0);
                        tokens.into_data().to_vec::<f32>().unwrap()
                    });
                let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
                assert_close(&what, &found, &expected, 1e-5);
            }
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn golden_whole_models_are_read_as_they_were_written() {
    let mut compared = 0;
    for (dir, json, model) in cases("vlm") {
        let what = golden::file_name(&dir);
        if model.config.anyres.is_some() {
            continue;
        }
        let folder = dir.join("model");
        let tokenizer = TextTokenizer::from_dir(&folder).unwrap();
        let processor = ImageProcessor::from_dir(&folder, None).unwrap();
        let saving = Saving {
            processor: Some(&processor),
            ..Saving::whole(&tokenizer)
        };
        let out = tempfile::tempdir().unwrap();
        let saved = match saving.save(&model, out.path()) {
            Ok(saved) => saved,
            Err(message) => {
                eprintln!("{what}: {message}");
                assert!(message.contains("llama.cpp"), "{what}: {message}");
                continue;
            }
        };
        let options = LoadOptions {
            mmproj: Some(saved.files[1].clone()),
            ..LoadOptions::default()
        };
        let loaded = load(&saved.files[0], &options);
        assert!(loaded.report.is_clean(), "{what}: {}", loaded.report);
        let pictures = loaded.files.pictures.expect("how pictures are prepared");
        let own = processor.config();
        let floats = |three: [f64; 3]| three.map(|x| x as f32);
        assert_eq!(floats(pictures.image_mean), floats(own.image_mean));
        assert_eq!(floats(pictures.image_std), floats(own.image_std));
        assert_eq!(pictures.aspect, own.aspect);
        for prompt in json["prompts"].as_array().expect("prompts") {
            answers(&dir, &loaded.model, prompt);
        }
        compared += 1;
    }
    assert!(compared > 0);
}

/// Logits and greedy ids of a prompt are transformers'.
fn answers(dir: &Path, model: &SqLlava<B>, prompt: &Value) {
    let tensors = Tensors::read(&dir.join("outputs.safetensors"));
    let name = prompt["name"].as_str().expect("a name");
    let what = format!("{} {name}", golden::file_name(dir));
    let key = |part: &str| format!("{name}.{part}");
    let mut images = Vec::new();
    if tensors.contains(&key("pixel_values")) {
        let shape: [usize; 4] = tensors.shape(&key("pixel_values")).try_into().unwrap();
        let data = TensorData::new(tensors.f32(&key("pixel_values")), shape);
        let pixels = Tensor::<B, 4>::from_data(data, &Default::default());
        images = model.encode_images(pixels).expect("features");
    }
    // A GGUF file does not name the placeholder of transformers' processor.
    let placeholder = golden::json(&dir.join("model/config.json"))["image_token_index"].as_i64();
    let ids = tensors.i64(&key("input_ids"));
    let mut model = model.clone();
    model.config.image_token_index = placeholder;
    let sample = Sample { ids: &ids, images };
    let embeddings = model
        .embed(std::slice::from_ref(&sample))
        .unwrap()
        .remove(0);
    let rows = tensors.i64(&key("logits_rows"));
    let count = rows.len();
    let rows = TensorData::new(rows, [count]);
    let rows = Tensor::<B, 1, Int>::from_data(rows, &Default::default());
    let found = model.logits(embeddings).select(0, rows).into_data();
    let expected = tensors.f64(&key("logits"));
    assert_close(&what, &found.to_vec::<f32>().unwrap(), &expected, 2e-4);
    let greedy = prompt["greedy"]["ids_without_stopping"].as_array();
    let greedy: Vec<i64> = greedy
        .expect("ids")
        .iter()
        .map(|id| id.as_i64().expect("an id"))
        .collect();
    let config = GenerateConfig::greedy(greedy.len());
    let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
    let found = model.generate(&[sample], &config, &mut go_on).unwrap();
    assert_eq!(found[0].ids, greedy, "{what}");
}

#[test]
fn what_cannot_be_expressed_is_refused_and_new_rows_are_written() {
    let tokenizer = letters();
    let saving = Saving {
        matrices: GgufType::Q8_0,
        ..Saving::whole(&tokenizer)
    };
    let out = tempfile::tempdir().unwrap();
    // Prototypes of the paper and of the release.
    let paper = SqLlavaConfig::preset("tiny").unwrap();
    let released = paper
        .clone()
        .with_prototype(None)
        .with_projector(ProjectorConfig::from_name("cluster", None).unwrap());
    for config in [paper, released] {
        let model = config.init::<B>(&Default::default()).unwrap();
        let message = saving.save(&model, out.path()).unwrap_err();
        assert!(message.contains("prototypes"), "{message}");
        assert!(!message.contains("--without"), "{message}");
    }
    // A vocabulary that grew.
    let (_, _, mut model) = cases("llm").remove(0);
    model.config.llama.sliding_window = None;
    let (start, llama) = (model.language_model.vocabulary(), &model.config.llama);
    let (hidden, tied) = (llama.hidden_size, llama.tie_word_embeddings);
    let new = NewTokens::zeros(5, hidden, tied, start, &Default::default());
    model.language_model.new_tokens = Some(new);
    let rows = start + 5;
    let saved = saving.save(&model, out.path()).unwrap();
    let header = GgufHeader::open(&saved.files[0]).unwrap();
    let tokens = header.texts("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens.len(), rows);
    let table = header
        .tensors
        .iter()
        .find(|t| t.name == "token_embd.weight");
    assert_eq!(table.unwrap().shape[0], rows);
    let version = &header.metadata["general.quantization_version"];
    assert_eq!(version, &GgufValue::Integer(2));
    // A second time there is something to lose.
    let message = saving.save(&model, out.path()).unwrap_err();
    assert!(message.contains("is there already"), "{message}");
    let left = std::fs::read_dir(out.path()).unwrap().count();
    assert_eq!(left, 1, "no file without its name is left");
}
