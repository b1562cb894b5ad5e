//! Tiny models of today's families that learn to ask and to answer in the chat template that they
//! bring, and keep it wherever they go.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::Value;
use serde_json::json;

use crate::world::{complaint, said};

/// Questions and answers about eight pictures, with the pictures' colours.
const SAMPLES: [(&str, &str, [u8; 3]); 8] = [
    ("Is it a cup?", "Yes, a red one.", [230, 20, 20]),
    ("What is near?", "A table.", [20, 220, 40]),
    ("Who sits there?", "Two men.", [30, 40, 230]),
    ("How many dogs?", "Three.", [240, 240, 30]),
    ("Where is this?", "In the sea.", [20, 220, 230]),
    ("Is it late?", "No.", [230, 30, 220]),
    ("What does he eat?", "An apple.", [250, 250, 250]),
    ("Can you see it?", "Not at all.", [5, 5, 5]),
];

const RECIPE: &str = "
    stages = [2]
    workers = 1
    log_every = 100
    [model]
    prototype = false
    [stage2]
    template = 'checkpoint'
    grouping = 'random'
    epochs = 400
    batch_size = 8
    accumulation = 1
    lr_llm = 1e-2
    lr_projector = 1e-2
    lr_vision = 2e-3
    max_length = 512
    [lora.llm]
    r = 16
    alpha = 32
    dropout = 0.0
    [lora.vision]
    r = 8
    alpha = 16
    dropout = 0.0
";

/// A model of the reference data whose own chat template its conversations are to have.
struct Lesson {
    folder: tempfile::TempDir,
    model: PathBuf,
    /// What the recipe must say of this model.
    settings: Vec<String>,
}

