//! `eval` of a checkpoint like the released SQ-LLaVA: asked as its scripts ask, compared with its
//! own page.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::Value;
use serde_json::json;

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A folder with one question of GQA and one of MM-Vet.
fn data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    };
    let picture = golden::repository().join("e_image/tiny_13x9.png");
    let picture = std::fs::read(picture).expect("a picture");
    write("gqa/data/images/n1.jpg", &picture);
    write("mm-vet/images/v.png", &picture);
    let line = |value: Value| format!("{value}\n").into_bytes();
    write(
        "gqa/llava_gqa_testdev_balanced.jsonl",
        &line(json!({"question_id": "201", "image": "n1.jpg", "text": "Who?\nAnswer."})),
    );
    write(
        "gqa/data/testdev_balanced_questions.json",
        &line(json!({"201": {"answer": "man", "imageId": "n1", "question": "Who?"}})),
    );
    write(
        "mm-vet/llava-mm-vet.jsonl",
        &line(json!({"question_id": 0, "image": "v.png", "text": "What is x?"})),
    );
    folder
}

/// Copies a checkpoint with a context that holds the released system message.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for path in golden::entries(from) {
        let target = to.join(golden::file_name(&path));
        if path.is_dir() {
            copy(&path, &target);
        } else if path.ends_with("config.json") {
            let mut config = golden::json(&path);
            config["max_position_embeddings"] = 2048.into();
            std::fs::write(target, config.to_string()).expect("written");
        } else {
            std::fs::copy(&path, target).expect("copied");
        }
    }
}

/// Options that name a small checkpoint like the released one, put into a folder.
fn released(folder: &Path) -> Vec<String> {
    let golden = golden::repository();
    copy(&golden.join("a2_sqllava_e2e"), &folder.join("released"));
    copy(&golden.join("a_llava_gqa/orig"), &folder.join("base"));
    [
        ("--model", folder.join("released")),
        ("--base", folder.join("base")),
        ("--tokenizer", golden.join("i_end_to_end")),
    ]
    .into_iter()
    .flat_map(|(option, path)| [option.to_owned(), text(&path).to_owned()])
    .collect()
}

fn eval(model: &[String], data: &Path, out: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .arg("eval")
        .args(model)
        .args(["--device", "cpu", "--max-new-tokens", "4"])
        .args(["--data", text(data), "--out", text(out)])
        .args(more)
        .output()
        .expect("the command starts")
}

/// Standard output, and for each benchmark its answer and how it was asked.
fn run(model: &[String], data: &Path, out: &Path, more: &[&str]) -> (String, [Value; 2]) {
    let output = eval(model, data, out, more);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let answers = ["gqa", "mm-vet"].map(|name| {
        let path = out.join(name).join("answers.jsonl");
        let text = std::fs::read_to_string(path).expect("answers");
        serde_json::from_str::<Value>(text.trim()).expect("one answer")
    });
    (String::from_utf8(output.stdout).expect("UTF-8"), answers)
}

fn asked(answers: &[Value; 2]) -> [Value; 2] {
    [0, 1].map(|index| answers[index]["metadata"]["asked_with"].clone())
}

fn asked_with(released: bool, protocol: &str, template: &str, pictures: &str) -> Value {
    json!({"released": released, "protocol": protocol, "template": template,
        "pictures": pictures})
}

fn results(out: &Path) -> (Value, String) {
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect("results");
    let json = serde_json::from_str(&read("results.json")).expect("JSON");
    (json, read("results.md"))
}

const PAPER: &str = "SQ-LLaVA-7B (published)";
const PAGE: &str = "SQ-LLaVA-7B (released)";

