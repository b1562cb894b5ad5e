//! What lies in checkpoint directories, and what the real command makes of it.

#[path = "checkpoint/own_templates.rs"]
mod own_templates;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::Value;
use serde_json::json;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Standard output and standard error of a run that must succeed.
fn said(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    (String::from_utf8(output.stdout).expect("UTF-8"), error)
}

/// The one line on standard error of a run that must fail.
fn complaint(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert!(
        !error.contains("panicked") && !error.contains("gave up"),
        "{error}"
    );
    error
}

/// A tiny LLaVA in the original layout with its tokenizer and image processor.
fn checkpoint() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let base = golden::folders("a_llava_gqa").remove(0).join("orig");
    let files = golden::folders("i_").remove(0);
    for folder in [base, files] {
        for path in golden::entries(&folder) {
            if path.is_file() {
                let name = golden::file_name(&path);
                std::fs::copy(&path, dir.path().join(name)).expect("copied");
            }
        }
    }
    dir
}

/// Changes a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = if path.is_file() {
        golden::json(path)
    } else {
        json!({})
    };
    change(&mut json);
    std::fs::write(path, json.to_string()).expect("written");
}

fn ask<'a>(model: &'a Path, rest: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec![
        "ask",
        "--device",
        "cpu",
        "--max-new-tokens",
        "2",
        "--json",
        "--model",
    ];
    words.push(text(model));
    words.extend(rest);
    words
}

fn export(model: &Path, out: &Path) {
    let layout = ["--layout", "llava-hf", "--save-dtype", "f32"];
    let words = [
        "export",
        "--device",
        "cpu",
        "--model",
        text(model),
        "--out",
        text(out),
    ];
    said(&[&words[..], &layout].concat());
}

fn picture() -> PathBuf {
    let folder = golden::folders("e_").remove(0);
    let mut files = golden::entries(&folder).into_iter();
    files
        .find(|path| path.extension().is_some_and(|e| e == "jpg"))
        .expect("a JPEG")
}

