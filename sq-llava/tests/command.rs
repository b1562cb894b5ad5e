//! The real command, end to end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Standard output of a run that must succeed.
fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The one line on standard error of a run that must fail.
fn complaint(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(output.stdout.is_empty(), "{arguments:?} said something");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// Part i: each file of cases, with the folder of its tokenizer.
fn part_i() -> Vec<(PathBuf, Value)> {
    let found: Vec<(PathBuf, Value)> = golden::folders("i_")
        .into_iter()
        .flat_map(|folder| golden::entries(&folder))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| {
            (
                path.parent().expect("a folder").to_path_buf(),
                golden::json(&path),
            )
        })
        .filter(|(_, json)| json.get("cases").is_some())
        .collect();
    assert!(!found.is_empty(), "no cases in part i");
    found
}

/// A layout of the checkpoint together with tokenizer and preprocessor, as people have them.
fn checkpoint(layout: &str) -> Option<tempfile::TempDir> {
    let (files, cases) = part_i().remove(0);
    let hint = cases["checkpoint"].as_str().unwrap_or_default();
    let source = golden::base_folder(hint, None).join(layout);
    if !source.is_dir() {
        return None;
    }
    let dir = tempfile::tempdir().expect("a folder");
    for path in golden::entries(&source)
        .iter()
        .chain(&golden::entries(&files))
    {
        let name = golden::file_name(path);
        if path.is_file() && !cases_file(path) {
            std::fs::copy(path, dir.path().join(name)).expect("copied");
        }
    }
    if layout == "hf" {
        // What LLaVA's config.json says, the llava-hf layout says in its processor's file.
        let path = dir.path().join("preprocessor_config.json");
        let mut processor = golden::json(&path);
        processor["image_processor_type"] = "LlavaImageProcessor".into();
        processor["do_pad"] = true.into();
        std::fs::write(&path, processor.to_string()).expect("written");
    }
    Some(dir)
}

fn cases_file(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json") && golden::json(path).get("cases").is_some()
}

fn picture(name: &str) -> PathBuf {
    golden::folders("e_")
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no picture {name} in part e"))
}

fn ask(model: &Path, cases: &Value, case: &Value) -> Value {
    let image = picture(case["image"].as_str().expect("image"));
    let limit = cases["max_new_tokens"].to_string();
    let output = said(&[
        "ask",
        "--model",
        text(model),
        "--device",
        "cpu",
        "--json",
        "--conv",
        cases["conv"].as_str().expect("conv"),
        "--max-new-tokens",
        &limit,
        text(&image),
        case["question"].as_str().expect("question"),
    ]);
    serde_json::from_str(&output).expect("one JSON object")
}

fn check_cases(model: &Path) {
    let mut compared = 0;
    for (_, cases) in part_i() {
        for case in cases["cases"].as_array().expect("cases") {
            let answer = ask(model, &cases, case);
            for key in ["input_ids", "output_ids", "text"] {
                assert_eq!(answer[key], case[key], "{}: {key}", case["question"]);
            }
            compared += 1;
        }
    }
    assert!(compared > 0, "no case in part i");
}

#[test]
fn golden_a_logits_of_token_ids() {
    let model = checkpoint("orig").expect("orig");
    let config = golden::json(&model.path().join("config.json"));
    let base = golden::base_folder("", Some(&config));
    let case = golden::cases_in(&base).remove(0);
    let tensors = case.tensors;
    let width = tensors.shape("text_ids")[1];
    let vocabulary = tensors.shape("text_logits")[2];
    let real = tensors.i64("text_mask")[..width].iter().sum::<i64>() as usize;
    let ids: Vec<String> = tensors.i64("text_ids")[..real]
        .iter()
        .map(ToString::to_string)
        .collect();
    let ids = format!("--ids={}", ids.join(","));
    let output = said(&[
        "logits",
        "--model",
        text(model.path()),
        "--device",
        "cpu",
        &ids,
    ]);
    let found: Value = serde_json::from_str(&output).expect("one JSON object");
    let found = &found["logits"];
    assert_eq!(found["shape"], serde_json::json!([real, vocabulary]));
    let values = found["values"].as_array().expect("values").iter();
    let values: Vec<f32> = values
        .map(|v| v.as_f64().expect("a number") as f32)
        .collect();
    let reference = &tensors.f64("text_logits")[..real * vocabulary];
    golden::assert_close("logits", &values, reference, 2e-4);
}

