//! llama.cpp's own programs answer with the files that are written for it as the model does.
//!
//! They are looked for in the folder that `SQ_LLAVA_LLAMA_CPP` names, then on the search path, and
//! the tests say so and pass where they are not built.

#![allow(clippy::print_stderr)] // A test that cannot run says why.

mod weights;

use std::path::{Path, PathBuf};
use std::process::Command;

use golden::Value;
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::ImageProcessor;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{GgufOptions, GgufType, LoadOptions, save_gguf};
use sq_llava_model::{IMAGE_TOKEN_INDEX, Sample, SqLlava};
use weights::*;

/// Tokens of an answer.
const TOKENS: usize = 12;

/// How often a program is asked whose text is cut: what it has printed as it ends may be lost.
const TIMES: usize = 20;

/// What llama.cpp puts where a picture is.
const MARKER: &str = "<__media__>";

/// One of llama.cpp's programs, or `None` after saying how to build it.
fn program(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("SQ_LLAVA_LLAMA_CPP").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = named.into_iter().chain(std::env::split_paths(&path));
    let found = folders
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!(
            "skipped: no {name}; build it (`cmake -B build -DLLAMA_CURL=OFF && cmake --build build \
             --target {name}` in llama.cpp) and name its folder with SQ_LLAVA_LLAMA_CPP"
        );
    }
    found
}

/// A whole model and the files that were written of it.
struct Case {
    dir: PathBuf,
    json: Value,
    model: SqLlava<B>,
    tokenizer: TextTokenizer,
    processor: ImageProcessor,
    out: tempfile::TempDir,
    files: Vec<PathBuf>,
}

/// Cases with tower and projector that llama.cpp can compute.
fn cases() -> Vec<Case> {
    let mut found = Vec::new();
    for dir in golden::entries(&golden::families()) {
        let outputs = dir.join("outputs.json");
        if !outputs.is_file() || golden::json(&outputs)["kind"] != "vlm" {
            continue;
        }
        let folder = dir.join("model");
        let Ok(loaded) = try_load(&folder, &LoadOptions::default()) else {
            continue;
        };
        let tokenizer = TextTokenizer::from_dir(&folder).unwrap();
        let processor = ImageProcessor::from_dir(&folder, None).unwrap();
        let out = tempfile::tempdir().unwrap();
        let options = GgufOptions {
            tokenizer: &tokenizer,
            chat_template: tokenizer.chat_template(),
            processor: Some(&processor),
            matrices: GgufType::F32,
            context: None,
            name: "tiny",
        };
        match save_gguf(&loaded.model, out.path(), &options) {
            Ok(saved) => found.push(Case {
                json: golden::json(&outputs),
                model: loaded.model,
                files: saved.files,
                dir,
                tokenizer,
                processor,
                out,
            }),
            Err(error) => eprintln!("{}: {error}", dir.display()),
        }
    }
    assert!(!found.is_empty(), "no whole model for llama.cpp");
    found
}

