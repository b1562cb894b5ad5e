//! Runs that are killed, divided into shards, repeated or given what cannot be asked.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use golden::Value;
use serde_json::json;

use crate::{Data, command, complaint, eval, picture, question, read, run_eval, text};

/// Thirty questions about one picture.
/// Enough that some are left when a fast machine is killed.
const QUESTIONS: usize = 120;

fn many() -> Data {
    let data = Data::new();
    data.picture("images/a.png");
    let questions: Vec<Value> = (0..QUESTIONS)
        .map(|id| question(id, "a.png", &format!("What is number {id}?")))
        .collect();
    data.lines("q.jsonl", &questions);
    data
}

fn generic<'a>(data: &'a Data, paths: &'a mut Vec<PathBuf>, out: &'a Path) -> Vec<&'a str> {
    paths.push(data.path().join("q.jsonl"));
    paths.push(data.path().join("images"));
    vec![
        "--benchmark",
        "generic",
        "--questions",
        text(&paths[0]),
        "--images",
        text(&paths[1]),
        "--out",
        text(out),
    ]
}

/// As under `head`: what nobody reads must not end the work before its results are saved.
#[test]
fn fault_29_a_closed_output_ends_no_evaluation() {
    let data = many();
    let out = tempfile::tempdir().expect("a folder");
    let mut paths = vec![];
    let arguments = eval(&generic(&data, &mut paths, out.path()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command(&arguments).stdout(writer).output();
    let output = output.expect("the command starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(out.path().join("results.json").is_file());
}

#[test]
fn killed_and_started_again_it_asks_nothing_twice() {
    let data = many();
    let out = tempfile::tempdir().expect("a folder");
    let (whole, broken) = (out.path().join("whole"), out.path().join("broken"));
    let mut paths = vec![];
    run_eval(&generic(&data, &mut paths, &whole));
    let expected = read(&whole.join("generic/answers.jsonl"));
    assert_eq!(expected.lines().count(), QUESTIONS);

    let mut paths = vec![];
    let mut arguments = generic(&data, &mut paths, &broken);
    arguments.extend(["--batch", "1"]);
    let full = eval(&arguments);
    let full: Vec<&str> = full.iter().map(String::as_str).collect();
    let file = broken.join("generic/answers.jsonl");
    let mut child = command(&full)
        .stdout(Stdio::null())
        .spawn()
        .expect("the command starts");
    let start = Instant::now();
    let lines = |file: &Path| std::fs::read_to_string(file).map_or(0, |text| text.lines().count());
    while lines(&file) < 4 {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no answers come"
        );
        let ended = child.try_wait().expect("asked");
        assert!(ended.is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    let left = std::fs::read(&file).expect("read");
    let answered = left.iter().filter(|byte| **byte == b'\n').count();
    assert!(
        (3..QUESTIONS).contains(&answered),
        "{answered} answers when it was killed"
    );
    // Half a line, as a machine that loses its power leaves it.
    let mut torn = left.clone();
    torn.extend(b"{\"question_id\": 29, \"prom");
    std::fs::write(&file, &torn).expect("written");

    let shown = run_eval(&arguments);
    let line = format!("{answered} answered before, {} now", QUESTIONS - answered);
    assert!(shown.contains(&line), "{shown}");
    let ended = read(&file);
    assert_eq!(ended, expected);
    let kept: Vec<u8> = left
        .split_inclusive(|byte| *byte == b'\n')
        .take(answered)
        .flatten()
        .copied()
        .collect();
    assert!(
        ended.as_bytes().starts_with(&kept),
        "an answer was written anew"
    );
    let shown = run_eval(&arguments);
    let line = format!("{QUESTIONS} answered before, 0 now");
    assert!(shown.contains(&line), "{shown}");
}

#[test]
fn shards_give_the_answers_of_one_run() {
    let data = many();
    let out = tempfile::tempdir().expect("a folder");
    let (whole, parts) = (out.path().join("whole"), out.path().join("parts"));
    let mut paths = vec![];
    run_eval(&generic(&data, &mut paths, &whole));
    for (index, expected) in ["shard 0 of 3 is done", "shard 1 of 3 is done", "written:"]
        .into_iter()
        .enumerate()
    {
        let mut paths = vec![];
        let index = index.to_string();
        let mut arguments = generic(&data, &mut paths, &parts);
        arguments.extend(["--num-chunks", "3", "--chunk-idx", &index]);
        let shown = run_eval(&arguments);
        assert!(shown.contains(expected), "{shown}");
    }
    let merged = read(&parts.join("generic/merge.jsonl"));
    assert_eq!(merged, read(&whole.join("generic/answers.jsonl")));
}

#[test]
fn what_cannot_be_asked_gets_a_line_and_is_counted() {
    let data = Data::new();
    data.picture("images/a.png");
    data.file("images/damaged.png", &picture()[..60]);
    let mut questions = vec![
        question(1, "a.png", "What is it?"),
        question(2, "gone.png", "What is it?"),
        question(3, "damaged.png", "What is it?"),
        question(4, "a.png", &"too long ".repeat(200)),
        question(1, "a.png", "Again?"),
        question(5, "a.png", "And this?"),
    ];
    questions.push(json!({"question_id": 6, "image": "a.png"}));
    data.lines("q.jsonl", &questions);
    let out = tempfile::tempdir().expect("a folder");
    let mut paths = vec![];
    let arguments = generic(&data, &mut paths, out.path());
    let shown = run_eval(&arguments);
    for line in [
        "malformed question: q.jsonl line 7",
        "duplicate question: question 1",
        "missing image: question 2",
        "missing image: question 3",
        "malformed question: question 4",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let results: Value =
        serde_json::from_str(&read(&out.path().join("results.json"))).expect("JSON");
    let counts = &results["benchmarks"][0]["problems"]["counts"];
    for (kind, count) in [
        ("malformed question", 2),
        ("duplicate question", 1),
        ("missing image", 2),
    ] {
        assert_eq!(counts[kind], count, "{kind}: {counts}");
    }
    let answers = read(&out.path().join("generic/answers.jsonl"));
    assert_eq!(answers.lines().count(), 2, "{answers}");
    // Started again, only what has no answer is asked.
    assert!(run_eval(&arguments).contains("2 answered before, 0 now"));
}

#[test]
fn mistakes_get_one_line() {
    let data = many();
    let out = tempfile::tempdir().expect("a folder");
    let fails = |more: &[&str]| {
        let arguments = eval(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        complaint(&arguments)
    };
    let (folder, place) = (text(data.path()), text(out.path()));
    let error = fails(&["--data", folder, "--out", place]);
    assert!(error.contains("holds no benchmark"), "{error}");
    let error = fails(&["--data", folder, "--benchmark", "pope", "--out", place]);
    assert!(error.contains("no questions of pope"), "{error}");
    let error = fails(&[
        "--data",
        folder,
        "--out",
        place,
        "--num-chunks",
        "2",
        "--chunk-idx",
        "2",
    ]);
    assert!(error.contains("counted from 0"), "{error}");
    let mut paths = vec![];
    let mut arguments = generic(&data, &mut paths, out.path());
    run_eval(&arguments);
    arguments.extend(["--model-id", "another"]);
    let error = fails(&arguments);
    assert!(error.contains("holds answers of \"tiny-llava\""), "{error}");
    data.lines("q.jsonl", &[question(0, "a.png", "Changed?")]);
    arguments.truncate(arguments.len() - 2);
    let error = fails(&arguments);
    assert!(error.contains("belongs to no question"), "{error}");
}