#[test]
fn fault_18_released_checkpoints_are_asked_as_their_scripts_ask() {
    let data = data();
    let out = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| out.path().join(name);
    let model = released(out.path());
    let (shown, own) = run(&model, data.path(), &folder("own"), &[]);
    assert_eq!(
        asked(&own),
        ["pad", "crop"].map(|pictures| asked_with(true, "released", "v1", pictures))
    );
    assert!(shown.contains("the way of the released scripts"), "{shown}");
    assert!(shown.contains(PAGE) && !shown.contains(PAPER), "{shown}");
    let (json, markdown) = results(&folder("own"));
    assert_eq!(json["benchmarks"][0]["asked_with"], asked(&own)[0]);
    let rows = json["published"].as_array().expect("rows");
    assert_eq!(rows[0]["model"], PAGE);
    assert_eq!(rows[0]["values"]["gqa"], 63.7);
    for row in rows {
        let source = row["source"].as_str().expect("a source");
        assert!(
            !source.is_empty() && markdown.contains(source),
            "{markdown}"
        );
    }
    // The same from the answers alone.
    let score = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(["score", "--data", text(data.path())])
        .args([
            "--answers",
            text(&folder("own")),
            "--out",
            text(&folder("score")),
        ])
        .output()
        .expect("the command starts");
    assert!(score.status.success());
    assert_eq!(results(&folder("score")), (json, markdown));

    // LLaVA's own way, when it is asked for.
    let (shown, llava) = run(
        &model,
        data.path(),
        &folder("llava"),
        &["--protocol", "llava"],
    );
    let expected = asked_with(true, "llava", "v1_sq", "pad");
    assert_eq!(asked(&llava), [expected.clone(), expected]);
    assert!(shown.contains(PAGE), "the checkpoint is the same: {shown}");
    // What differs is the template alone, where nothing is cropped.
    let more = ["--protocol", "llava", "--conv", "v1"];
    let (_, v1) = run(&model, data.path(), &folder("v1"), &more);
    assert_eq!(v1[0]["text"], own[0]["text"]);

    // Answers of the two are never mixed.
    let output = eval(
        &model,
        data.path(),
        &folder("own"),
        &["--protocol", "llava"],
    );
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "mixed");
    assert!(error.contains("asked otherwise"), "{error}");
}

#[test]
fn fault_18_other_checkpoints_are_asked_as_llava_asks() {
    let data = data();
    let out = tempfile::tempdir().expect("a folder");
    let model: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/assets/tiny-llava");
    let model = ["--model".to_owned(), text(&model).to_owned()];
    let own = out.path().join("own");
    let (shown, answers) = run(&model, data.path(), &own, &[]);
    let expected = asked_with(false, "llava", "v1", "pad");
    assert_eq!(asked(&answers), [expected.clone(), expected]);
    assert!(shown.contains("the way of LLaVA's evaluation"), "{shown}");
    assert!(shown.contains(PAPER) && !shown.contains(PAGE), "{shown}");
    assert_eq!(results(&own).0["published"][0]["values"]["gqa"], 62.8);
    let other = out.path().join("other");
    let (_, answers) = run(&model, data.path(), &other, &["--protocol", "released"]);
    assert_eq!(
        asked(&answers)[1],
        asked_with(false, "released", "v1", "crop")
    );
    let output = eval(&model, data.path(), &other, &["--protocol", "official"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("llava and released"), "{error}");
}

/// TextVQA's ids are those of pictures; here they are numbers of questions.
#[test]
fn fault_20_nothing_scored_fails_and_the_others_are_shown() {
    let data = data();
    let write = |name: &str, text: String| {
        let path = data.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    let question = "What brand?\nAnswer the question using a single word or phrase.";
    write(
        "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        json!({"question_id": 7, "image": "abc.jpg", "text": question}).to_string(),
    );
    write(
        "textvqa/TextVQA_0.5.1_val.json",
        json!({"data": [{"image_id": "abc", "question": "What brand?",
            "answers": vec!["nokia"; 10]}]})
        .to_string(),
    );
    write(
        "out/textvqa/answers.jsonl",
        json!({"question_id": 7, "prompt": question, "text": "Nokia"}).to_string(),
    );
    write(
        "out/gqa/answers.jsonl",
        json!({"question_id": "201", "prompt": "Who?\nAnswer.", "text": "man"}).to_string(),
    );
    let out = data.path().join("out");
    let output = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args([
            "score",
            "--data",
            text(data.path()),
            "--answers",
            text(&out),
        ])
        .output()
        .expect("the command starts");
    let (shown, error) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(!output.status.success(), "{shown}");
    for part in ["TextVQA", "question 7", "image"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert!(
        shown.contains("100.00") && !shown.contains("TextVQA"),
        "{shown}"
    );
    let (json, _) = results(&out);
    assert_eq!(json["benchmarks"].as_array().map(Vec::len), Some(1));
}