#[test]
fn golden_i_ask_original_layout() {
    check_cases(checkpoint("orig").expect("orig").path());
}

#[test]
fn golden_i_ask_llava_hf_layout() {
    // The second reference set may hold the original layout only.
    if let Some(dir) = checkpoint("hf") {
        check_cases(dir.path());
    }
}

#[test]
fn golden_i_exports_answer_alike() {
    let dir = checkpoint("orig").expect("orig");
    for layout in ["original", "llava-hf"] {
        let out = dir.path().join(layout);
        said(&[
            "export",
            "--model",
            text(dir.path()),
            "--device",
            "cpu",
            "--layout",
            layout,
            "--out",
            text(&out),
            "--save-dtype",
            "f32",
        ]);
        check_cases(&out);
    }
}

#[test]
fn question_counts_what_it_drew() {
    let dir = checkpoint("orig").expect("orig");
    // The released system message is long for a vocabulary of 319 pieces.
    let config = dir.path().join("config.json");
    let mut wider = golden::json(&config);
    wider["max_position_embeddings"] = 2048.into();
    std::fs::write(&config, wider.to_string()).expect("written");
    let image = picture(part_i()[0].1["cases"][0]["image"].as_str().expect("image"));
    let output = said(&[
        "question",
        "--model",
        text(dir.path()),
        "--device",
        "cpu",
        "--conv",
        "v1_sq",
        "--json",
        "--n",
        "3",
        "--max-new-tokens",
        "12",
        "--answer",
        text(&image),
    ]);
    let found: Value = serde_json::from_str(&output).expect("one JSON object");
    let questions = found["questions"].as_array().expect("questions");
    let drawn: i64 = questions
        .iter()
        .map(|q| q["count"].as_i64().expect("count"))
        .sum();
    assert!((1..=3).contains(&drawn), "{found}");
    assert!(questions.iter().all(|q| q["answer"].is_string()), "{found}");
    assert!(found["description"].is_string());
}