impl Case {
    /// What a program answers, as text.
    fn run(&self, program: &Path, arguments: &[&str]) -> String {
        let model = self.files[0].to_str().expect("a UTF-8 path");
        let tokens = TOKENS.to_string();
        let output = Command::new(program)
            .args([
                "-m", model, "-n", &tokens, "--temp", "0", "-c", "512", "-t", "1",
            ])
            // Keys and values in f32, as here; no kernel that rounds them.
            .args(["-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup"])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .expect("the program starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}", self.dir.display());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The text of an answer as a program prints it: up to an end token, and without the byte that
    /// ends a text in C.
    fn text(&self, ids: &[i64]) -> String {
        let ends = |id: &&i64| !self.tokenizer.is_special(**id);
        let said: Vec<i64> = ids.iter().take_while(ends).copied().collect();
        let text = self.tokenizer.decode(&said, false).unwrap();
        text.replace('\0', "")
    }

    fn same(&self, what: &str, program: &Path, arguments: &[&str], ids: &[i64]) {
        let expected = self.text(ids);
        let length = |text: &str| text.trim().chars().count();
        let mut found = self.run(program, arguments);
        for _ in 1..TIMES {
            if length(&found) >= length(&expected) {
                break;
            }
            found = self.run(program, arguments);
        }
        let name = golden::file_name(&self.dir);
        assert!(!expected.trim().is_empty(), "{name} {what} says nothing");
        assert!(
            found.trim_start().starts_with(expected.trim()),
            "{name} {what}: llama.cpp says {found:?}, not {expected:?}"
        );
    }
}

#[test]
fn golden_llama_completion_goes_on_with_the_same_text() {
    let Some(program) = program("llama-completion") else {
        return;
    };
    let mut compared = 0;
    for case in cases() {
        // llama.cpp then puts the space of a beginning behind each special token too.
        let tokenizer = golden::json(&case.dir.join("model/tokenizer.json"));
        if tokenizer["pre_tokenizer"]["prepend_scheme"] == "first" {
            eprintln!("{}: not compared, its spaces differ", case.dir.display());
            continue;
        }
        compared += 1;
        let prompts = case.json["prompts"].as_array().expect("prompts");
        let text_only = prompts.iter().find(|prompt| prompt["name"] == "text_only");
        let prompt = text_only.expect("a prompt without pictures");
        let rendered = prompt["rendered"].as_str().expect("a text");
        // The program puts the begin token itself.
        let bos = case
            .tokenizer
            .bos_id()
            .and_then(|id| case.tokenizer.token(id));
        let rendered = bos
            .and_then(|bos| rendered.strip_prefix(&bos))
            .unwrap_or(rendered);
        let greedy = prompt["greedy"]["ids_without_stopping"].as_array();
        let ids: Vec<i64> = greedy
            .expect("ids")
            .iter()
            .take(TOKENS)
            .map(|id| id.as_i64().expect("an id"))
            .collect();
        let arguments = ["-no-cnv", "--no-display-prompt", "-p", rendered];
        case.same("text_only", &program, &arguments, &ids);
    }
    assert!(compared > 0, "no tokenizer that llama.cpp has alike");
}

#[test]
fn golden_llama_mtmd_cli_sees_and_answers_with_the_same_text() {
    let Some(program) = program("llama-mtmd-cli") else {
        return;
    };
    let mut compared = 0;
    for case in cases() {
        let prompts = case.json["prompts"].as_array().expect("prompts");
        let prompt = &prompts[0];
        let rendered = prompt["rendered"].as_str().expect("a text");
        let (before, after) = rendered.split_once("<image>").expect("one picture");
        // Its graph of LLaVA puts the class token behind the patches, not before them, so that each
        // has its neighbour's position (`clip_graph_llava::build`): CLIP's features are others there.
        let vision = case.model.config.vision.as_ref().expect("a tower");
        if vision.class_token {
            eprintln!(
                "{}: not compared, its tower has a class token",
                case.dir.display()
            );
            continue;
        }
        compared += 1;
        let picture = case.picture();
        let pixels = case.processor.preprocess_path(&picture).unwrap();
        let pixels = case.model.pixels(&[&pixels.data]).unwrap();
        let images = case.model.encode_images(pixels).unwrap();
        // A begin token that is spelt is not put twice.
        let bos = case
            .tokenizer
            .bos_id()
            .and_then(|id| case.tokenizer.token(id));
        let spelt = bos.is_some_and(|bos| before.starts_with(&bos));
        let mut ids = case.tokenizer.encode(before, !spelt).unwrap();
        ids.push(IMAGE_TOKEN_INDEX);
        ids.extend(case.tokenizer.encode(after, false).unwrap());
        let sample = Sample { ids: &ids, images };
        let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
        let config = GenerateConfig::greedy(TOKENS);
        let found = case.model.generate(&[sample], &config, &mut go_on).unwrap();

        let text = prompt["messages"][0]["content"][1]["text"].as_str();
        let text = text.expect("a question");
        let line = if after.starts_with('\n') { "\n" } else { "" };
        let question = format!("{MARKER}{line}{text}");
        let path = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
        let arguments = [
            "--mmproj",
            &path(&case.files[1]),
            "--image",
            &path(&picture),
            "--jinja",
            "-p",
            &question,
        ];
        case.same("one picture", &program, &arguments, &found[0].ids);
    }
    assert!(compared > 0, "no tower without a class token");
}

impl Case {
    /// A picture of the tower's size, which no program has to resize.
    fn picture(&self) -> PathBuf {
        let vision = self.model.config.vision.as_ref().expect("a tower");
        let side = vision.image_size as u32;
        let path = self.out.path().join("picture.bmp");
        std::fs::write(&path, bitmap(side)).expect("written");
        path
    }
}

/// A BMP of three waves, 24 bits a pixel, from the last row to the first.
fn bitmap(side: u32) -> Vec<u8> {
    let row = (3 * side).next_multiple_of(4);
    let mut out = b"BM".to_vec();
    for field in [
        54 + row * side,
        0,
        54,
        40,
        side,
        side,
        1 | (24 << 16),
        0,
        row * side,
    ] {
        out.extend(field.to_le_bytes());
    }
    out.resize(54, 0);
    for y in (0..side).rev() {
        let start = out.len();
        for x in 0..side {
            let wave = |k: u32| ((x * (7 + k) + y * (13 - 2 * k) + 40 * k) % 256) as u8;
            out.extend([wave(2), wave(1), wave(0)]);
        }
        out.resize(start + row as usize, 0);
    }
    out
}
