//! What `ask`, `chat`, `question`, `logits` and `eval` do with damaged weights, pictures that are
//! none, and what people type.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use golden::Value;
use serde_json::json;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/assets/tiny-llava")
}

/// A picture among the data crate's, or of the reference data.
fn picture(name: &str) -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sq-llava-data/tests/images");
    let path = match name {
        "tiny_13x9.png" => golden::repository().join("e_image").join(name),
        _ => ours.join(name),
    };
    assert!(path.is_file(), "{}", path.display());
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A command with a model on the CPU, and short answers where it gives any.
fn command(name: &str, model: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command.args([name, "--model", text(model), "--device", "cpu"]);
    if name != "logits" {
        command.args(["--max-new-tokens", "4"]);
    }
    command.args(more);
    command
}

fn run(name: &str, model: &Path, more: &[&str]) -> Output {
    let mut command = command(name, model, more);
    command.output().expect("the command starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one line on standard error of a run that must fail.
fn complaint(name: &str, model: &Path, more: &[&str]) -> String {
    let output = run(name, model, more);
    let error = errors(&output);
    assert!(!output.status.success(), "{name} {more:?} succeeded");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert!(
        !error.contains("panicked") && !error.contains("gave up"),
        "{error}"
    );
    error
}

fn said(name: &str, model: &Path, more: &[&str]) -> String {
    let output = run(name, model, more);
    assert!(output.status.success(), "{}", errors(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A copy of the tiny checkpoint with a context that holds the released system message, too. The
/// tensor of this name holds one number throughout.
fn with_tensor(name: &str, value: f32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut found = false;
    for entry in std::fs::read_dir(model()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("read");
        if path.ends_with("config.json") {
            let mut config: Value = serde_json::from_slice(&bytes).expect("JSON");
            config["max_position_embeddings"] = 2048.into();
            bytes = config.to_string().into_bytes();
        }
        if path.extension().is_some_and(|e| e == "safetensors") {
            let length = bytes[..8].try_into().expect("eight bytes");
            let start = 8 + u64::from_le_bytes(length) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..start]).expect("JSON");
            if let Some(tensor) = header.get(name) {
                assert_eq!(tensor["dtype"], "F32");
                let place =
                    |i: usize| tensor["data_offsets"][i].as_u64().expect("a place") as usize;
                let data = &mut bytes[start + place(0)..start + place(1)];
                for number in data.chunks_exact_mut(4) {
                    number.copy_from_slice(&value.to_le_bytes());
                }
                found = true;
            }
        }
        let name = path.file_name().expect("a name");
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    assert!(found, "no tensor {name}");
    folder
}

const TOWER: &str = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight";

#[test]
fn fault_17_nan_is_an_error_that_says_where_it_began() {
    let photo = picture("tiny_13x9.png");
    let photo = text(&photo);
    for (tensor, place) in [
        ("model.mm_projector.0.weight", "the projector"),
        (TOWER, "layer 0 of the vision tower"),
        (
            "model.layers.1.mlp.down_proj.weight",
            "layer 1 of the language model",
        ),
        ("lm_head.weight", "the output head"),
        ("model.embed_tokens.weight", "the token embedding"),
    ] {
        let damaged = with_tensor(tensor, f32::NAN);
        let error = complaint("ask", damaged.path(), &[photo, "What?"]);
        for part in ["not finite", place, "dtype", "damaged"] {
            assert!(error.contains(part), "{tensor}: {error}");
        }
    }
}

#[test]
fn fault_17_every_command_checks_the_numbers() {
    let photo = picture("tiny_13x9.png");
    let photo = text(&photo);
    let damaged = with_tensor("model.mm_projector.0.weight", f32::NAN);
    let dir = damaged.path();
    for error in [
        complaint("ask", dir, &["--temperature", "1", photo, "What?"]),
        // Int8 rounds its inputs to integers, in which NaN is 0.
        complaint("ask", dir, &["--quantize", "q8", photo, "What?"]),
        complaint("question", dir, &["--conv", "v1_sq", photo]),
        complaint(
            "question",
            dir,
            &["--conv", "v1_sq", "--no-describe", photo],
        ),
        complaint("logits", dir, &["--ids=1,5,-200,9", "--image", photo]),
    ] {
        assert!(error.contains("the projector"), "{error}");
    }
    // Text alone does not pass there.
    said("ask", dir, &["What?"]);
    let output = talk(dir, format!("/image {photo}\nWhat?\n/reset\nWhat?\n"));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("error: the model's numbers"), "{shown}");
    assert!(output.status.success(), "{shown}");
    let broken = with_tensor("model.layers.2.mlp.up_proj.weight", f32::INFINITY);
    let error = complaint("logits", broken.path(), &["--ids=1,5,9"]);
    assert!(error.contains("layer 2 of the language model"), "{error}");
}

#[test]
fn fault_17_a_dtype_that_is_too_narrow_is_named() {
    // As an f16 this is infinite.
    let large = with_tensor("model.layers.2.mlp.down_proj.weight", 1e6);
    let error = complaint("ask", large.path(), &["--dtype", "f16", "What?"]);
    for part in ["layer 2 of the language model", "f16", "bf16 or f32"] {
        assert!(error.contains(part), "{error}");
    }
    for dtype in ["bf16", "f32"] {
        said("ask", large.path(), &["--dtype", dtype, "What?"]);
    }
}

#[test]
fn fault_17_eval_keeps_its_answers_and_names_the_question() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::copy(picture("tiny_13x9.png"), path("a.png")).expect("copied");
    let lines = [
        json!({"question_id": "text", "text": "What?"}),
        json!({"question_id": "seen", "image": "a.png", "text": "What?"}),
    ];
    std::fs::write(
        path("q.jsonl"),
        lines.map(|line| format!("{line}\n")).concat(),
    )
    .expect("written");
    let damaged = with_tensor("model.mm_projector.0.weight", f32::NAN);
    let (questions, out) = (path("q.jsonl"), path("out"));
    let arguments = [
        "--benchmark",
        "generic",
        "--questions",
        text(&questions),
        "--images",
        text(folder.path()),
        "--out",
        text(&out),
        "--batch",
        "1",
    ];
    let error = complaint("eval", damaged.path(), &arguments);
    assert!(
        error.contains("question seen") && error.contains("the projector"),
        "{error}"
    );
    let answers = std::fs::read_to_string(path("out/generic/answers.jsonl")).expect("answers");
    assert_eq!(answers.lines().count(), 1, "{answers}");
}

#[test]
fn fault_23_a_picture_alone_is_no_question() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    // By its ending, and by what it holds.
    std::fs::copy(picture("tiny_13x9.png"), path("photo")).expect("copied");
    std::fs::write(path("photo.JPG"), "").expect("written");
    std::fs::write(path("notes.txt"), "Where?").expect("written");
    for name in ["photo", "photo.JPG"] {
        let photo = path(name);
        let error = complaint("ask", &model(), &[text(&photo)]);
        assert!(error.contains("question about it is missing"), "{error}");
        let error = complaint("ask", &model(), &["What?", text(&photo)]);
        assert!(error.contains("the picture comes first"), "{error}");
    }
    // Other words are a question, whatever else they name.
    said("ask", &model(), &[text(&path("notes.txt"))]);
    let output = talk(&model(), format!("{}\n", path("photo").display()));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("to show a picture: /image"), "{shown}");
}

