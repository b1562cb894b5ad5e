//! The command with names in place of paths.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::Value;
use safetensors::SafeTensors;

use super::server::{Behaviour, Server};

/// A name for each file below a folder, and one folder down.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in golden::entries(folder) {
        let name = golden::file_name(&path);
        if path.is_dir() {
            let inner = files(&path).into_iter();
            found.extend(inner.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).expect("a file"));
        }
    }
    found
}

fn part(prefix: &str) -> PathBuf {
    golden::folders(prefix)
        .into_iter()
        .next()
        .expect("a part of the golden data")
}

/// A whole model as people have it: weights in shards, tokenizer and picture processor.
fn whole() -> BTreeMap<String, Vec<u8>> {
    let questions = part("i_");
    let cases = golden::json(&questions.join("cases.json"));
    let hint = cases["checkpoint"].as_str().expect("a checkpoint");
    let weights = golden::base_folder(hint, None);
    let weights = match weights.join("orig") {
        inner if inner.is_dir() => inner,
        _ => weights,
    };
    let mut found = files(&weights);
    found.extend(files(&questions));
    found.remove("cases.json");
    found
}

/// The model without its vision tower, which its configuration names.
fn without_tower(mut model: BTreeMap<String, Vec<u8>>, name: &str) -> BTreeMap<String, Vec<u8>> {
    let shards = model.keys().filter(|file| file.ends_with(".safetensors"));
    let mut kept = HashMap::new();
    for shard in shards.cloned().collect::<Vec<_>>() {
        let bytes = model.remove(&shard).expect("a shard").leak();
        for (key, tensor) in SafeTensors::deserialize(bytes)
            .expect("safetensors")
            .tensors()
        {
            if !key.contains("vision_tower") {
                kept.insert(key, tensor);
            }
        }
    }
    let bytes = safetensors::serialize(&kept, None).expect("safetensors");
    model.insert("model.safetensors".into(), bytes);
    model.remove("model.safetensors.index.json");
    model.remove("vision_config.json");
    set(&mut model, "config.json", "mm_vision_tower", name);
    model
}

/// Changes a key of a JSON file.
fn set(model: &mut BTreeMap<String, Vec<u8>>, file: &str, key: &str, value: &str) {
    let mut json: Value = serde_json::from_slice(&model[file]).expect("JSON");
    json[key] = value.into();
    model.insert(file.into(), json.to_string().into_bytes());
}

fn write(model: &BTreeMap<String, Vec<u8>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in model {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    folder
}

fn run(arguments: &[&str], cache: &Path, endpoint: &str, offline: bool) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(arguments)
        .env("HF_HUB_CACHE", cache)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HUB_OFFLINE", if offline { "1" } else { "0" })
        .env_remove("HF_TOKEN")
        .output()
        .expect("the command starts")
}

fn said(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn ask<'a>(model: &[&'a str], picture: &'a Path) -> Vec<&'a str> {
    let picture = picture.to_str().expect("UTF-8");
    let rest = [
        "--device",
        "cpu",
        "--json",
        "--max-new-tokens",
        "12",
        picture,
        "What is it?",
    ];
    [&["ask", "--model"], model, &rest].concat()
}

fn answer(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).expect("one JSON object");
    serde_json::json!([value["input_ids"], value["output_ids"], value["text"]])
}

fn picture() -> PathBuf {
    let pictures = golden::entries(&part("e_"));
    let mut pictures = pictures.into_iter();
    pictures
        .find(|path| path.extension().is_some_and(|e| e == "png"))
        .expect("a picture")
}

