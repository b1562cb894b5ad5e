//! A toy checkpoint, photographs, and runs of the command on them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use golden::{Tensors, Value};

/// Both stages, each of them several epochs of a step of two batches.
const RECIPE: &str = "
    save_every = 2
    keep_checkpoints = 3
    workers = 1
    [model]
    num_centers = 4
    redraw_centers = true
    [validation]
    every = 3
    fraction = 0.25
    [stage1]
    epochs = 6
    batch_size = 1
    accumulation = 2
    lr_projector = 5e-3
    max_length = 512
    [stage2]
    epochs = 6
    batch_size = 1
    accumulation = 2
    lr_llm = 5e-3
    lr_projector = 5e-3
    lr_vision = 1e-3
    max_length = 512
    [lora.llm]
    r = 4
    alpha = 8
    [lora.vision]
    r = 2
    alpha = 4
";

/// Optimizer steps of each stage: three samples (one is held out), two a step, six epochs.
pub const STEPS: usize = 12;

/// The files of what was trained.
const TENSORS: [&str; 4] = [
    "adapter_model.safetensors",
    "Vit-lora/adapter_model.safetensors",
    "non_lora_trainables.safetensors",
    "new_tokens.safetensors",
];

/// A folder with a recipe, data and runs.
pub struct World {
    folder: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        std::fs::write(world.path("recipe.toml"), RECIPE).expect("written");
        std::fs::copy(assets().join("photos.json"), world.path("data.json")).expect("copied");
        std::fs::create_dir(world.path("base")).expect("made");
        for path in golden::entries(&assets().join("tiny-llava")) {
            let target = world.path("base").join(golden::file_name(&path));
            std::fs::copy(&path, target).expect("copied");
        }
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `sq-llava train` into the run `out`, with more arguments.
    pub fn command(&self, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
        let data = self.path("data.json");
        command
            .args(["train", "--device", "cpu", "--quiet", "--recipe"])
            .arg(self.path("recipe.toml"))
            .arg("--llm")
            .arg(self.path("base"))
            .arg("--images")
            .arg(golden::repository().join("e_image"))
            .arg("--out")
            .arg(self.path(out));
        for stage in [1, 2] {
            command.arg("--set");
            command.arg(format!("stage{stage}.data='{}'", data.display()));
        }
        command.args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A run that must succeed.
    pub fn train(&self, out: &str, more: &[&str]) {
        let output = self.command(out, more).output().expect("starts");
        let error = said(&output);
        assert!(output.status.success(), "{more:?}: {error}");
    }

    /// `--resume` with nothing else than the run's directory.
    pub fn resume(&self, out: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sq-llava"))
            .args(["train", "--device", "cpu", "--quiet", "--out"])
            .arg(self.path(out))
            .args(more)
            .output()
            .expect("starts")
    }

    /// The same, which must succeed.
    pub fn resumed(&self, out: &str, more: &[&str]) {
        let output = self.resume(out, more);
        assert!(output.status.success(), "{more:?}: {}", said(&output));
    }

    /// The last line of a run that must fail.
    pub fn complaint(&self, out: &str, more: &[&str]) -> String {
        let output = self.command(out, more).output().expect("starts");
        complaint(&output)
    }

    /// Whole lines of a run's loss log.
    pub fn lines(&self, out: &str) -> usize {
        let text = std::fs::read_to_string(self.path(out).join("log.jsonl"));
        text.map_or(0, |text| text.matches('\n').count())
    }

    /// Waits until a run has logged so many steps.
    pub fn wait_for(&self, out: &str, lines: usize, child: &mut Child) {
        let start = Instant::now();
        while self.lines(out) < lines {
            let ended = child.try_wait().expect("a process");
            assert!(ended.is_none(), "ended with {ended:?} before {lines} lines");
            assert!(start.elapsed().as_secs() < 300, "no {lines} lines");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A log of a run.
    pub fn log(&self, out: &str, name: &str) -> Vec<Value> {
        let path = self.path(out).join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let line = |line| serde_json::from_str(line).expect("JSON");
        text.lines().map(line).collect()
    }

    /// Stage, step and losses of each step and validation of a run.
    pub fn losses(&self, out: &str) -> Vec<Vec<Value>> {
        let keys = [
            "stage",
            "step",
            "epoch",
            "loss",
            "loss_question",
            "loss_answer",
            "samples",
        ];
        ["log.jsonl", "validation.jsonl"]
            .iter()
            .flat_map(|name| self.log(out, name))
            .map(|line| keys.iter().map(|key| line[*key].clone()).collect())
            .collect()
    }

    /// A file of two runs, with the same tensors in both.
    fn tensors(&self, name: &str, expected: &str, actual: &str) -> (Tensors, Tensors) {
        let read = |run: &str| Tensors::read(&self.path(run).join(name));
        let (a, b) = (read(expected), read(actual));
        assert!(a.names().eq(b.names()), "{name}: other tensors");
        (a, b)
    }

    /// Compares the tensors of two runs: the root mean square of a tensor's differences is at most
    /// `tolerance · (1 + that of its values)`, and no value is ten times as far away. Single values
    /// may be: where a gradient is next to nothing, Adam makes a step of the learning rate's size
    /// out of how its sum was rounded. Returns how many tensors there are.
    pub fn assert_close(&self, expected: &str, actual: &str, tolerance: f32) -> usize {
        let mean = |squares: f32, count: usize| (squares / count as f32).sqrt();
        let mut compared = 0;
        for name in TENSORS {
            let (a, b) = self.tensors(name, expected, actual);
            for key in a.names() {
                let (a, b) = (a.f32(key), b.f32(key));
                let (mut far, mut size) = (0.0, 0.0);
                // Some are all zero: the tower's last layer gives no features.
                for (a, b) in a.iter().zip(&b) {
                    let single = (a - b).abs();
                    assert!(
                        single <= 10.0 * tolerance * (1.0 + a.abs()),
                        "{actual}: {key}: {a} and {b}"
                    );
                    far += single * single;
                    size += a * a;
                }
                let (far, size) = (mean(far, a.len()), mean(size, a.len()));
                let close = far <= tolerance * (1.0 + size);
                assert!(close, "{actual}: {key}: {far} apart, {size} large");
                compared += 1;
            }
        }
        compared
    }

    /// Compares two runs: every tensor bit for bit, and the losses of every step.
    pub fn assert_same(&self, expected: &str, actual: &str) {
        let mut compared = 0;
        for name in TENSORS {
            let (a, b) = self.tensors(name, expected, actual);
            for key in a.names() {
                let bits = |t: &Tensors| -> Vec<u32> {
                    t.f32(key).into_iter().map(f32::to_bits).collect()
                };
                assert_eq!(bits(&a), bits(&b), "{name}: {key}");
                compared += 1;
            }
        }
        // Seven linears of three layers, six of the tower's, two factors each, and the rest.
        assert!(compared > 40, "only {compared} tensors");
        assert_eq!(self.losses(expected), self.losses(actual));
        let csv = |run: &str| {
            let text = std::fs::read_to_string(self.path(run).join("log.csv")).expect("a log");
            let places = text
                .lines()
                .map(|line| line.split(',').take(3).collect::<String>());
            places.collect::<Vec<_>>()
        };
        assert_eq!(csv(expected), csv(actual));
    }
}

pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/assets")
}

/// Standard error of a process.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one line that a failed command ends with.
pub fn complaint(output: &Output) -> String {
    let error = said(output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    let lines: Vec<&str> = error.lines().filter(|l| l.starts_with("error:")).collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert_eq!(error.trim_end().lines().last(), Some(lines[0]), "{error}");
    lines[0].to_owned()
}

/// A number below `limit` that is another one each time.
pub fn random(limit: usize) -> usize {
    use std::hash::{BuildHasher, Hasher};
    let hash = std::hash::RandomState::new().build_hasher().finish();
    (hash % limit as u64) as usize
}