/// Standard output and error of a talk.
fn talk(model: &Path, lines: impl AsRef<[u8]>) -> Output {
    let mut child = command("chat", model, &[])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(lines.as_ref()).expect("written");
    drop(input);
    child.wait_with_output().expect("it ends")
}

#[test]
fn fault_30_chat_takes_paths_as_terminals_write_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("my dir");
    std::fs::create_dir(&dir).expect("made");
    std::fs::copy(picture("tiny_13x9.png"), dir.join("p x.png")).expect("copied");
    let path = dir.join("p x.png");
    let path = text(&path);
    let lines = [
        format!("/image {path}"),
        format!("/image \"{path}\""),
        format!("/image '{path}'"),
        format!("/image {}", path.replace(' ', "\\ ")),
    ];
    let mut typed = lines.join("\n").into_bytes();
    typed.extend(b"\nbad \xff\nWhat?\n");
    let output = talk(&model(), typed);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(shown.matches("p x.png is shown").count(), 4, "{shown}");
    assert_eq!(shown.matches("error: ").count(), 1, "{shown}");
    assert!(shown.contains("error: this line is not UTF-8"), "{shown}");
}

#[test]
fn fault_30_exif_is_mentioned_once_and_applied_when_asked() {
    let photo = picture("exif6.jpg");
    let photo = text(&photo);
    let output = run("ask", &model(), &["--image", photo, photo, "What?"]);
    let warned = errors(&output);
    assert!(output.status.success(), "{warned}");
    assert_eq!(warned.matches("EXIF").count(), 1, "{warned}");
    let ids = |more: &[&str]| {
        let arguments: Vec<&str> = more.iter().copied().chain([photo, "What?"]).collect();
        let output = run("ask", &model(), &arguments);
        assert!(output.status.success(), "{}", errors(&output));
        (errors(&output), output.stdout)
    };
    let (warned, turned) = ids(&["--exif", "--json"]);
    assert!(!warned.contains("EXIF"), "{warned}");
    assert_ne!(turned, ids(&["--json"]).1, "the picture was not turned");
    let wide = with_tensor("model.norm.weight", 1.0);
    let asked = ["--conv", "v1_sq", "--exif", photo];
    said("question", wide.path(), &asked);
}

#[cfg(unix)]
#[test]
fn fault_29_pictures_that_are_none_are_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe.png");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    for (path, word) in [
        (pipe, "a pipe"),
        (folder.path().to_path_buf(), "a folder"),
        (picture("palette.png"), "palette.png"),
        (picture("upsample.jpg"), "upsample.jpg"),
        (picture("colour.jpg"), "colour.jpg"),
        (picture("planes.jpg"), "planes.jpg"),
    ] {
        let error = complaint("ask", &model(), &[text(&path), "What?"]);
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn fault_29_a_decoder_that_panics_costs_one_question() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for name in ["tiny_13x9.png", "palette.png", "planes.jpg"] {
        std::fs::copy(picture(name), path(name)).expect("copied");
    }
    let names = [
        "tiny_13x9.png",
        "palette.png",
        "planes.jpg",
        "tiny_13x9.png",
    ];
    let lines: String = names
        .iter()
        .enumerate()
        .map(|(id, name)| json!({"question_id": id, "image": name, "text": "What?"}))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(path("q.jsonl"), lines).expect("written");
    let (questions, out) = (path("q.jsonl"), path("out"));
    let arguments = [
        "--benchmark",
        "generic",
        "--questions",
        text(&questions),
        "--images",
        text(folder.path()),
        "--out",
        text(&out),
    ];
    let shown = said("eval", &model(), &arguments);
    for line in ["missing image: question 1", "missing image: question 2"] {
        assert!(shown.contains(line), "{shown}");
    }
    let answers = std::fs::read_to_string(path("out/generic/answers.jsonl")).expect("answers");
    assert_eq!(answers.lines().count(), 2, "{answers}");
}