#[test]
fn a_model_answers_by_name_as_by_path() {
    let (model, picture) = (whole(), picture());
    let folder = write(&model);
    let server = Server::new(Behaviour {
        files: model,
        ..Behaviour::default()
    });
    let cache = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    let by_path = said(&run(
        &ask(&[path], &picture),
        cache.path(),
        &server.url,
        false,
    ));
    assert!(server.seen().is_empty());
    let by_name = ask(&["org/name"], &picture);
    for offline in [false, true] {
        let output = run(&by_name, cache.path(), &server.url, offline);
        assert_eq!(
            answer(&said(&output)),
            answer(&by_path),
            "offline {offline}"
        );
        assert_eq!(server.seen().is_empty(), offline);
    }
    let output = run(&["inspect", "org/other"], cache.path(), &server.url, false);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    let parts = [
        "error: org/other: no such file or folder",
        "does not have it",
        "no such model",
    ];
    for part in parts {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn towers_and_bases_that_a_checkpoint_names_are_found() {
    let (base, picture) = (whole(), picture());
    let base_folder = write(&base);
    let base_path = base_folder.path().to_str().expect("UTF-8");
    let tokenizer = files(&part("i_"));

    let named = without_tower(base.clone(), "org/base");
    let mut adapters = files(&part("a2_"));
    adapters.retain(|name, _| !name.starts_with("outputs"));
    adapters.extend(
        tokenizer
            .into_iter()
            .filter(|(name, _)| name.starts_with("tokenizer")),
    );
    set(
        &mut adapters,
        "adapter_config.json",
        "base_model_name_or_path",
        "org/base",
    );

    for (model, option, says) in [
        (named, "--vision", "the vision tower is"),
        (adapters, "--base", "the base is"),
    ] {
        let folder = write(&model);
        let server = Server::new(Behaviour {
            files: model,
            base: base.clone(),
            ..Behaviour::default()
        });
        let cache = tempfile::tempdir().expect("a folder");
        let local = folder.path().to_str().expect("UTF-8");
        let given = ask(&[local, option, base_path], &picture);
        let given = said(&run(&given, cache.path(), &server.url, false));
        // What is given goes before what is named.
        assert!(server.seen().is_empty(), "{option}");
        let output = run(
            &ask(&["org/name"], &picture),
            cache.path(),
            &server.url,
            false,
        );
        assert_eq!(answer(&said(&output)), answer(&given), "{option}");
        let seen = server.seen();
        assert!(
            seen.iter().all(|r| !r.path.ends_with("adapter_model.bin")),
            "{seen:?}"
        );
        // A folder here may name what is in the cache.
        let output = run(&["inspect", local], cache.path(), &server.url, true);
        let report = said(&output);
        let place = cache.path().join("models--org--base/snapshots");
        assert!(
            report.contains(says) && report.contains(place.to_str().expect("UTF-8")),
            "{report}"
        );
        let empty = tempfile::tempdir().expect("a folder");
        let output = run(&["inspect", local], empty.path(), &server.url, true);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(
            error.contains("\"org/base\"") && error.contains(option),
            "{error}"
        );
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
}

#[test]
fn a_training_finds_the_tower_that_its_llava_names() {
    let (base, picture) = (whole(), picture());
    let named = without_tower(base.clone(), "org/base");
    let config: Value = serde_json::from_slice(&named["config.json"]).expect("JSON");
    let server = Server::new(Behaviour {
        files: named.clone(),
        base,
        ..Behaviour::default()
    });
    let (local, world) = (write(&named), tempfile::tempdir().expect("a folder"));
    let cache = tempfile::tempdir().expect("a folder");
    let path = |name: &str| world.path().join(name);
    let (kind, layer) = (
        &config["mm_projector_type"],
        &config["mm_vision_select_layer"],
    );
    let recipe = format!(
        "stages = [2]\nworkers = 1\n[model]\nprototype = false\nmm_projector_type = {kind}\n\
         select_layer = {layer}\n[stage2]\ntemplate = 'v1'\nepochs = 1\nbatch_size = 1\n\
         accumulation = 1\nmax_length = 1024\n[lora.llm]\nr = 2\nalpha = 4\n[lora.vision]\n\
         r = 2\nalpha = 4\n[asking]\ndelta = 0.0\n"
    );
    fs::write(path("recipe.toml"), recipe).expect("written");
    let file = golden::file_name(&picture);
    let sample = serde_json::json!([{"id": "a", "image": file, "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A thing."}]}]);
    fs::write(path("data.json"), sample.to_string()).expect("written");
    let train = |cache: &Path, out: &str, offline: bool| {
        let [recipe, data, out] =
            ["recipe.toml", "data.json", out].map(|name| path(name).display().to_string());
        let local = local.path().to_str().expect("UTF-8");
        let words = [
            "train", "--device", "cpu", "--quiet", "--recipe", &recipe, "--llm", local,
        ];
        let images = picture.parent().and_then(Path::to_str).expect("a folder");
        let more = ["--data", &data, "--images", images, "--out", &out];
        run(&[&words[..], &more].concat(), cache, &server.url, offline)
    };
    let trained = train(cache.path(), "run", false);
    said(&trained);
    let paths = golden::json(&path("run/paths.json"));
    let tower = paths["vision"].as_str().expect("a tower");
    assert!(tower.contains("models--org--base/snapshots"), "{tower}");

    let empty = tempfile::tempdir().expect("a folder");
    let refused = train(empty.path(), "other", true);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && !path("other").exists());
    for part in ["mm_vision_tower", "\"org/base\"", "--vision"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}
