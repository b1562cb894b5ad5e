//! Improving a run through the real command: rounds, looking first, being killed, and what is
//! refused.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use golden::{Tensors, Value};

/// A run that was hardly trained, and pictures that nobody labelled.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let more = [
            "--steps",
            "2",
            "--scenes",
            "32",
            "--held-out",
            "2",
            "--lines",
        ];
        let made = command(
            &["quickstart", "--device", "cpu", "--out", "made"],
            world.path(),
        )
        .args(more)
        .output()
        .expect("starts");
        assert!(made.status.success(), "{}", said(&made));
        let pictures = world.at("pictures");
        std::fs::create_dir_all(pictures.join("more")).expect("made");
        let images = world.at("made/world/images");
        for (number, to) in ["a.png", "b.png", "more/c.png"].iter().enumerate() {
            let from = images.join(format!("train-{number:05}.png"));
            std::fs::copy(from, pictures.join(to)).expect("copied");
        }
        world
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The command into the folder `out`, with its filters as far off as they go.
    fn improve(&self, out: &str, more: &[&str]) -> Command {
        self.improve_of(["made/run", "pictures"], out, more)
    }

    fn improve_of(&self, [run, pictures]: [&str; 2], out: &str, more: &[&str]) -> Command {
        let mut command = command(&["improve", "--model", run], self.path());
        command
            .args(["--pictures", pictures, "--out", out, "--device", "cpu"])
            // Long enough that a model that hardly knows how an answer ends does end some.
            .args(["-n", "6", "--max-new-tokens", "96"])
            .args(["--max-question-tokens", "24"])
            .args(["--keep-given", "--likeness", "1"])
            .args(more);
        let off = [("--rounds", "1"), ("--answers", "2"), ("--others", "1")];
        let filters = [("--agreement", "0"), ("--elsewhere", "1"), ("--share", "1")];
        for (option, value) in off.into_iter().chain(filters) {
            if !more.contains(&option) {
                command.args([option, value]);
            }
        }
        command
    }

    fn improved(&self, out: &str, more: &[&str]) -> String {
        let output = self.improve(out, more).output().expect("starts");
        assert!(output.status.success(), "{more:?}: {}", said(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn complaint(&self, out: &str, more: &[&str]) -> String {
        let output = self.improve(out, more).output().expect("starts");
        assert!(!output.status.success(), "{more:?} succeeded");
        let error = said(&output);
        assert!(!error.contains("panicked"), "{error}");
        error
    }

    fn read(&self, name: &str) -> String {
        let path = self.at(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn adapter(&self, run: &str) -> Vec<u32> {
        let tensors = Tensors::read(&self.at(run).join("adapter_model.safetensors"));
        let bits = tensors.names().flat_map(|name| tensors.f32(name));
        bits.map(f32::to_bits).collect()
    }
}

fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command.args(arguments).current_dir(folder);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_killed_improvement_goes_on_as_if_it_had_not_been() {
    let world = World::new();
    let shown = world.improved("whole", &["--rounds", "2"]);
    for words in [
        "round 1: ",
        "round 2: ",
        "agreement",
        "kept",
        "whole/round-2/run",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    for round in ["round-1", "round-2"] {
        let lines = world.read(&format!("whole/{round}/candidates.jsonl"));
        let images: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["image"].clone())
            .collect();
        assert_eq!(images, ["a.png", "b.png", "more/c.png"]);
        let pairs = world.read(&format!("whole/{round}/pairs.json"));
        let pairs: Value = serde_json::from_str(&pairs).expect("JSON");
        assert!(!pairs.as_array().expect("samples").is_empty());
    }
    let [first, second] = [1, 2].map(|n| world.read(&format!("whole/round-{n}/pairs.json")));
    assert_ne!(first, second, "each round draws anew");
    assert!(
        second.contains("round-1/run"),
        "the second asks the first's run"
    );
    let (base, first) = (
        world.adapter("made/run"),
        world.adapter("whole/round-1/run"),
    );
    assert_ne!(base, first);
    assert_ne!(first, world.adapter("whole/round-2/run"));

    // Killed while it asks, and once more while it trains.
    let log = world.at("killed/round-1/candidates.jsonl");
    let asked = || std::fs::metadata(&log).is_ok_and(|file| file.len() > 0);
    kill_when(&mut world.improve("killed", &[]), asked);
    let trains = || world.at("killed/round-1/run/recipe.toml").is_file();
    kill_when(&mut world.improve("killed", &[]), trains);
    world.improved("killed", &[]);
    for name in ["candidates.jsonl", "pairs.json", "report.json"] {
        let [whole, killed] =
            ["whole", "killed"].map(|out| world.read(&format!("{out}/round-1/{name}")));
        assert_eq!(whole, killed, "{name}");
    }
    assert_eq!(first, world.adapter("killed/round-1/run"));
    // Nothing is left to do.
    let again = world.improved("killed", &[]);
    assert!(!again.contains("pairs about"), "{again}");
}

fn kill_when(command: &mut Command, seen: impl Fn() -> bool) {
    let mut child = command.spawn().expect("starts");
    let start = Instant::now();
    while !seen() {
        let ended = child.try_wait().expect("a process");
        assert!(ended.is_none(), "ended with {ended:?} before it was killed");
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "nothing happens"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
fn pairs_may_be_looked_at_first_and_what_is_wrong_is_said() {
    let world = World::new();
    // A model that knows nothing is sure of little.
    let strict = ["--agreement", "1", "--elsewhere", "0", "--answers", "12"];
    let error = world.complaint("strict", &strict);
    assert!(error.contains("pairs passed the filters"), "{error}");
    assert!(error.contains("report.json"), "{error}");

    // An unreadable picture is told and passed over.
    std::fs::write(
        world.at("pictures/torn.png"),
        b"\x89PNG\r\n\x1a\nnot a picture",
    )
    .expect("written");
    let shown = world.improved("looked", &["--look"]);
    assert!(shown.contains("4 pictures (1 unreadable)"), "{shown}");
    assert!(
        shown.trim_end().ends_with("looked/round-1/pairs.json"),
        "{shown}"
    );
    assert!(!world.at("looked/round-1/run").exists());
    // What was edited is what is trained on.
    let pairs = world.at("looked/round-1/pairs.json");
    let text = world.read("looked/round-1/pairs.json");
    let mut samples: Value = serde_json::from_str(&text).expect("JSON");
    samples.as_array_mut().expect("samples").truncate(1);
    samples[0]["conversations"][1]["value"] = "an answer that somebody wrote".into();
    std::fs::write(&pairs, samples.to_string()).expect("written");
    world.improved("looked", &[]);
    assert_eq!(world.read("looked/round-1/pairs.json"), samples.to_string());
    let config = world.read("looked/round-1/run/recipe.toml");
    assert!(config.contains("looked/round-1/pairs.json"), "{config}");

    for (out, more, says) in [
        ("looked", &["--seed", "5"][..], "other settings"),
        ("made", &[], "not an empty folder"),
        ("x", &["--share", "0"], "--share"),
        ("x", &["--agreement", "2"], "--agreement"),
        ("x", &["--temperature", "0"], "--temperature"),
        ("x", &["--others", "9", "--elsewhere", "0.5"], "--others"),
    ] {
        let error = world.complaint(out, more);
        assert!(error.contains(says), "{more:?}: {error}");
    }
    std::fs::create_dir(world.at("empty")).expect("made");
    for (from, says) in [
        (["made/run", "empty"], "no pictures"),
        (["pictures", "pictures"], "no run here"),
        (["made/run/stage1", "pictures"], "no run here"),
    ] {
        let output = world.improve_of(from, "y", &[]).output().expect("starts");
        let error = said(&output);
        assert!(
            !output.status.success() && error.contains(says),
            "{from:?}: {error}"
        );
    }
}

#[test]
fn in_the_world_it_is_known_what_is_right() {
    let dir = tempfile::tempdir().expect("a folder");
    let arguments = [
        "improve",
        "--world",
        "--out",
        "trial",
        "--device",
        "cpu",
        "--seeds",
        "0,1",
        "--labels",
        "32",
        "--unlabelled",
        "4",
        "--held-out",
        "2",
        "--rounds",
        "1",
        "-n",
        "6",
        "--max-new-tokens",
        "96",
        "--answers",
        "2",
        "--others",
        "1",
        "--agreement",
        "0",
        "--elsewhere",
        "1",
        "--set",
        "stage2.epochs=1",
    ];
    let first = command(&arguments, dir.path()).output().expect("starts");
    assert!(first.status.success(), "{}", said(&first));
    let table = std::fs::read_to_string(dir.path().join("trial/improvement.md")).expect("a table");
    for words in [
        "| labels alone |",
        "| round 1 |",
        "| no filter |",
        "| all filters |",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let result = dir.path().join("trial/seed-1/result.json");
    let text = std::fs::read_to_string(&result).expect("a result");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        value["scores"][1]["all"]["all"], 12,
        "six questions about two scenes"
    );
    let passed = &value["precision"][0]["no filter"]["passed"];
    assert!(
        passed.as_u64().is_some_and(|n| (1..=24).contains(&n)),
        "{passed}"
    );
    // What is there is not done again, and another trial is refused.
    let time = std::fs::metadata(&result)
        .and_then(|file| file.modified())
        .expect("a time");
    let again = command(&arguments, dir.path()).output().expect("starts");
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(
        std::fs::metadata(&result)
            .and_then(|f| f.modified())
            .expect("a time"),
        time
    );
    let other = command(&arguments, dir.path())
        .args(["--repeat", "2"])
        .output();
    let error = said(&other.expect("starts"));
    assert!(error.contains("another trial"), "{error}");
}
