//! Benchmarks through the real command: made here in their true formats, asked of the tiny
//! checkpoint of the repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
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

const SHORT: &str = "Answer the question using a single word or phrase.";

fn question(id: impl Into<Value>, image: &str, asked: &str) -> Value {
    let id: Value = id.into();
    json!({"question_id": id, "image": image, "text": asked, "category": "default"})
}

fn ten(answer: &str) -> Vec<Value> {
    (0..10)
        .map(|id| json!({"answer": answer, "answer_id": id}))
        .collect()
}

/// Two or three questions of every benchmark, as people have them.
fn every_benchmark() -> Data {
    let data = Data::new();
    data.picture("vqav2/test2015/a.jpg");
    let asked = |what: &str| format!("{what}\n{SHORT}");
    data.lines(
        "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",
        &[
            question(262_144_000, "a.jpg", &asked("Is it red?")),
            question(262_144_001, "a.jpg", &asked("What is it?")),
            question(262_144_002, "a.jpg", &asked("How many are in the picture?")),
        ],
    );
    data.json(
        "vqav2/v2_mscoco_val2014_annotations.json",
        &json!({"annotations": (262_144_000..262_144_003)
            .map(|id| json!({"question_id": id, "answers": ten("yes")}))
            .collect::<Vec<_>>()}),
    );
    data.picture("gqa/data/images/n1.jpg");
    data.lines(
        "gqa/llava_gqa_testdev_balanced.jsonl",
        &[
            question("201", "n1.jpg", &asked("Is it on the left?")),
            question("202", "n1.jpg", &asked("Who?")),
        ],
    );
    data.json(
        "gqa/data/testdev_balanced_questions.json",
        &json!({"201": {"answer": "yes", "imageId": "n1", "question": "Is it on the left?"},
            "202": {"answer": "man", "imageId": "n1", "question": "Who?"}}),
    );
    data.picture("vizwiz/test/V_0.jpg");
    data.lines(
        "vizwiz/llava_test.jsonl",
        &[question(
            0,
            "V_0.jpg",
            &asked("What?\nWhen the provided information is insufficient, respond with 'Unanswerable'."),
        )],
    );
    data.json(
        "vizwiz/val.json",
        &json!([{"image": "V_0.jpg", "answers": ten("unanswerable"), "question": "What?"}]),
    );
    data.picture("scienceqa/images/test/4/image.png");
    data.json(
        "scienceqa/llava_test_CQM-A.json",
        &json!([
            {"id": "4", "image": "4/image.png", "conversations":
                [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"},
                 {"from": "gpt", "value": "The answer is B."}]},
            {"id": "5", "conversations": [{"from": "human", "value": "Why?\nA. x\nB. y"}]},
        ]),
    );
    data.json("scienceqa/pid_splits.json", &json!({"test": ["4", "5"]}));
    data.json(
        "scienceqa/problems.json",
        &json!({"4": {"choices": ["x", "y"], "answer": 1, "hint": "", "image": "image.png"},
            "5": {"choices": ["x", "y"], "answer": 0, "hint": "text", "image": null}}),
    );
    data.picture("textvqa/train_images/im1.jpg");
    data.lines(
        "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        &[
            question(
                "im1",
                "im1.jpg",
                "what brand?\nReference OCR token: X, Y\nAnswer.",
            ),
            question(
                "im1",
                "im1.jpg",
                "what year?\nReference OCR token: X, Y\nAnswer.",
            ),
        ],
    );
    data.json(
        "textvqa/TextVQA_0.5.1_val.json",
        &json!({"data": [
            {"image_id": "im1", "question": "what brand?", "answers": vec!["x"; 10]},
            {"image_id": "im1", "question": "what year?", "answers": vec!["1999"; 10]}]}),
    );
    data.picture("pope/val2014/p.jpg");
    let mut questions = vec![];
    for (index, category) in ["adversarial", "popular", "random"].iter().enumerate() {
        let mut labels = vec![];
        for (number, label) in ["yes", "no"].iter().enumerate() {
            let asked = format!("Is there a {label} {category} dog?");
            questions.push(json!({"question_id": 2 * index + number, "image": "p.jpg",
                "text": format!("{asked}\n{SHORT}"), "category": category}));
            labels.push(
                json!({"question_id": number, "image": "p.jpg", "text": asked, "label": label}),
            );
        }
        data.lines(&format!("pope/coco/coco_pope_{category}.json"), &labels);
    }
    data.lines("pope/llava_pope_test.jsonl", &questions);
    data.picture("mm-vet/images/v.png");
    data.lines(
        "mm-vet/llava-mm-vet.jsonl",
        &[question(0, "v.png", "What is x in the equation?")],
    );
    data.json(
        "mm-vet/mm-vet.json",
        &json!({"v1_0": {"imagename": "v.png", "question": "What is x in the equation?",
            "answer": "-1", "capability": ["math"]}}),
    );
    data.picture("llava-bench-in-the-wild/images/001.jpg");
    data.lines(
        "llava-bench-in-the-wild/questions.jsonl",
        &[json!({"question_id": 0, "image": "001.jpg", "category": "conv", "text": "Where?"})],
    );
    data.lines(
        "llava-bench-in-the-wild/context.jsonl",
        &[json!({"id": 1, "image": "001.jpg", "caption": "A hill."})],
    );
    data.lines(
        "llava-bench-in-the-wild/answers_gpt4.jsonl",
        &[json!({"question_id": 0, "text": "Hawaii.", "answer_id": "g1"})],
    );
    let image = base64::engine::general_purpose::STANDARD.encode(picture());
    let header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit";
    for name in ["mmbench_dev_20230712.tsv", "mmbench_dev_cn_20231003.tsv"] {
        let rows = format!(
            "{header}\n0\tWhich?\tA hint.\tx\ty\tz\t\tB\tcat\t{image}\tsrc\tl2\t\tdev\n\
             1\tWhere?\t\tleft\tright\t\t\tA\tcat\t{image}\tsrc\tl2\t\tdev\n"
        );
        data.file(&format!("mmbench/{name}"), rows);
    }
    let release = "MME/MME_Benchmark_release_version";
    data.picture(&format!("{release}/color/001.jpg"));
    data.file(
        &format!("{release}/color/001.txt"),
        "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n",
    );
    data.lines(
        "MME/llava_mme.jsonl",
        &["Is it red?", "Is it blue?"].map(|asked| {
            question(
                "color/001.jpg",
                "color/001.jpg",
                &format!("{asked} Please answer yes or no.\n{SHORT}"),
            )
        }),
    );
    data.picture("seed_bench/SEED-Bench-image/s.jpg");
    data.lines(
        "seed_bench/llava-seed-bench.jsonl",
        &[question(11, "SEED-Bench-image/s.jpg", "What?\nA. x\nB. y")],
    );
    data.json(
        "seed_bench/SEED-Bench.json",
        &json!({"question_type": {"Scene Understanding": 1}, "questions": [{"question_id": "11",
            "answer": "A", "data_type": "image", "question_type_id": 1}]}),
    );
    for (folder, key) in [
        ("coco", "caption"),
        ("flickr30k", "caption"),
        ("nocaps", "caption"),
        ("conceptual", "label"),
    ] {
        data.picture(&format!("{folder}/images/c.jpg"));
        data.lines(
            &format!("{folder}/question3.jsonl"),
            &[
                question(0, "c.jpg", "Describe the image."),
                question(1, "c.jpg", "What is shown?"),
            ],
        );
        data.json(
            &format!("{folder}/annotations.json"),
            &json!([{key: "a red dog"}, {key: "a blue bird"}]),
        );
    }
    data
}

