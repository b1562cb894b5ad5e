//! Stopped and killed runs end as if they had never been.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::world::{STEPS, World, complaint, random, said};

fn signal(child: &std::process::Child, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
}

#[test]
fn killed_at_random_steps_it_ends_as_if_it_had_not() {
    let world = World::new();
    world.train("whole", &[]);
    assert_eq!(world.lines("whole"), 2 * STEPS);
    assert_eq!(world.log("whole", "validation.jsonl").len(), 2 * STEPS / 3);

    // Once anywhere, then once more further on; each time in the middle of whatever it does.
    let first = 1 + random(2 * STEPS - 2);
    let second = first + 1 + random(2 * STEPS - 1 - first);
    println!("killed after steps {first} and {second}");
    let mut child = world.command("killed", &[]).spawn().expect("starts");
    world.wait_for("killed", first, &mut child);
    std::thread::sleep(Duration::from_millis(random(40) as u64));
    child.kill().expect("killed");
    child.wait().expect("gone");
    let mut child = world
        .command("killed", &["--resume"])
        .spawn()
        .expect("starts");
    // Its log is taken back before it goes on, so it may be shorter for a while.
    std::thread::sleep(Duration::from_millis(300));
    world.wait_for("killed", second, &mut child);
    child.kill().expect("killed");
    child.wait().expect("gone");

    world.resumed("killed", &["--resume"]);
    world.assert_same("whole", "killed");

    // A finished run has nothing left to do, and stays as it is.
    world.resumed("killed", &["--resume"]);
    world.assert_same("whole", "killed");
}

#[test]
fn a_torn_checkpoint_is_refused_and_the_one_before_it_offered() {
    let world = World::new();
    world.train("whole", &[]);
    let mut child = world.command("torn", &[]).spawn().expect("starts");
    world.wait_for("torn", STEPS + 5, &mut child);
    child.kill().expect("killed");
    child.wait().expect("gone");

    let run = world.path("torn");
    let mut steps: Vec<usize> = golden::entries(&run)
        .iter()
        .filter_map(|p| {
            golden::file_name(p)
                .strip_prefix("checkpoint-2-")?
                .parse()
                .ok()
        })
        .collect();
    steps.sort_unstable();
    let [.., before, newest] = steps[..] else {
        panic!("checkpoints of stage 2: {steps:?}");
    };
    // Killed while the next one was being written.
    let unfinished = run.join(".unfinished");
    std::fs::create_dir_all(&unfinished).expect("made");
    std::fs::write(unfinished.join("config.json"), "{").expect("written");
    // And the newest one lost a part of a file, as after a loss of power.
    let file = run.join(format!("checkpoint-2-{newest}/optimizer.safetensors"));
    let bytes = std::fs::read(&file).expect("read");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("written");

    let error = complaint(&world.resume("torn", &["--resume"]));
    let offered = format!("--resume=checkpoint-2-{before}");
    assert!(error.contains("optimizer.safetensors"), "{error}");
    assert!(
        error.contains(&format!("checkpoint-2-{newest} is torn")),
        "{error}"
    );
    assert!(error.contains(&offered), "{error}");
    // A changed byte is seen too.
    let mut changed = bytes.clone();
    changed[bytes.len() - 1] ^= 1;
    std::fs::write(&file, &changed).expect("written");
    let error = complaint(&world.resume("torn", &["--resume"]));
    assert!(error.contains("checksum"), "{error}");

    world.resumed("torn", &[&offered]);
    world.assert_same("whole", "torn");
}

#[test]
fn ctrl_c_saves_and_the_run_goes_on_later() {
    let world = World::new();
    world.train("whole", &[]);
    let mut child = world.command("stopped", &["--set", "save_every=0"]);
    let mut child = child.spawn().expect("starts");
    world.wait_for("stopped", STEPS + 1 + random(STEPS - 8), &mut child);
    signal(&child, "INT");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let error = said(&output);
    let last = error.trim_end().lines().last().unwrap_or_default();
    let steps = world.lines("stopped") - STEPS;
    let checkpoint = format!("checkpoint-2-{steps}");
    assert!(
        last.starts_with("stopped") && last.contains(&checkpoint),
        "{error}"
    );
    assert!(
        !world.path("stopped/config.json").exists(),
        "it is not finished"
    );
    assert!(world.path("stopped").join(checkpoint).is_dir());
    world.resumed("stopped", &["--resume"]);
    world.assert_same("whole", "stopped");
}

#[test]
fn a_second_ctrl_c_ends_it_at_once() {
    let world = World::new();
    // A step that takes long.
    let slow = [
        "stages=[2]",
        "model.prototype=false",
        "stage2.accumulation=4000",
        "stage2.epochs=4000",
    ];
    let sets: Vec<&str> = slow.iter().flat_map(|set| ["--set", set]).collect();
    // One step of an epoch's four samples is short, so the epochs are copies in one file.
    let data = std::fs::read_to_string(world.path("data.json")).expect("read");
    let inner = data
        .trim()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let many = vec![inner; 400].join(",");
    std::fs::write(world.path("data.json"), format!("[{many}]")).expect("written");
    let mut child = world.command("run", &sets).spawn().expect("starts");
    let start = Instant::now();
    while !world.path("run/log.csv").exists() {
        assert!(start.elapsed().as_secs() < 100 && child.try_wait().expect("a process").is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        child.try_wait().expect("a process").is_none(),
        "the first one waits for the step"
    );
    signal(&child, "INT");
    let told = Instant::now();
    let output = child.wait_with_output().expect("ends");
    assert!(told.elapsed().as_secs() < 30);
    assert_eq!(output.status.code(), Some(130));
    assert!(!world.path("run/checkpoint-2-1").exists());
}

#[test]
fn another_recipe_or_other_data_is_refused_by_name() {
    let world = World::new();
    let mut child = world.command("run", &[]).spawn().expect("starts");
    world.wait_for("run", 4, &mut child);
    let busy = world.complaint("run", &["--resume"]);
    assert!(busy.contains("another process"), "{busy}");
    signal(&child, "TERM");
    let stopped = child.wait_with_output().expect("ends");
    assert_eq!(stopped.status.code(), Some(130), "{}", said(&stopped));

    let error = world.complaint("run", &["--resume", "--set", "stage2.lr_llm=1e-4"]);
    assert!(
        error.contains("stage2.lr_llm was 0.005 and is 0.0001"),
        "{error}"
    );
    let error = world.complaint("run", &[]);
    assert!(
        error.contains("not empty") && error.contains("--resume"),
        "{error}"
    );
    let error = world.complaint("nowhere", &["--resume"]);
    assert!(error.contains("no run here"), "{error}");
    let error = world.complaint("run", &["--resume=checkpoint-9-9"]);
    assert!(
        error.contains("there is no checkpoint checkpoint-9-9"),
        "{error}"
    );

    let data = std::fs::read_to_string(world.path("data.json")).expect("read");
    std::fs::write(world.path("data.json"), data.replace("Red.", "Blu.")).expect("written");
    let error = world.complaint("run", &["--resume"]);
    assert!(
        error.contains("stage1.data") && error.contains("other content"),
        "{error}"
    );
    std::fs::write(world.path("data.json"), data).expect("written");

    let config = world.path("base/config.json");
    let text = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, text.clone() + " ").expect("written");
    let error = world.complaint("run", &["--resume"]);
    assert!(error.contains("--llm is another model"), "{error}");
    std::fs::write(&config, text).expect("written");
    // How it is run may change.
    world.train(
        "run",
        &["--resume", "--set", "workers=2", "--set", "save_every=5"],
    );
}
