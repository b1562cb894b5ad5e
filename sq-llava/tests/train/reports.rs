//! What a run tells while it trains: samples, events for TensorBoard, a page; and what it would take.

use std::process::{Command, Output};

use golden::Value;

use crate::world::{STEPS, World, assets, complaint, random, said};

/// Arguments that show samples after the steps 5, 10 and 12 of each stage.
const SHOW: [&str; 8] = [
    "--set",
    "report.samples.every=5",
    "--set",
    "report.samples.count=2",
    "--set",
    "report.samples.max_new_tokens=8",
    "--set",
    "workers=2",
];

fn text(world: &World, run: &str, name: &str) -> String {
    let path = world.path(run).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

/// `train` with the lines of its standard output.
fn told(world: &World, out: &str, more: &[&str]) -> (Output, String) {
    let mut command = world.command(out, more);
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let lines = arguments.iter().map(|a| match a.to_str() {
        Some("--quiet") => "--lines".into(),
        _ => a.clone(),
    });
    command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    let output = command.args(lines).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

#[test]
fn samples_change_nothing_that_is_learnt() {
    let world = World::new();
    world.train("plain", &[]);
    world.train("shown", &SHOW);
    world.assert_same("plain", "shown");
    let again = ["--set", "gradient_checkpointing=blocks"];
    world.train("plain-blocks", &again);
    world.train("shown-blocks", &[&SHOW[..], &again].concat());
    world.assert_same("plain-blocks", "shown-blocks");
    let frozen = ["lora.vision.r=0", "stage2.lr_vision=0", "devices=[0,1]"];
    let frozen = frozen.map(|set| ["--set", set]).concat();
    world.train("plain-frozen", &frozen);
    world.train("shown-frozen", &[&SHOW[..], &frozen].concat());
    assert_eq!(world.losses("plain-frozen"), world.losses("shown-frozen"));

    let samples = world.log("shown", "samples.jsonl");
    let place = |line: &Value| (line["stage"].as_u64(), line["step"].as_u64());
    let wanted = [(1, 5), (1, 10), (1, 12), (2, 5), (2, 10), (2, 12)];
    let wanted = wanted.map(|(stage, step)| (Some(stage), Some(step)));
    // One sample is held out to validate on, so it is the one that is shown.
    assert_eq!(samples.iter().map(place).collect::<Vec<_>>(), wanted);
    assert!(samples.iter().all(|line| line["reference"].is_string()));
    // Captions have no questions, and only stage 2 asks.
    assert!(
        samples[..3]
            .iter()
            .all(|line| line["question"] == "" && line["asked"].is_null())
    );
    assert!(samples[3..].iter().all(|line| line["question"] != ""));
    assert!(samples[3..].iter().any(|line| line["asked"].is_string()));
    assert!(world.path("shown/samples/stage2-0.png").is_file());
    assert!(!world.path("plain/samples.jsonl").exists());

    let page = text(&world, "shown", "report.html");
    assert!(page.contains("finished") && !page.contains("http-equiv=\"refresh\""));
    let (new, old) = (page.find("Stage 2, step 12"), page.find("Stage 1, step 5"));
    assert!(new.expect("new") < old.expect("old"));
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("url(data:image/png;base64,").count(), 2);
    // It needs nothing else.
    for outside in ["src=", "href=", "@import", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn lines_tell_samples_checkpoints_and_the_time_of_both_stages() {
    let world = World::new();
    let (output, out) = told(
        &world,
        "run",
        &[&SHOW[..], &["--set", "log_every=1"]].concat(),
    );
    assert!(output.status.success(), "{}", said(&output));
    let line = |what: &[&str]| {
        let has = |line: &&str| what.iter().all(|part| line.contains(part));
        assert!(out.lines().any(|l| has(&l)), "{what:?}: {out}");
    };
    line(&["stage 2 step 12 sample ", " → "]);
    line(&["stage 2 step 12 sample ", ": asked: "]);
    line(&["stage 1 step 4: checkpoint-1-4: ", " MiB, saved in ", " s"]);
    line(&["stage 1 step 3: best-1: ", " MiB, saved in "]);
    line(&["stage 1 step 6/12", " left, about ", " with the next stage"]);
    line(&["stage 2: 12 steps in ", "best validation loss", "in best-2"]);
    let second = out.lines().find(|l| l.starts_with("stage 2 step 6/12"));
    let second = second.expect("a line");
    assert!(
        second.ends_with(" left") && !second.contains("next stage"),
        "{second}"
    );
}

#[test]
fn pictures_can_be_named_and_a_missing_one_is() {
    let world = World::new();
    let wrong = "report.samples.images=['china_rgb_640x427.png','nowhere.png']";
    let sets = ["--set", "report.samples.every=6", "--set", wrong];
    let error = world.complaint("wrong", &sets);
    assert!(
        error.contains("report.samples.images") && error.contains("nowhere.png"),
        "{error}"
    );
    let right = "report.samples.images=['china_rgb_640x427.png']";
    let few = "report.samples.max_new_tokens=4";
    world.train(
        "right",
        &[
            "--set",
            "report.samples.every=6",
            "--set",
            right,
            "--set",
            few,
        ],
    );
    let samples = world.log("right", "samples.jsonl");
    assert_eq!(samples.len(), 4);
    assert_eq!(samples[2]["picture"], "china_rgb_640x427.png");
    assert_eq!(samples[2]["question"], "Describe the image.");
    assert!(samples[2]["reference"].is_null());
}

/// A Python that has TensorBoard.
fn python() -> Option<&'static str> {
    let has = |python: &&str| {
        let tried = Command::new(python)
            .args(["-c", "import tensorboard"])
            .output();
        tried.is_ok_and(|output| output.status.success())
    };
    ["python3", "python"].into_iter().find(has)
}

#[test]
fn tensorboards_own_reader_finds_every_point_once() {
    let world = World::new();
    let mut child = world.command("run", &SHOW).spawn().expect("starts");
    let steps = 1 + random(2 * STEPS - 2);
    println!("killed after step {steps}");
    world.wait_for("run", steps, &mut child);
    child.kill().expect("killed");
    child.wait().expect("gone");
    world.resumed("run", &["--resume"]);
    let folders = golden::entries(&world.path("run/tensorboard"));
    let names: Vec<String> = folders.iter().map(|p| golden::file_name(p)).collect();
    let stage = |n| ["", "-samples", "-validation"].map(|kind| format!("stage{n}{kind}"));
    assert_eq!(names, [stage(1), stage(2)].concat());

    let Some(python) = python() else {
        println!("skipped: no Python with tensorboard");
        return;
    };
    let script = assets().join("../../scripts/check_tensorboard.py");
    let check = |run: &str| {
        let mut command = Command::new(python);
        command
            .arg(&script)
            .arg(world.path(run))
            .output()
            .expect("starts")
    };
    let output = check("run");
    assert!(output.status.success(), "{}", said(&output));
    print!("{}", String::from_utf8_lossy(&output.stdout));
    // The reader sees what is missing.
    let log = text(&world, "run", "log.jsonl");
    let changed = log.replacen("\"tokens\":", "\"tokens\":1", 1);
    std::fs::write(world.path("run/log.jsonl"), changed).expect("written");
    assert!(!check("run").status.success());

    world.train("none", &["--set", "report.tensorboard=false"]);
    assert!(!world.path("none/tensorboard").exists());
}

#[test]
fn a_dry_run_says_how_long_it_takes_and_leaves_nothing() {
    let world = World::new();
    let output = world
        .command("run", &["--dry-run"])
        .output()
        .expect("starts");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", said(&output));
    for part in [
        "stage 1: 12 steps, ",
        "stage 2: 12 steps, ",
        "in all about ",
        "nothing was written",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let error = said(&output);
    for part in ["estimated memory of a step", "are well formed", "learnt"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!world.path("run").exists());

    // Where a run is already, a real one would not begin either.
    world.train("taken", &["--set", "stages=[1]"]);
    let error = world.complaint("taken", &["--dry-run"]);
    assert!(error.contains("not empty"), "{error}");

    // A sample that training would stop at.
    let data = world.path("data.json");
    let whole = std::fs::read_to_string(&data).expect("data");
    let mut samples: Value = serde_json::from_str(&whole).expect("JSON");
    samples[2]["conversations"] = Value::Array(Vec::new());
    std::fs::write(&data, samples.to_string()).expect("written");
    let error = world.complaint("run", &["--dry-run"]);
    assert!(
        error.contains("stage1.data") && error.contains("1 errors"),
        "{error}"
    );
    assert!(!world.path("run").exists());
}

#[test]
fn a_loader_that_stalls_is_named() {
    let world = World::new();
    // The first batch waits for its pictures in any case.
    let sets = ["--set", "report.stall_seconds=0.001", "--set", "stages=[1]"];
    let output = world.command("run", &sets).output().expect("starts");
    assert!(output.status.success(), "{}", said(&output));
    let error = said(&output);
    let mut warnings = error.lines().filter(|line| line.contains("has waited"));
    let named = ["loader 0 is at sample ", ", with the pictures ", ".png"];
    assert!(
        warnings.any(|line| named.iter().all(|part| line.contains(part))),
        "{error}"
    );
    // Patience is long otherwise.
    let output = world
        .command("calm", &["--set", "stages=[1]"])
        .output()
        .expect("starts");
    assert!(!said(&output).contains("has waited"), "{}", said(&output));
}

#[test]
fn the_best_model_outlives_checkpoints_and_is_gone_on_from() {
    let world = World::new();
    let keep = ["--set", "keep_checkpoints=1", "--set", "save_every=1"];
    world.train("whole", &keep);
    let best: Vec<String> = golden::entries(&world.path("whole"))
        .iter()
        .map(|path| golden::file_name(path))
        .filter(|name| name.starts_with("best-") || name.starts_with("checkpoint-"))
        .collect();
    assert_eq!(
        best,
        ["best-1", "best-2", "checkpoint-1-11", "checkpoint-2-11"]
    );
    let state: Value =
        serde_json::from_str(&text(&world, "whole", "best-1/trainer_state.json")).expect("JSON");
    let step = state["progress"]["step"].as_u64().expect("a step");
    assert_eq!(state["progress"]["best"]["step"].as_u64(), Some(step));

    // Going on from it ends as if nothing had been.
    world.train("again", &keep);
    let logged = world.losses("again");
    std::fs::remove_file(world.path("again/config.json")).expect("removed");
    world.resumed("again", &["--resume=best-1"]);
    assert_eq!(logged, world.losses("again"));
    world.assert_same("whole", "again");
    let output = world.resume("again", &["--resume=best-7"]);
    let error = complaint(&output);
    assert!(
        error.contains("best-1") && error.contains("best-2"),
        "{error}"
    );

    // It is a model like any other.
    let export = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(["export", "--device", "cpu", "--model"])
        .arg(world.path("whole/best-2"))
        .arg("--base")
        .arg(world.path("base"))
        .arg("--out")
        .arg(world.path("merged"))
        .output()
        .expect("starts");
    assert!(export.status.success(), "{}", said(&export));
    let picture = golden::repository().join("e_image/china_rgb_640x427.png");
    let ask = Command::new(env!("CARGO_BIN_EXE_sq-llava"))
        .args(["ask", "--device", "cpu", "--max-new-tokens", "4", "--model"])
        .arg(world.path("whole/best-2"))
        .arg("--base")
        .arg(world.path("base"))
        .arg(picture)
        .arg("What is it?")
        .output()
        .expect("starts");
    assert!(ask.status.success(), "{}", said(&ask));
}