#[test]
fn chat_goes_on_after_a_mistake() {
    use std::io::Write;
    let dir = checkpoint("orig").expect("orig");
    let image = picture(part_i()[0].1["cases"][0]["image"].as_str().expect("image"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args([
            "chat",
            "--model",
            text(dir.path()),
            "--device",
            "cpu",
            "--max-new-tokens",
            "4",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the command starts");
    let lines = format!(
        "/image nowhere.png\n/image {}\nWhat?\nAnd?\n/quit\n",
        text(&image)
    );
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(lines.as_bytes()).expect("written");
    drop(input);
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(said.contains("error: nowhere.png"), "{said}");
    assert!(said.contains("is shown with the next question"), "{said}");
}

#[test]
fn inspect_counts_the_published_sizes() {
    let shown = said(&["inspect", "--preset", "sq-llava-7b"]);
    for number in [
        "319,815,680",
        "14,155,776",
        "13,565,952",
        "28,311,552",
        "4,198,400",
        "20,979,712",
    ] {
        assert!(shown.contains(number), "{number}: {shown}");
    }
    assert!(said(&["inspect", "--preset", "sq-llava-13b"]).contains("500,695,040"));
    // Tiles, and no prototypes.
    let tiles = said(&["inspect", "--preset", "onevision-qwen2-0.5b"]);
    for part in [
        "anyres_max_9",
        "36 resolutions, up to 37 tiles",
        "training as published",
    ] {
        assert!(tiles.contains(part), "{part}: {tiles}");
    }
    let mmproj = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sq-llava-model/tests/fixtures/mmproj/mmproj.gguf");
    let shown = said(&["inspect", text(&mmproj)]);
    for part in [
        "mmproj: ",
        "vision: clip_vision_model",
        "projector: mlp2x_gelu",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let report = said(&["inspect", "--json", text(&mmproj)]);
    let report: Value = serde_json::from_str(&report).expect("one JSON object");
    assert_eq!(report["config"]["mm_projector_type"], "mlp2x_gelu");
    assert!(report["parameters"]["projector"].as_u64() > Some(0));
    let dir = checkpoint("orig").expect("orig");
    let report = said(&["inspect", "--json", text(dir.path())]);
    let report: Value = serde_json::from_str(&report).expect("one JSON object");
    assert_eq!(report["report"]["missing"], Value::Array(vec![]));
}

#[test]
fn mistakes_get_one_line_that_names_them() {
    let dir = checkpoint("orig").expect("orig");
    let model = text(dir.path());
    let image = picture(part_i()[0].1["cases"][0]["image"].as_str().expect("image"));
    let ask = |more: &[&str]| {
        let mut arguments = vec!["ask", "--device", "cpu"];
        arguments.extend(more);
        complaint(&arguments)
    };
    assert!(ask(&["--model", "no/such/model", "Hi"]).contains("no/such/model"));
    assert!(ask(&["--model", model, "no/such.png", "Hi"]).contains("no/such.png"));
    let page = dir.path().join("page.png");
    std::fs::write(&page, "<html>not a picture</html>").expect("written");
    assert!(ask(&["--model", model, text(&page), "Hi"]).contains("page.png"));
    let long = "word ".repeat(2000);
    assert!(ask(&["--model", model, text(&image), &long]).contains("context"));
    let feature = complaint(&["ask", "--model", model, "--device", "cuda", "Hi"]);
    assert!(feature.contains("cuda"), "{feature}");

    let config = dir.path().join("config.json");
    let original = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, original.replace("\"llava\"", "\"seal\"")).expect("written");
    assert!(ask(&["--model", model, "Hi"]).contains("seal"));
    std::fs::write(&config, &original).expect("written");

    // A tokenizer with more tokens than the model has rows.
    let larger = golden::llama_tokenizer();
    let error = ask(&["--model", model, "--tokenizer", text(&larger), "Hi"]);
    assert!(error.contains("vocabulary"), "{error}");

    let shard = golden::entries(dir.path())
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .expect("weights");
    let bytes = std::fs::read(&shard).expect("read");
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).expect("written");
    let error = ask(&["--model", model, "Hi"]);
    assert!(error.contains(&golden::file_name(&shard)), "{error}");
}

#[test]
fn a_gguf_file_and_blocks_answer() {
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sq-llava-model/tests/fixtures/gguf/tied.gguf");
    let answer = |model: &Path, more: &[&str]| {
        let mut arguments = vec![
            "ask",
            "--model",
            text(model),
            "--device",
            "cpu",
            "--conv",
            "plain",
            "--max-new-tokens",
            "8",
            "--json",
            "What is it?",
        ];
        arguments.extend(more);
        let answer: Value = serde_json::from_str(&said(&arguments)).expect("JSON");
        answer["output_ids"].clone()
    };
    let whole = answer(&gguf, &[]);
    assert!(whole.as_array().is_some_and(|ids| !ids.is_empty()));
    // The file's own blocks hold the same numbers.
    assert_eq!(answer(&gguf, &["--quantize", "stored"]), whole);

    let out = tempfile::tempdir().expect("a folder");
    let out = out.path().join("q4");
    said(&[
        "export",
        "--model",
        text(&gguf),
        "--device",
        "cpu",
        "--quantize",
        "q4",
        "--out",
        text(&out),
    ]);
    let shown: Value =
        serde_json::from_str(&said(&["inspect", text(&out), "--json"])).expect("JSON");
    let formats = &shown["report"]["formats"];
    assert_eq!((&formats["q4"], &formats["q8"]), (&14.into(), &1.into()));
    assert!(answer(&out, &[]).as_array().is_some());
    let refused = run(&["ask", "--model", text(&gguf), "--quantize", "q5", "Hi"]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && message.contains("known are q8, q4"),
        "{message}"
    );
}

#[test]
fn bench_times_the_preparation_of_a_picture() {
    let photo = picture(part_i()[0].1["cases"][0]["image"].as_str().expect("image"));
    let photo = text(&photo);
    let options = ["bench", "--device", "cpu", "--shape", "image"];
    let timed = ["--image", photo, "--repeat", "1", "--json"];
    let shown = said(&[&options[..], &timed].concat());
    let rows: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .collect();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str()).collect();
    let name = |cores| Some(format!("image to 336×336, {cores}"));
    let wanted = [name("one core"), name("all cores")];
    assert_eq!(names, wanted.each_ref().map(Option::as_deref));
    for row in rows {
        assert!(row["per_second"].as_f64() > Some(0.0), "{row}");
    }
    let missing = complaint(&[&options[..], &["--image", "no-such.jpg"]].concat());
    assert!(missing.contains("no-such.jpg"), "{missing}");
    for (wrong, word) in [
        (&options[..], "--image"),
        (&["bench", "--batch", "0"], "at least one sequence"),
    ] {
        let output = run(wrong);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(word), "{error}");
    }
}