impl Lesson {
    /// One for each Qwen2 that sees.
    fn all() -> Vec<Self> {
        let mut found = Vec::new();
        for dir in golden::entries(&golden::families()) {
            let outputs = dir.join("outputs.json");
            let Some(json) = outputs.is_file().then(|| golden::json(&outputs)) else {
                continue;
            };
            let config = dir.join("model/config.json");
            if json["text"] != "qwen2" {
                continue;
            }
            let config = golden::json(&config);
            let layer = &config["vision_feature_layer"];
            found.push(Self {
                folder: tempfile::tempdir().expect("a folder"),
                model: dir.join("model"),
                settings: vec![format!("model.select_layer={layer}")],
            });
        }
        assert!(!found.is_empty(), "no Qwen2 with pictures");
        found.iter().for_each(Self::write);
        found
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The recipe, the pictures and the data.
    fn write(&self) {
        std::fs::write(self.path("recipe.toml"), RECIPE).expect("written");
        let mut data = Vec::new();
        for (number, (question, answer, colour)) in SAMPLES.into_iter().enumerate() {
            let image = format!("{number}.bmp");
            std::fs::write(self.path(&image), bitmap(colour)).expect("written");
            data.push(json!({"id": number, "image": image, "conversations": [
                {"from": "human", "value": format!("<image>\n{question}")},
                {"from": "gpt", "value": answer}]}));
        }
        std::fs::write(self.path("data.json"), json!(data).to_string()).expect("written");
    }

    fn train(&self, out: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
        command
            .args(["train", "--device", "cpu", "--quiet", "--recipe"])
            .arg(self.path("recipe.toml"))
            .arg("--llm")
            .arg(&self.model)
            .arg("--data")
            .arg(self.path("data.json"))
            .arg("--images")
            .arg(self.folder.path())
            .arg("--out")
            .arg(self.path(out));
        let more = more.iter().map(ToString::to_string);
        for set in self.settings.iter().cloned().chain(more) {
            command.args(["--set", &set]);
        }
        command.output().expect("starts")
    }

    /// What the model asks about each picture, likeliest word by likeliest word.
    fn asked(&self, model: &str) -> Vec<String> {
        let model = self.path(model);
        let mut words = vec!["question", "--n", "1", "--temperature", "0"];
        words.extend(["--max-new-tokens", "40", "--model", text(&model)]);
        let pictures: Vec<PathBuf> = (0..SAMPLES.len())
            .map(|number| self.path(&format!("{number}.bmp")))
            .collect();
        words.extend(pictures.iter().map(|path| text(path)));
        let lines = run(&words);
        let question = |line: &Value| line["questions"][0]["text"].as_str().map(str::to_owned);
        let asked = lines.iter().map(|line| question(line).expect("a question"));
        asked.collect()
    }

    /// What it answers to the questions of the samples.
    fn answered(&self, model: &str) -> Vec<String> {
        let model = self.path(model);
        let samples = SAMPLES.iter().enumerate();
        let answers = samples.map(|(number, (question, ..))| {
            let picture = self.path(&format!("{number}.bmp"));
            let words = ["ask", "--max-new-tokens", "40", "--model", text(&model)];
            let lines = run(&[&words[..], &[text(&picture), question]].concat());
            lines[0]["text"].as_str().expect("a text").to_owned()
        });
        answers.collect()
    }

    /// Both are those of the samples.
    fn assert_learnt(&self, model: &str) {
        let name = self.model.display();
        let questions: Vec<&str> = SAMPLES.iter().map(|sample| sample.0).collect();
        assert_eq!(self.asked(model), questions, "{name}: {model}");
        let answers: Vec<&str> = SAMPLES.iter().map(|sample| sample.1).collect();
        assert_eq!(self.answered(model), answers, "{name}: {model}");
    }
}

/// A picture of one colour, 40 × 40, with a corner of another so that it has a shape.
fn bitmap([red, green, blue]: [u8; 3]) -> Vec<u8> {
    const SIDE: u32 = 40;
    let pixels = SIDE * SIDE * 3;
    let mut file = b"BM".to_vec();
    for field in [
        54 + pixels,
        0,
        54,
        40,
        SIDE,
        SIDE,
        1 | 24 << 16,
        0,
        pixels,
        0,
        0,
        0,
        0,
    ] {
        file.extend(field.to_le_bytes());
    }
    for at in 0..SIDE * SIDE {
        let corner = at % SIDE < 10 && at / SIDE < 10;
        file.extend(match corner {
            true => [red, blue, green],
            false => [blue, green, red],
        });
    }
    file
}

/// The lines of JSON that a command prints.
fn run(words: &[&str]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(words)
        .args(["--device", "cpu", "--json"])
        .output()
        .expect("starts");
    assert!(output.status.success(), "{words:?}: {}", said(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = |line| serde_json::from_str(line).expect("JSON");
    text.lines().map(line).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[test]
fn golden_a_tiny_model_learns_its_eight_samples_in_its_own_template() {
    for lesson in Lesson::all() {
        let output = lesson.train("run", &[]);
        assert!(output.status.success(), "{}", said(&output));
        let config = golden::json(&lesson.path("run/config.json"));
        assert_eq!(config["sq_conversation"], "checkpoint");
        assert_eq!(config["sq_asking_role"], json!({"token": "[vusr]"}));
        lesson.assert_learnt("run");

        // The run goes on in no other template.
        for change in ["stage2.template=v1", "asking.role=text"] {
            let key = change.split('=').next().expect("a key");
            let resume = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
                .args(["train", "--device", "cpu", "--quiet", "--resume"])
                .args(["--set", change, "--out", text(&lesson.path("run"))])
                .output()
                .expect("starts");
            let error = complaint(&resume);
            assert!(error.contains(key), "{error}");
        }

        // Merged, it is the same model in either layout, with its template and its token.
        for layout in ["llava-hf", "original"] {
            let (run, out) = (lesson.path("run"), lesson.path(layout));
            let output = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
                .args(["export", "--device", "cpu", "--save-dtype", "f32"])
                .args([
                    "--layout",
                    layout,
                    "--model",
                    text(&run),
                    "--out",
                    text(&out),
                ])
                .output()
                .expect("starts");
            assert!(output.status.success(), "{layout}: {}", said(&output));
            lesson.assert_learnt(layout);
        }
        let template = |folder: &Path| std::fs::read_to_string(folder.join("chat_template.jinja"));
        let theirs = template(&lesson.model).expect("a template");
        assert_eq!(
            template(&lesson.path("llava-hf")).expect("a template"),
            theirs
        );
        let tokenizer = golden::json(&lesson.path("llava-hf/tokenizer.json"));
        let added = tokenizer["added_tokens"].as_array().expect("tokens");
        assert!(added.iter().any(|token| token["content"] == "[vusr]"));
    }
}

#[test]
fn golden_a_text_asks_where_the_vocabulary_is_to_stay() {
    for lesson in Lesson::all() {
        let output = lesson.train("run", &["asking.role=text", "stage2.epochs=2"]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(!lesson.path("run/new_tokens.safetensors").exists());
        let config = golden::json(&lesson.path("run/config.json"));
        assert_eq!(config["sq_asking_role"], json!({"text": "VUSER:"}));
        assert_eq!(lesson.asked("run").len(), SAMPLES.len());
    }
}

/// A recipe that names no template trains in the published one, and says that the checkpoint has its
/// own.
#[test]
fn a_template_that_the_checkpoint_brings_and_nobody_asks_for_is_mentioned() {
    for lesson in Lesson::all() {
        let recipe = RECIPE.replace("template = 'checkpoint'", "");
        assert_ne!(recipe, RECIPE);
        std::fs::write(lesson.path("recipe.toml"), recipe).expect("written");
        let output = lesson.train("run", &["stage2.epochs=1"]);
        let told = said(&output);
        assert!(output.status.success(), "{told}");
        for part in ["conversation template sq", "stage2.template=\"checkpoint\""] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let config = golden::json(&lesson.path("run/config.json"));
        assert_eq!(config["sq_conversation"], "sq");
    }
}

/// A model that nobody trained to ask, and an LLM without a template.
#[test]
fn what_cannot_be_done_in_a_template_is_said() {
    for lesson in Lesson::all() {
        let picture = lesson.path("0.bmp");
        let question = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
            .args([
                "question",
                "--device",
                "cpu",
                "--model",
                text(&lesson.model),
            ])
            .arg(&picture)
            .output()
            .expect("starts");
        let error = complaint(&question);
        assert!(error.contains("not trained to ask"), "{error}");

        let bare = lesson.path("bare");
        std::fs::create_dir(&bare).expect("made");
        for path in golden::entries(&lesson.model) {
            let name = golden::file_name(&path);
            if name != "chat_template.jinja" {
                std::fs::copy(&path, bare.join(name)).expect("copied");
            }
        }
        let lesson = Lesson {
            model: bare,
            ..lesson
        };
        let error = complaint(&lesson.train("run", &[]));
        for part in ["stage2.template", "no chat_template", "v1_sq"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
