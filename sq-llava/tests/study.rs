//! `clipscore` and `diversity`, end to end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::{Value, file_name};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn parsed(arguments: &[&str]) -> Value {
    serde_json::from_str(&said(arguments)).expect("one JSON object")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Part h's model as people have it, with an image processor.
fn clip() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let case = golden::cases("h_").remove(0);
    for path in golden::entries(&case.folder) {
        std::fs::copy(&path, dir.path().join(file_name(&path))).expect("copied");
    }
    let config = golden::json(&dir.path().join("config.json"));
    let side = &config["vision_config"]["image_size"];
    let processor =
        format!(r#"{{"size": {{"shortest_edge": {side}}}, "crop_size": {side}, "resample": 3}}"#);
    std::fs::write(dir.path().join("preprocessor_config.json"), processor).expect("written");
    dir
}

/// Pictures of part e that decode.
fn pictures() -> (PathBuf, Vec<String>) {
    let folder = golden::folders("e_").remove(0);
    let names = golden::entries(&folder)
        .iter()
        .map(|path| file_name(path))
        .filter(|name| name.ends_with(".png") && !name.contains("336"))
        .take(3)
        .collect::<Vec<_>>();
    assert_eq!(names.len(), 3, "three pictures in part e");
    (folder, names)
}

fn data(dir: &Path, names: &[String]) -> PathBuf {
    let texts: Vec<String> = golden::cases("h_")[0].json["texts"]
        .as_array()
        .expect("texts")
        .iter()
        .map(|text| text.as_str().expect("a text").to_string())
        .collect();
    let sample = |id: &str, image: &str, turns: &[&str]| {
        let turns: Vec<Value> = turns
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let from = if i % 2 == 0 { "human" } else { "gpt" };
                serde_json::json!({"from": from, "value": text})
            })
            .collect();
        serde_json::json!({"id": id, "image": image, "conversations": turns})
    };
    let first = format!("<image>\n{}", texts[0]);
    let mut samples = vec![
        sample("a", &names[0], &[&first, &texts[1], &texts[2], &texts[3]]),
        sample("b", &names[1], &[&texts[2], &texts[texts.len() - 1]]),
        sample("c", &names[2], &[&texts[0], &texts[1]]),
        sample("lost", "no/such.png", &["What?", "That."]),
    ];
    samples.push(serde_json::json!({"id": "text", "conversations": []}));
    let path = dir.join("data.json");
    std::fs::write(&path, Value::from(samples).to_string()).expect("written");
    path
}

#[test]
fn clipscore_counts_every_sample() {
    let clip = clip();
    let (images, names) = pictures();
    let data = data(clip.path(), &names);
    let out = clip.path().join("study");
    let mut arguments = vec!["clipscore", "--device", "cpu", "--json"];
    for (key, path) in [
        ("--clip", clip.path()),
        ("--data", &data),
        ("--images", &images),
        ("--out", &out),
    ] {
        arguments.extend([key, text(path)]);
    }
    let found = parsed(&arguments);
    let counts = &found["counts"];
    for (key, n) in [
        ("samples", 5),
        ("scored", 3),
        ("without_picture", 1),
        ("failed", 1),
        ("cut_texts", 1),
    ] {
        assert_eq!(counts[key], n, "{key}: {counts}");
    }
    assert_eq!(found["questions"]["cosine"]["scores"], 4);
    assert_eq!(found["answers"]["cosine"]["scores"], 4);
    let cosine = &found["questions"]["cosine"];
    let number = |value: &Value| value.as_f64().expect("a number");
    assert!(number(&cosine["interval_95"][0]) <= number(&cosine["mean"]));
    let failure = &found["failures"][0];
    assert_eq!(failure["sample"], "lost");
    assert!(
        failure["reason"]
            .as_str()
            .expect("a reason")
            .contains("no/such.png")
    );
    let written = golden::json(&out.join("clipscore.json"));
    assert_eq!(written, found);
    let picture = std::fs::read_to_string(out.join("clipscore.svg")).expect("a picture");
    assert!(picture.contains("answers, mean"), "{picture}");

    // One sample at a time, the numbers are the same.
    arguments.extend(["--batch-size", "1"]);
    let alone = parsed(&arguments);
    for side in ["questions", "answers"] {
        let mean = |found: &Value| number(&found[side]["cosine"]["mean"]);
        assert!((mean(&alone) - mean(&found)).abs() < 1e-6, "{side}");
    }
    let drawn = parsed(&[&arguments[..], &["--samples", "2"]].concat());
    assert_eq!(drawn["counts"]["samples"], 2);
}

