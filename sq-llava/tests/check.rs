//! `sq-llava check`, end to end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::Value;

fn check(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .arg("check")
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// The photographs of part e.
fn pictures() -> (PathBuf, Vec<String>) {
    let folder = golden::folders("e_").remove(0);
    let names: Vec<String> = golden::entries(&folder)
        .iter()
        .map(|path| golden::file_name(path))
        .filter(|name| name.ends_with(".png") && name.matches('.').count() == 1)
        .collect();
    assert!(!names.is_empty(), "no pictures");
    (folder, names)
}

fn sample(id: &str, image: &str) -> String {
    format!(
        r#"{{"id": "{id}", "image": "{image}", "conversations": [
            {{"from": "human", "value": "<image>\nWhat is it?"}},
            {{"from": "gpt", "value": "{image}"}}]}}"#
    )
}

fn write(path: &Path, samples: &[String]) {
    std::fs::write(path, format!("[{}]", samples.join(",\n"))).expect("written");
}

#[test]
fn a_good_data_set_passes() {
    let (folder, names) = pictures();
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data.json");
    let samples: Vec<String> = names
        .iter()
        .chain(&names)
        .enumerate()
        .map(|(i, name)| sample(&i.to_string(), name))
        .collect();
    write(&data, &samples);
    let out = dir.path().join("report.json");
    let tokenizer = golden::llama_tokenizer();
    let output = check(&[
        text(&data),
        "--images",
        text(&folder),
        "--tokenizer",
        text(&tokenizer),
        "--template",
        "sq",
        "--out",
        text(&out),
    ]);
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(said.contains("0 errors"), "{said}");
    let report = golden::json(&out);
    assert_eq!(report["samples"], samples.len());
    assert_eq!(report["image_files"], names.len());
    assert_eq!(report["images"]["decoded"], names.len());
    assert_eq!(report["lengths"]["exact"], true);
    // 576 tokens of the picture and some text.
    let shortest = report["lengths"]["shortest"].as_u64().expect("a length");
    assert!((580..700).contains(&shortest), "{shortest}");
}

#[test]
fn errors_fail_the_command_and_are_named() {
    let (folder, names) = pictures();
    let dir = tempfile::tempdir().expect("a folder");
    let images = dir.path().join("images");
    std::fs::create_dir(&images).expect("a folder");
    std::fs::copy(folder.join(&names[0]), images.join("as.jpg")).expect("copied");
    let bytes = std::fs::read(folder.join(&names[0])).expect("read");
    std::fs::write(images.join("torn.png"), &bytes[..bytes.len() / 2]).expect("written");
    let (one, two) = (dir.path().join("one.json"), dir.path().join("two.jsonl"));
    write(&one, &[sample("a", "as.jpg"), sample("b", "torn.png")]);
    let lines = [
        sample("c", "gone.png"),
        r#"{"id": "d"}"#.into(),
        sample("a", "as.jpg"),
    ];
    let lines = lines.map(|line| line.replace('\n', " ")).join("\n");
    std::fs::write(&two, &lines).expect("written");
    let both = [text(&one), text(&two), "--images", text(&images), "--json"];

    let output = check(&both);
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert!(
        error.contains("3 errors") && error.contains("1 missing_image"),
        "{error}"
    );
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let group = |kind: &str| -> Value {
        let groups = report["findings"].as_array().expect("findings");
        let found = groups.iter().find(|group| group["kind"] == kind);
        found
            .unwrap_or_else(|| panic!("no {kind}: {report}"))
            .clone()
    };
    for (kind, sample, file) in [
        ("missing_image", "c", &two),
        ("bad_image", "b", &one),
        ("malformed", "d", &two),
        ("wrong_extension", "a", &one),
        ("duplicate_id", "a", &two),
    ] {
        let group = group(kind);
        assert_eq!(
            (&group["count"], &group["listed"][0]["sample"]),
            (&1.into(), &sample.into())
        );
        assert_eq!(group["listed"][0]["file"], text(file));
    }
    let offset = group("malformed")["listed"][0]["offset"]
        .as_u64()
        .expect("an offset");
    let offset = usize::try_from(offset).expect("an offset");
    assert!(lines[offset..].starts_with(r#"{"id": "d"}"#));

    let passed = check(&[&both[..], &["--warn-only"]].concat());
    assert!(passed.status.success());
}

#[test]
fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data.json");
    for (arguments, named) in [
        (vec![text(&data)], "data.json"),
        (
            vec![text(&data), "--images", "no/such/folder"],
            "no/such/folder",
        ),
    ] {
        let output = check(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(named), "{error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
}

/// Pictures at which their decoders panic are findings, and the report is written all the same.
#[test]
fn fault_29_a_decoder_s_panic_is_a_finding() {
    let (folder, names) = pictures();
    let dir = tempfile::tempdir().expect("a folder");
    let damaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/damaged");
    let mut samples = Vec::new();
    for (from, name) in [
        (&damaged, "palette.png"),
        (&damaged, "colours.jpg"),
        (&folder, names[0].as_str()),
    ] {
        std::fs::copy(from.join(name), dir.path().join(name)).expect("copied");
        samples.push(sample(name, name));
    }
    let data = dir.path().join("data.json");
    write(&data, &samples);
    let out = dir.path().join("report.json");
    let output = check(&[
        text(&data),
        "--images",
        text(dir.path()),
        "--out",
        text(&out),
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        !error.contains("panicked") && !error.contains("gave up"),
        "{error}"
    );
    let report = golden::json(&out);
    let bad = report["findings"].to_string();
    assert!(bad.contains("palette.png"), "{report}");
    assert_eq!(report["samples"], 3);
}

#[test]
fn fault_29_numbers_that_no_machine_serves_are_named() {
    for option in ["--threads", "--tokens-per-image", "--max-length"] {
        let output = check(&["data.json", option, "18446744073709551615"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(option), "{error}");
    }
}
