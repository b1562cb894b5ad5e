//! llama.cpp's own programs answer with the files that are written for it as the model does.
//!
//! They are looked for in the folder that `SQ_LLAVA_LLAMA_CPP` names, then on the search path, and
//! the tests say so and pass where they are not built.

#![allow(clippy::print_stderr)] // A test that cannot run says why.

mod weights;

use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::Tensor;
use golden::Value;
use sq_llava_data::TextTokenizer;
use sq_llava_data::image::ImageProcessor;
use sq_llava_model::generation::generate::GenerateConfig;
use sq_llava_model::weights::{GgufOptions, GgufType, LoadOptions, SavedGguf, save_gguf};
use sq_llava_model::{IMAGE_TOKEN_INDEX, ModelError, Sample, SqLlava};
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

/// The files of a model for llama.cpp.
fn save(
    model: &SqLlava<B>,
    tokenizer: &TextTokenizer,
    processor: &ImageProcessor,
    dir: &Path,
) -> Result<SavedGguf, ModelError> {
    let options = GgufOptions {
        tokenizer,
        chat_template: tokenizer.chat_template(),
        processor: Some(processor),
        matrices: GgufType::F32,
        context: None,
        name: "tiny",
    };
    save_gguf(model, dir, &options)
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
        match save(&loaded.model, &tokenizer, &processor, out.path()) {
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
    for case in cases() {
        let prompts = case.json["prompts"].as_array().expect("prompts");
        let text_only = prompts.iter().find(|prompt| prompt["name"] == "text_only");
        let Some(prompt) = text_only else {
            continue;
        };
        // llama.cpp puts the space of a beginning behind each special token, too.
        let first = golden::json(&case.dir.join("model/tokenizer.json"));
        if first["pre_tokenizer"]["prepend_scheme"] == "first" {
            eprintln!("{}: not compared, its spaces differ", case.dir.display());
            continue;
        }
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
}

#[test]
fn golden_llama_mtmd_cli_sees_and_answers_with_the_same_text() {
    let Some(program) = program("llama-mtmd-cli") else {
        return;
    };
    let mut compared = 0;
    for case in cases() {
        let Some(side) = case.comparable() else {
            continue;
        };
        compared += 1;
        let picture = case.picture(side, side);
        let pixels = case.processor.preprocess_path(&picture).unwrap();
        let pixels = case.model.pixels(&[&pixels.data]).unwrap();
        let images = case.model.encode_images(pixels).unwrap();
        case.sees("one picture", &program, &picture, images);
    }
    assert!(compared > 0, "no tower without a class token");
}

impl Case {
    /// The side of the tower's pictures, where llama.cpp computes its features.
    fn comparable(&self) -> Option<u32> {
        let vision = self.model.config.vision.as_ref().expect("a tower");
        // Its graph of LLaVA puts the class token behind the patches, not before them, so that each
        // has its neighbour's position (`clip_graph_llava::build`): CLIP's features are others there.
        if vision.class_token {
            eprintln!(
                "{}: not compared, its tower has a class token",
                self.dir.display()
            );
            return None;
        }
        Some(vision.image_size as u32)
    }

    /// llama.cpp's answer about a picture is that of the model, whose tokens of it are `images`.
    fn sees(&self, what: &str, program: &Path, picture: &Path, images: Vec<Tensor<B, 2>>) {
        let prompts = self.json["prompts"].as_array().expect("prompts");
        let prompt = &prompts[0];
        let rendered = prompt["rendered"].as_str().expect("a text");
        let (before, after) = rendered.split_once("<image>").expect("one picture");
        // A begin token that is spelt is not put twice.
        let bos = self
            .tokenizer
            .bos_id()
            .and_then(|id| self.tokenizer.token(id));
        let spelt = bos.is_some_and(|bos| before.starts_with(&bos));
        let mut ids = self.tokenizer.encode(before, !spelt).unwrap();
        ids.push(IMAGE_TOKEN_INDEX);
        ids.extend(self.tokenizer.encode(after, false).unwrap());
        let sample = Sample { ids: &ids, images };
        let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
        let config = GenerateConfig::greedy(TOKENS);
        let found = self.model.generate(&[sample], &config, &mut go_on).unwrap();

        let text = prompt["messages"][0]["content"][1]["text"].as_str();
        let text = text.expect("a question");
        let line = if after.starts_with('\n') { "\n" } else { "" };
        let question = format!("{MARKER}{line}{text}");
        let path = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
        let arguments = [
            "--mmproj",
            &path(&self.files[1]),
            "--image",
            &path(picture),
            "--jinja",
            "-p",
            &question,
        ];
        self.same(what, program, &arguments, &found[0].ids);
    }

    /// A picture of this size in pixels.
    fn picture(&self, width: u32, height: u32) -> PathBuf {
        let path = self.out.path().join(format!("{width}-{height}.bmp"));
        std::fs::write(&path, bitmap(width, height)).expect("written");
        path
    }
}

/// A BMP of three waves, 24 bits a pixel, from the last row to the first.
fn bitmap(width: u32, height: u32) -> Vec<u8> {
    let row = (3 * width).next_multiple_of(4);
    let mut out = b"BM".to_vec();
    for field in [
        54 + row * height,
        0,
        54,
        40,
        width,
        height,
        1 | (24 << 16),
        0,
        row * height,
    ] {
        out.extend(field.to_le_bytes());
    }
    out.resize(54, 0);
    for y in (0..height).rev() {
        let start = out.len();
        for x in 0..width {
            let wave = |k: u32| ((x * (7 + k) + y * (13 - 2 * k) + 40 * k) % 256) as u8;
            out.extend([wave(2), wave(1), wave(0)]);
        }
        out.resize(start + row as usize, 0);
    }
    out
}
