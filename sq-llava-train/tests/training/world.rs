//! A base checkpoint, photographs and conversations to train on.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::backend::Autodiff;
use burn_flex::Flex;
use serde_json::{Value, json};
use sq_llava_train::{Recipe, TrainError, TrainOutcome, TrainPaths, Ui, train};

pub(super) type Ad = Autodiff<Flex>;

/// Settings that learn something in seconds.
const QUICK: &str = "
    flavour = 'paper'
    [model]
    num_centers = 8
    [stage1]
    epochs = 4
    batch_size = 2
    accumulation = 2
    lr_projector = 5e-3
    [stage2]
    epochs = 6
    batch_size = 2
    accumulation = 2
    lr_llm = 1e-2
    lr_projector = 5e-3
    lr_vision = 2e-3
    [lora.llm]
    r = 8
    alpha = 16
    [lora.vision]
    r = 4
    alpha = 8
";

/// The CPU backend's random numbers are the process's: one test at a time may draw from them.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A base checkpoint, photographs and conversations about them.
pub(super) struct World {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    pub(super) fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().expect("a folder");
        let base = folder.path().join("base");
        std::fs::create_dir(&base).expect("a folder");
        let llava = golden::base_folder("", None).join("orig");
        let words = golden::folders("i_").remove(0);
        for from in [llava, words] {
            for path in golden::entries(&from) {
                if path.is_file() && golden::file_name(&path) != "cases.json" {
                    let target = base.join(golden::file_name(&path));
                    std::fs::copy(&path, target).expect("copied");
                }
            }
        }
        let world = Self {
            folder,
            _alone: alone,
        };
        world.write("data.json", &world.samples());
        world
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn images() -> PathBuf {
        golden::folders("e_").remove(0)
    }

    /// Seven samples about four pictures, one of them without any.
    pub(super) fn samples(&self) -> Value {
        let pictures: Vec<String> = golden::entries(&Self::images())
            .iter()
            .map(|path| golden::file_name(path))
            .filter(|name| name.ends_with(".png") && name.matches('.').count() == 1)
            .collect();
        assert!(!pictures.is_empty(), "no pictures");
        let mut samples: Vec<Value> = (0..6)
            .map(|i| {
                let picture = &pictures[i % pictures.len()];
                json!({"id": format!("s{i}"), "image": picture, "conversations": [
                    {"from": "human", "value": format!("<image>\nwhat is it {i}?")},
                    {"from": "gpt", "value": format!("it is {picture}")},
                    {"from": "human", "value": "and the other?"},
                    {"from": "gpt", "value": "no"},
                ]})
            })
            .collect();
        samples.push(json!({"id": "text", "conversations": [
            {"from": "human", "value": "say a word"}, {"from": "gpt", "value": "the"}]}));
        Value::Array(samples)
    }

    pub(super) fn write(&self, name: &str, value: &Value) {
        std::fs::write(self.path(name), value.to_string()).expect("written");
    }

    pub(super) fn recipe(&self, changes: &[&str]) -> Recipe {
        let data = self.path("data.json");
        let mut all: Vec<String> = ["stage1.data", "stage2.data"]
            .iter()
            .map(|key| format!("{key}='{}'", data.display()))
            .collect();
        all.extend(changes.iter().map(ToString::to_string));
        Recipe::parse(QUICK, &all).expect("a recipe")
    }

    pub(super) fn paths(&self, out: &str) -> TrainPaths {
        TrainPaths {
            llm: self.path("base"),
            images: Some(Self::images()),
            out: self.path(out),
            ..TrainPaths::default()
        }
    }

    pub(super) fn train(&self, out: &str, changes: &[&str]) -> Result<TrainOutcome, TrainError> {
        let (recipe, paths) = (self.recipe(changes), self.paths(out));
        train::<Ad>(&recipe, &paths, &Default::default(), Ui::Quiet)
    }

    /// The loss log of a run.
    pub(super) fn log(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out).join("log.jsonl")).expect("a log");
        let read = |line| serde_json::from_str(line).expect("JSON");
        text.lines().map(read).collect()
    }

    pub(super) fn losses(&self, out: &str, stage: u64) -> Vec<f64> {
        let of_stage = |line: &Value| line["stage"] == stage;
        let lines = self.log(out).into_iter().filter(of_stage);
        lines
            .map(|line| line["loss"].as_f64().expect("a loss"))
            .collect()
    }
}
