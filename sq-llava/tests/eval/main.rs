//! Benchmarks through the real command, asked of the tiny checkpoint of the repository.

mod every_benchmark;
mod interrupted;

use std::path::Path;
use std::process::{Command, Output};

use golden::Value;
use serde_json::json;

fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/assets/tiny-llava");
    path.to_str().expect("a UTF-8 path").to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command.args(arguments);
    command
}

fn said(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn run(arguments: &[&str]) -> String {
    said(command(arguments).output().expect("the command starts"))
}

/// The one line on standard error of a run that must fail.
fn complaint(arguments: &[&str]) -> String {
    let output = command(arguments).output().expect("the command starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    error
}

/// `sq-llava eval` with short answers.
fn eval(more: &[&str]) -> Vec<String> {
    let model = model();
    let common = [
        "eval",
        "--model",
        &model,
        "--device",
        "cpu",
        "--max-new-tokens",
        "5",
    ];
    common.iter().chain(more).map(ToString::to_string).collect()
}

fn run_eval(more: &[&str]) -> String {
    let arguments = eval(more);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments)
}

/// A folder of benchmarks.
struct Data {
    folder: tempfile::TempDir,
}

impl Data {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }

    fn json(&self, name: &str, value: &Value) {
        self.file(name, value.to_string());
    }

    fn lines(&self, name: &str, values: &[Value]) {
        let lines: Vec<String> = values.iter().map(|value| format!("{value}\n")).collect();
        self.file(name, lines.concat());
    }

    fn picture(&self, name: &str) {
        self.file(name, picture());
    }
}

fn picture() -> Vec<u8> {
    let path = golden::repository().join("e_image/tiny_13x9.png");
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn question(id: impl Into<Value>, image: &str, asked: &str) -> Value {
    let id: Value = id.into();
    json!({"question_id": id, "image": image, "text": asked, "category": "default"})
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn bench_prints_questions_per_second() {
    let model = model();
    let shown = run(&[
        "bench",
        "--model",
        &model,
        "--device",
        "cpu",
        "--questions",
        "--tokens",
        "2",
        "--repeat",
        "1",
        "--json",
    ]);
    let rows: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .collect();
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [1, 8, 32].map(|n| format!("questions in batches of {n}"))
    );
    for row in rows {
        assert_eq!(row["unit"], "questions/s");
        assert!(row["per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
}