#[test]
fn an_export_for_llama_cpp_answers_alike() {
    let (dir, out) = (checkpoint(), tempfile::tempdir().expect("a folder"));
    let out = out.path().join("tiny");
    let export = |rest: &[&'static str]| {
        let model = text(dir.path()).to_owned();
        let mut words = vec!["export", "--device", "cpu", "--layout", "gguf"];
        words.extend(["--model", &model, "--out", text(&out)]);
        words.extend(rest);
        run(&words)
    };
    let output = export(&["--quantize", "f32", "--without-prototypes"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let (model, mmproj) = (out.join("tiny-f32.gguf"), out.join("mmproj-tiny-f32.gguf"));
    let files = format!("{}\n{}\n", model.display(), mmproj.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), files);

    let picture = picture();
    let words = [text(&picture), "What is this?"];
    let mmproj = ["--mmproj", text(&mmproj), words[0], words[1]];
    let (ours, _) = said(&ask(dir.path(), &words));
    let (theirs, _) = said(&ask(&model, &mmproj));
    let ids = |answer: &str| {
        let json: Value = serde_json::from_str(answer).expect("JSON");
        (json["input_ids"].clone(), json["output_ids"].clone())
    };
    assert_eq!(ids(&ours), ids(&theirs));
    assert!(ids(&ours).1.is_array(), "{ours}");

    // A type of GGUF files is none to compute in, and none of this program's own.
    for (words, named) in [
        (&["--quantize", "q8"][..], "q8_0"),
        (&["--quantize", "q9"], "known are"),
        (&["--quantize", "f32"], "is there already"),
    ] {
        let output = export(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(named), "{error}");
    }
    let mut loading = ask(&model, &mmproj);
    loading.extend(["--quantize", "q4_k"]);
    assert!(complaint(&loading).contains("--layout gguf"));
}

#[test]
fn fault_07_a_llava_hf_export_has_all_that_transformers_needs() {
    let (dir, out) = (checkpoint(), tempfile::tempdir().expect("a folder"));
    let out = out.path().join("hf");
    export(dir.path(), &out);
    let config = golden::json(&out.join("config.json"));
    let image = config["image_token_index"].as_u64().expect("an id") as usize;
    let weights = golden::Tensors::read(&out.join("model.safetensors"));
    for name in ["model.embed_tokens", "lm_head"] {
        let name = format!("language_model.{name}.weight");
        let shape = weights.shape(&name);
        assert!(shape[0] > image, "{shape:?}");
        assert_eq!(
            shape[0],
            config["text_config"]["vocab_size"].as_u64().expect("rows") as usize
        );
    }
    let tokenizer = golden::json(&out.join("tokenizer.json"));
    let added = tokenizer["added_tokens"].as_array().expect("a list");
    let token = added
        .iter()
        .find(|t| t["content"] == "<image>")
        .expect("<image>");
    assert_eq!(
        (token["id"].as_u64(), token["special"].as_bool()),
        (Some(image as u64), Some(true))
    );
    let processor = golden::json(&out.join("processor_config.json"));
    assert_eq!(
        (&processor["processor_class"], &processor["patch_size"]),
        (&json!("LlavaProcessor"), &json!(14))
    );
    // The original pads; transformers' CLIPImageProcessor would crop.
    let pictures = golden::json(&out.join("preprocessor_config.json"));
    assert_eq!(
        (&pictures["image_processor_type"], &pictures["do_pad"]),
        (&json!("LlavaImageProcessor"), &json!(true))
    );
    let template = std::fs::read_to_string(out.join("chat_template.jinja")).expect("a template");
    assert!(
        template.contains("<image>") && template.contains("ASSISTANT:"),
        "{template}"
    );
    assert!(out.join("generation_config.json").is_file());
}

#[test]
fn fault_07_a_llava_hf_export_of_a_cropping_model_crops() {
    let (dir, out) = (checkpoint(), tempfile::tempdir().expect("a folder"));
    edit(&dir.path().join("config.json"), |c| {
        c["image_aspect_ratio"] = json!("square")
    });
    let out = out.path().join("hf");
    export(dir.path(), &out);
    let pictures = golden::json(&out.join("preprocessor_config.json"));
    assert_eq!(pictures["image_processor_type"], "CLIPImageProcessor");
}

#[test]
fn fault_08_the_processor_of_transformers_5_counts() {
    let (dir, out) = (checkpoint(), tempfile::tempdir().expect("a folder"));
    let out = out.path().join("hf");
    export(dir.path(), &out);
    let image = picture();
    let pixels = || {
        let words = [
            "logits",
            "--device",
            "cpu",
            "--model",
            text(&out),
            "--ids=1,-200",
            "--image",
        ];
        let found: Value =
            serde_json::from_str(&said(&[&words[..], &[text(&image)]].concat()).0).expect("JSON");
        found["pixel_values"].clone()
    };
    let padded = pixels();
    // The same as transformers 5 saves it: inside processor_config.json.
    let own = out.join("preprocessor_config.json");
    let inner = golden::json(&own);
    edit(&out.join("processor_config.json"), |c| {
        c["image_processor"] = inner
    });
    std::fs::remove_file(&own).expect("removed");
    assert!(pixels() == padded);
    edit(&out.join("processor_config.json"), |c| {
        c["image_processor"]["do_pad"] = json!(false)
    });
    assert!(pixels() != padded, "do_pad is not honoured");
}

#[test]
fn fault_21_an_image_mark_in_a_question_is_plain_text() {
    let (dir, out) = (checkpoint(), tempfile::tempdir().expect("a folder"));
    let out = out.path().join("hf");
    export(dir.path(), &out);
    let id = golden::json(&out.join("config.json"))["image_token_index"].clone();
    let (image, question) = (picture(), "What does <image> mean in HTML?");
    for (pictures, words) in [(1, vec![text(&image), question]), (0, vec![question])] {
        let answer: Value = serde_json::from_str(&said(&ask(&out, &words)).0).expect("JSON");
        let ids = answer["input_ids"].as_array().expect("ids");
        assert!(!ids.contains(&id), "{ids:?}");
        assert_eq!(ids.iter().filter(|id| **id == -200).count(), pictures);
    }
}

#[test]
fn fault_31_the_chat_template_of_the_checkpoint_is_taken_and_mentioned_once() {
    let dir = checkpoint();
    let mentioned = || {
        let (_, error) = said(&ask(dir.path(), &["What?"]));
        error.matches("chat_template").count()
    };
    assert_eq!(mentioned(), 0);
    // What it brings is taken, and the line says so.
    let chatml =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    edit(&dir.path().join("tokenizer_config.json"), |c| {
        c["chat_template"] = json!(chatml)
    });
    assert_eq!(mentioned(), 1);
    let asked = |rest: &[&str]| -> (Value, String) {
        let (out, error) = said(&ask(dir.path(), rest));
        (serde_json::from_str(&out).expect("JSON"), error)
    };
    let own = asked(&["What?"]);
    assert!(own.1.contains("own chat_template"), "{}", own.1);
    assert_eq!(asked(&["--template", "checkpoint", "What?"]).0, own.0);
    let ours = asked(&["--template", "v1", "What?"]);
    assert_ne!(ours.0["input_ids"], own.0["input_ids"]);
    assert!(
        ours.1.contains("is not the conversation template v1"),
        "{}",
        ours.1
    );
    let unknown = run(&ask(dir.path(), &["--template", "chatml", "What?"]));
    let unknown = String::from_utf8_lossy(&unknown.stderr).into_owned();
    for name in ["chatml", "v1_sq", "checkpoint"] {
        assert!(unknown.contains(name), "{unknown}");
    }
    // A checkpoint that names the template itself is clear.
    edit(&dir.path().join("config.json"), |c| {
        c["sq_conversation"] = json!("v1")
    });
    assert_eq!(mentioned(), 0);
}

#[test]
fn fault_13_tokens_without_rows_are_refused() {
    let dir = checkpoint();
    edit(&dir.path().join("added_tokens.json"), |c| {
        *c = json!({"<image>": 319, "[PAD]": 320});
    });
    let error = complaint(&ask(dir.path(), &["What?"]));
    assert!(error.contains("[PAD]") && error.contains("320"), "{error}");
    // The placeholder alone needs no row.
    edit(&dir.path().join("added_tokens.json"), |c| {
        *c = json!({"<pad>": 319, "<image>": 320})
    });
    said(&ask(dir.path(), &["What?"]));
}

#[test]
fn fault_09_ids_above_the_number_of_tokens_are_still_chosen() {
    let (dir, out) = (checkpoint(), tempfile::tempdir().expect("a folder"));
    let out = out.path().join("hf");
    export(dir.path(), &out);
    let words = ["--max-new-tokens", "12", "What?"];
    let answer = || -> Value {
        let words = ["ask", "--device", "cpu", "--json", "--model", text(&out)]
            .iter()
            .chain(&words)
            .copied()
            .collect::<Vec<_>>();
        serde_json::from_str(&said(&words).0).expect("JSON")
    };
    let before = answer();
    let ids = |key: &str| -> Vec<u64> {
        let list = before[key].as_array().expect("ids").iter();
        list.filter_map(Value::as_u64).collect()
    };
    let (input, output) = (ids("input_ids"), ids("output_ids"));
    // Byte pieces are in no merge: without those that are not used the vocabulary has holes.
    let mut left = 0;
    edit(&out.join("tokenizer.json"), |tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"]
            .as_object_mut()
            .expect("a vocabulary");
        vocabulary.retain(|piece, id| {
            let id = id.as_u64().expect("an id");
            !piece.starts_with("<0x") || input.contains(&id) || output.contains(&id)
        });
        left = vocabulary.len() as u64;
    });
    assert!(output.iter().any(|&id| id > left), "{output:?} of {left}");
    assert_eq!(answer()["output_ids"], before["output_ids"]);
}