#[test]
fn clipscore_without_a_score_is_an_error() {
    let clip = clip();
    let data = clip.path().join("data.json");
    std::fs::write(&data, r#"[{"id": "x", "conversations": []}]"#).expect("written");
    let output = run(&[
        "clipscore",
        "--device",
        "cpu",
        "--clip",
        text(clip.path()),
        "--data",
        text(&data),
        "--images",
        ".",
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("1 without a picture"), "{error}");
}

#[test]
fn diversity_of_texts_needs_no_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let (asked, reference) = (dir.path().join("q.txt"), dir.path().join("r.json"));
    std::fs::write(&asked, "What is it?\nWhat is it?\nIs it red?\n").expect("written");
    let sample = r#"{"id": 1, "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nWhere is the cat?"}, {"from": "gpt", "value": "There."},
        {"from": "human", "value": "How many cats are there?"}, {"from": "gpt", "value": "One."},
        {"from": "human", "value": "Why does it sleep?"}, {"from": "gpt", "value": "Night."},
        {"from": "human", "value": "Which cat?"}, {"from": "gpt", "value": "Mine."}]}"#;
    std::fs::write(&reference, format!("[{sample}]")).expect("written");
    let arguments = [
        "diversity",
        "--questions",
        text(&asked),
        "--reference",
        text(&reference),
    ];
    let found = parsed(&[&arguments[..], &["--json"]].concat());
    assert_eq!(found["questions"]["questions"], 3);
    // what is it / what is it / is it red: 4 of 9 words differ.
    let distinct = found["questions"]["distinct_1"].as_f64().expect("a number");
    assert!((distinct - 4.0 / 9.0).abs() < 1e-12);
    // As many questions of the reference as there are of ours.
    assert_eq!(found["reference"]["questions"], 3);
    assert_eq!(found["probe"], Value::Null);
    let table = said(&arguments);
    for part in ["distinct-2", "self-BLEU", "yes-no", "33.3 %"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

/// The tiny checkpoint of part a with the tokenizer of part i, its context made wide enough for the
/// released system message.
fn checkpoint() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let files = golden::folders("i_").remove(0);
    let source = golden::base_folder("", None).join("orig");
    for path in golden::entries(&source)
        .iter()
        .chain(&golden::entries(&files))
        .filter(|path| path.is_file())
    {
        std::fs::copy(path, dir.path().join(file_name(path))).expect("copied");
    }
    let config = dir.path().join("config.json");
    let mut wider = golden::json(&config);
    wider["max_position_embeddings"] = 2048.into();
    std::fs::write(&config, wider.to_string()).expect("written");
    dir
}

#[test]
fn diversity_probes_each_question_once() {
    let model = checkpoint();
    let (images, names) = pictures();
    let asked = model.path().join("asked.jsonl");
    let line = |image: &str, text: &str, count: usize| {
        format!(r#"{{"questions": [{{"text": "{text}", "count": {count}}}], "image": "{image}"}}"#)
    };
    let lines = [
        line(&names[0], "What is it?", 2),
        line(&names[1], "Is it red?", 1),
        line("lost.png", "Where?", 1),
        r#"{"text": "Why?"}"#.into(),
    ];
    std::fs::write(&asked, lines.join("\n")).expect("written");
    let found = parsed(&[
        "diversity",
        "--model",
        text(model.path()),
        "--device",
        "cpu",
        "--questions",
        text(&asked),
        "--images",
        text(&images),
        "--json",
    ]);
    assert_eq!(found["questions"]["questions"], 5);
    let probe = &found["probe"];
    for (key, n) in [("asked", 2), ("without_picture", 1), ("failed", 1)] {
        assert_eq!(probe[key], n, "{key}: {probe}");
    }
    let count = |key: &str| probe[key].as_u64().expect("a count");
    assert_eq!(count("yes") + count("no") + count("unclear"), 2, "{probe}");
    assert_eq!(probe["failures"][0]["picture"], "lost.png");
}

#[test]
fn fault_20_a_probe_that_read_no_picture_fails() {
    let model = checkpoint();
    let asked = model.path().join("asked.jsonl");
    std::fs::write(&asked, r#"{"text": "What is it?", "image": "lost.png"}"#).expect("written");
    let arguments = [
        "diversity",
        "--model",
        text(model.path()),
        "--device",
        "cpu",
        "--questions",
        text(&asked),
        "--json",
    ];
    let output = run(&arguments);
    // Nor is it well where nobody reads the report.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let unread = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(arguments)
        .stdout(writer)
        .output();
    for output in [&output, &unread.expect("the command starts")] {
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains("nothing was probed") && error.contains("lost.png"),
            "{error}"
        );
    }
    let found: Value = serde_json::from_slice(&output.stdout).expect("the report");
    assert_eq!(found["probe"]["answerable"], Value::Null);
    // A word alone has no pairs.
    assert_eq!(found["questions"]["self_bleu"], Value::Null);
}

/// Written out, these 70 million questions would take gigabytes.
#[test]
fn fault_29_counts_of_draws_take_no_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("drawn.jsonl");
    let lines: Vec<String> = (0..700)
        .map(|i| format!(r#"{{"questions":[{{"text":"Is {i}?","count":100000}}]}}"#))
        .collect();
    std::fs::write(&path, lines.join("\n")).expect("written");
    let found = parsed(&["diversity", "--questions", text(&path), "--json"]);
    assert_eq!(found["questions"]["questions"], 70_000_000);
    assert_eq!(found["questions"]["words"], 140_000_000);
    // Entries of a draw count one by one.
    let more = ["--samples", "150000"];
    let drawn = parsed(
        &[
            &["diversity", "--questions", text(&path), "--json"],
            &more[..],
        ]
        .concat(),
    );
    assert_eq!(drawn["questions"]["questions"], 150_000);
}

#[test]
fn diversity_asks_about_pictures() {
    let model = checkpoint();
    let (images, names) = pictures();
    let out = model.path().join("out");
    let found = parsed(&[
        "diversity",
        "--model",
        text(model.path()),
        "--device",
        "cpu",
        "--conv",
        "v1_sq",
        "--n",
        "2",
        "--no-probe",
        "--json",
        "--out",
        text(&out),
        text(&images.join(&names[0])),
    ]);
    let lines = std::fs::read_to_string(out.join("questions.jsonl")).expect("questions");
    let asked: Value = serde_json::from_str(&lines).expect("one line");
    let counts = asked["questions"].as_array().expect("questions").iter();
    let drawn: u64 = counts.map(|q| q["count"].as_u64().expect("a count")).sum();
    assert_eq!(found["questions"]["questions"], drawn);
    assert_eq!(golden::json(&out.join("diversity.json")), found);
}