/// Names of the benchmarks that are made above.
const NAMES: [&str; 16] = [
    "vqav2",
    "gqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "pope",
    "mm-vet",
    "llava-bench",
    "mmbench",
    "mmbench-cn",
    "mme",
    "seed",
    "coco",
    "flickr30k",
    "nocaps",
    "conceptual",
];

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_benchmark_end_to_end_and_batches_change_nothing() {
    let data = every_benchmark();
    let out = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| out.path().join(name);
    for batch in ["8", "1"] {
        let out = folder(batch);
        let shown = run_eval(&[
            "--data",
            text(data.path()),
            "--out",
            text(&out),
            "--batch",
            batch,
        ]);
        assert!(shown.contains("LLaVA-1.5-7B (published)"), "{shown}");
        assert!(shown.contains("questions/s"), "{shown}");
    }
    for name in NAMES {
        let answers = read(&folder("8").join(name).join("answers.jsonl"));
        assert!(!answers.is_empty(), "{name}");
        let alone = read(&folder("1").join(name).join("answers.jsonl"));
        assert_eq!(answers, alone, "{name}: batches of 8 beside one at a time");
    }
    let results: Value =
        serde_json::from_str(&read(&folder("8").join("results.json"))).expect("JSON");
    let benchmarks = results["benchmarks"].as_array().expect("benchmarks");
    let names: Vec<&str> = benchmarks
        .iter()
        .map(|b| b["benchmark"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, NAMES);
    for benchmark in benchmarks {
        let judged = ["mm-vet", "llava-bench"].contains(&benchmark["benchmark"].as_str().unwrap());
        let metrics = benchmark["metrics"].as_array().expect("metrics");
        assert_eq!(metrics.is_empty(), judged, "{benchmark}");
        assert_eq!(benchmark["questions"], benchmark["answered"], "{benchmark}");
        for kind in [
            "missing answer",
            "bad reference",
            "answer to no question",
            "missing image",
        ] {
            assert!(
                benchmark["problems"]["counts"].get(kind).is_none(),
                "{benchmark}"
            );
        }
    }
    for upload in [
        "vqav2/upload/vqav2_upload.json",
        "gqa/upload/testdev_balanced_predictions.json",
        "vizwiz/upload/vizwiz_upload.json",
        "scienceqa/upload/scienceqa_result.json",
        "mm-vet/upload/mm-vet_predictions.json",
        "mmbench/upload/mmbench_upload.xlsx",
        "mmbench-cn/upload/mmbench_upload.xlsx",
        "mme/upload/mme/color.txt",
        "seed/upload/seed_upload.jsonl",
        "coco/upload/captions_result.json",
    ] {
        let bytes =
            std::fs::read(folder("8").join(upload)).unwrap_or_else(|e| panic!("{upload}: {e}"));
        let again = std::fs::read(folder("1").join(upload)).expect("read");
        assert!(!bytes.is_empty() && bytes == again, "{upload}");
    }
    // The answers alone give the same results, without a model.
    let rule = data.path().join("rule.json");
    data.json(
        "rule.json",
        &json!({"llava_bench_conv": {"role": "Assistant", "prompt": "Judge."}}),
    );
    let scores = folder("scores");
    run(&[
        "score",
        "--data",
        text(data.path()),
        "--answers",
        text(&folder("8")),
        "--out",
        text(&scores),
        "--rubric",
        text(&rule),
    ]);
    for name in ["results.json", "results.md"] {
        assert_eq!(
            read(&scores.join(name)),
            read(&folder("8").join(name)),
            "{name}"
        );
    }
    for name in ["mm-vet", "llava-bench"] {
        let request = read(&scores.join(name).join("judge_requests.jsonl"));
        let request: Value = serde_json::from_str(request.trim()).expect("one request");
        assert!(request["content"].is_string(), "{request}");
    }
}

/// Thirty questions about one picture.
fn many() -> Data {
    let data = Data::new();
    data.picture("images/a.png");
    let questions: Vec<Value> = (0..30)
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
    assert_eq!(expected.lines().count(), 30);

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
        (3..30).contains(&answered),
        "{answered} answers when it was killed"
    );
    // Half a line, as a machine that loses its power leaves it.
    let mut torn = left.clone();
    torn.extend(b"{\"question_id\": 29, \"prom");
    std::fs::write(&file, &torn).expect("written");

    let shown = run_eval(&arguments);
    let line = format!("{answered} answered before, {} now", 30 - answered);
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
    assert!(shown.contains("30 answered before, 0 now"), "{shown}");
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
