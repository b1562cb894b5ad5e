//! METEOR in `score`, with a shell script in Java's place.

#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use golden::Value;

/// METEOR's protocol: a score of 0.25 for each caption and 0.5 for all.
const METEOR: &str = r#"#!/bin/sh
while IFS= read -r line; do
  case "$line" in
    SCORE*) echo "1.0 2.0" ;;
    EVAL*) for word in $line; do [ "$word" = "|||" ] && echo 0.25; done; echo 0.5 ;;
  esac
done
"#;

fn score(dir: &Path, more: &[&str]) -> Value {
    let path = |name: &str| dir.join(name).to_str().expect("UTF-8").to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(["score", "--json", "--benchmark", "coco"])
        .args(["--questions", &path("questions.jsonl")])
        .args(["--annotations", &path("annotations.json")])
        .args(["--answers", &path("answers.jsonl")])
        .args(["--out", &path("out")])
        .args(more)
        .output()
        .expect("the command starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let results: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    results["benchmarks"][0].clone()
}

fn metric(report: &Value, name: &str) -> Option<f64> {
    let metrics = report["metrics"].as_array().expect("metrics");
    metrics.iter().find(|m| m["name"] == name)?["value"].as_f64()
}

#[test]
fn meteor_joins_the_table_where_its_jar_is_given() {
    let dir = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write(
        "questions.jsonl",
        r#"{"question_id": 0, "image": "a.jpg", "text": "Describe the image."}
{"question_id": 1, "image": "b.jpg", "text": "Describe the image."}
"#,
    );
    write(
        "annotations.json",
        r#"[{"caption": ["a red dog"]}, {"caption": ["a blue bird"]}]"#,
    );
    write(
        "answers.jsonl",
        r#"{"question_id": 0, "prompt": "Describe the image.", "text": "a dog", "answer_id": "x", "model_id": "m", "metadata": {}}
{"question_id": 1, "prompt": "Describe the image.", "text": "a bird", "answer_id": "y", "model_id": "m", "metadata": {}}
"#,
    );
    let without = score(dir.path(), &[]);
    assert_eq!(metric(&without, "METEOR"), None);
    let notes = without["notes"].to_string();
    assert!(
        notes.contains("--meteor-jar") && notes.contains("--spice-jar"),
        "{notes}"
    );

    write("java", METEOR);
    write("meteor.jar", "");
    let java = dir.path().join("java");
    std::fs::set_permissions(&java, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_string();
    let with = score(
        dir.path(),
        &["--java", &path("java"), "--meteor-jar", &path("meteor.jar")],
    );
    assert_eq!(metric(&with, "METEOR"), Some(50.0));
    assert!(
        !with["notes"].to_string().contains("--meteor-jar"),
        "{with}"
    );
    assert_eq!(metric(&with, "CIDEr"), metric(&without, "CIDEr"));
}