#[test]
fn fault_13_a_training_refuses_tokens_without_rows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let towers = root.join("../examples/assets/world-towers");
    let dir = tempfile::tempdir().expect("a folder");
    for path in golden::entries(&towers.join("llm")) {
        let name = golden::file_name(&path);
        std::fs::copy(&path, dir.path().join(name)).expect("copied");
    }
    edit(&dir.path().join("tokenizer.json"), |tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"]
            .as_object()
            .expect("a vocabulary");
        let ids = vocabulary.values().filter_map(Value::as_u64);
        let added = tokenizer["added_tokens"].as_array().expect("a list");
        let added = added.iter().filter_map(|token| token["id"].as_u64());
        let id = ids.chain(added).max().expect("an id") + 1;
        let pad = json!({"id": id, "content": "[PAD]", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        tokenizer["added_tokens"]
            .as_array_mut()
            .expect("a list")
            .push(pad);
    });
    let data = dir.path().join("data.json");
    let sample = json!([{"id": "a", "conversations": [
        {"from": "human", "value": "What?"}, {"from": "gpt", "value": "one"}]}]);
    std::fs::write(&data, sample.to_string()).expect("written");
    let (recipe, out) = (
        root.join("../examples/configs/world.toml"),
        dir.path().join("run"),
    );
    let vision = towers.join("vision");
    let error = complaint(&[
        "train",
        "--device",
        "cpu",
        "--quiet",
        "--recipe",
        text(&recipe),
        "--llm",
        text(dir.path()),
        "--vision",
        text(&vision),
        "--images",
        text(dir.path()),
        "--data",
        text(&data),
        "--set",
        "stages=[1]",
        "--out",
        text(&out),
    ]);
    assert!(error.contains("[PAD]") && error.contains("rows"), "{error}");
}

#[test]
fn fault_03_an_unknown_key_is_refused_unless_let_pass() {
    let dir = checkpoint();
    edit(&dir.path().join("config.json"), |c| {
        c["partial_rotary_factor"] = json!(0.5)
    });
    let error = complaint(&ask(dir.path(), &["What?"]));
    assert!(
        error.contains("partial_rotary_factor") && error.contains("config.json"),
        "{error}"
    );
    let (_, warning) = said(&ask(dir.path(), &["--allow-unused", "What?"]));
    assert!(warning.contains("partial_rotary_factor"), "{warning}");
}

#[test]
fn fault_29_a_tokenizer_file_that_the_library_panics_at_is_one_line() {
    let dir = checkpoint();
    let damaged =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../sq-llava-data/tests/fixtures/damaged");
    for file in golden::entries(&damaged) {
        std::fs::copy(&file, dir.path().join("tokenizer.json")).expect("copied");
        let error = complaint(&ask(dir.path(), &["What?"]));
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}
