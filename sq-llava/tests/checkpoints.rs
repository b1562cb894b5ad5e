//! Checkpoints that the real command refuses, and what it leaves when it cannot save one.

use std::path::Path;
use std::process::Command;

use golden::Value;

/// Runs the command; standard output, or the one line of its complaint.
fn run(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(arguments)
        .output()
        .expect("the command starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).expect("UTF-8"));
    }
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    Err(error)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// The tiny LLaVA with its tokenizer; its weights through `change`.
fn checkpoint(change: impl Fn(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let files = golden::folders("i_").remove(0);
    let model = golden::base_folder("", None).join("orig");
    for path in golden::entries(&model)
        .iter()
        .chain(&golden::entries(&files))
    {
        let name = golden::file_name(path);
        let mut bytes = std::fs::read(path).expect("a file");
        if name.ends_with(".safetensors") {
            bytes = change(bytes);
        }
        std::fs::write(dir.path().join(name), bytes).expect("written");
    }
    dir
}

/// Every `from` of some bytes as `to`, which is as long.
fn renamed(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    for at in 0..bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    bytes
}

#[test]
fn fault_03_a_weight_without_a_place_is_refused_unless_it_is_allowed() {
    // The norm behind the last layer may be missing in a tower, and no tower has that other one.
    let dir = checkpoint(|bytes| renamed(bytes, b"post_layernorm.", b"post_layerscale"));
    let dir = text(dir.path());
    for command in [
        vec!["inspect", dir],
        vec![
            "logits", "--device", "cpu", "--model", dir, "--ids", "1,5,9",
        ],
    ] {
        let complaint = run(&command).expect_err("it is refused");
        assert!(complaint.contains("post_layerscale"), "{complaint}");
        assert!(complaint.contains("--allow-unused"), "{complaint}");
        let allowed = [command, vec!["--allow-unused"]].concat();
        run(&allowed).expect("it is allowed");
    }
}

#[test]
fn fault_25_layers_that_are_not_there_are_counted() {
    let dir = checkpoint(|bytes| bytes);
    let path = dir.path().join("config.json");
    let mut config = golden::json(&path);
    config["num_hidden_layers"] = 1_000_000_000.into();
    std::fs::write(&path, config.to_string()).expect("written");
    let complaint = run(&["inspect", text(dir.path())]).expect_err("it is refused");
    assert!(complaint.contains("1000000000 layers"), "{complaint}");
}

fn names(dir: &Path) -> Vec<String> {
    golden::entries(dir)
        .iter()
        .map(|path| golden::file_name(path))
        .collect()
}

#[test]
fn fault_27_an_export_is_whole_or_holds_no_model() {
    let dir = checkpoint(|bytes| bytes);
    let out = tempfile::tempdir().expect("a folder");
    let export = |out: &Path| {
        let model = text(dir.path());
        run(&[
            "export",
            "--device",
            "cpu",
            "--model",
            model,
            "--out",
            text(out),
        ])
    };
    // A folder lies where the weights should.
    let blocked = out.path().join("model.safetensors");
    std::fs::create_dir(&blocked).expect("a folder");
    let complaint = export(out.path()).expect_err("it cannot be saved");
    assert!(complaint.contains("model.safetensors"), "{complaint}");
    let left = names(out.path());
    assert!(!left.contains(&"config.json".into()), "{left:?}");
    assert!(left.iter().all(|name| !name.ends_with(".tmp")), "{left:?}");
    // Nothing is in the way of another try.
    std::fs::remove_dir(blocked).expect("removed");
    export(out.path()).expect("saved");
    let left = names(out.path());
    assert!(left.contains(&"config.json".into()), "{left:?}");
    assert!(left.iter().all(|name| !name.ends_with(".tmp")), "{left:?}");
    let shown = run(&["inspect", "--json", text(out.path())]).expect("it loads");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert!(shown.is_object());
}
