//! What goes wrong ends in one line, and nothing that was saved is lost.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::world::{World, complaint, said};

#[test]
fn recipe_errors_name_the_key() {
    let world = World::new();
    for (change, key) in [
        ("stage2.epochs=0", "stage2.epochs"),
        ("stage2.lr=1", "unknown field"),
        ("asking.delta=2", "asking.delta"),
    ] {
        let error = world.complaint("run", &["--set", change]);
        assert!(error.contains(key), "{error}");
    }
    let broken = world.path("broken.toml");
    std::fs::write(&broken, "[stage2\nepochs = 1").expect("written");
    let broken = broken.display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command.args(["train", "--recipe", &broken, "--llm", "x", "--out", "y"]);
    let error = complaint(&command.output().expect("starts"));
    assert!(error.contains("broken.toml"), "{error}");
    assert!(!world.path("run").exists(), "nothing was begun");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let world = World::new();
    std::fs::write(world.path("file"), "").expect("written");
    let error = world.complaint("file/run", &[]);
    assert!(error.contains("file/run"), "{error}");
    // Nobody, root included, writes into this one.
    if Path::new("/proc/self").exists() {
        let error = world.complaint("/proc/sq-llava", &[]);
        assert!(error.contains("/proc/sq-llava"), "{error}");
    }
}

/// A stopped run with checkpoints.
fn stopped(world: &World, out: &str) {
    let mut child = world.command(out, &[]).spawn().expect("starts");
    world.wait_for(out, 5, &mut child);
    let id = child.id().to_string();
    let status = Command::new("kill").args(["-s", "INT", &id]).status();
    assert!(status.expect("kill").success());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
}

#[test]
fn a_bad_sample_is_named_and_can_be_mended() {
    let world = World::new();
    let pictures = world.path("pictures");
    std::fs::create_dir(&pictures).expect("made");
    for path in golden::entries(&golden::repository().join("e_image")) {
        std::fs::copy(&path, pictures.join(golden::file_name(&path))).expect("copied");
    }
    let own = ["stage1", "stage2"].map(|s| format!("{s}.images='{}'", pictures.display()));
    let sets = ["--set", &own[0], "--set", &own[1]];
    world.train("whole", &sets);
    let name = "china_rgb_640x427.png";
    let good = std::fs::read(pictures.join(name)).expect("read");
    std::fs::write(pictures.join(name), &good[..good.len() / 3]).expect("written");
    let error = world.complaint("run", &sets);
    assert!(
        error.contains("sample china") && error.contains(name),
        "{error}"
    );
    std::fs::write(pictures.join(name), good).expect("written");
    world.train("run", &[&sets[..], &["--resume"]].concat());
    world.assert_same("whole", "run");
}

#[test]
fn a_loss_that_is_not_a_number_leaves_the_checkpoints() {
    let world = World::new();
    world.train("whole", &[]);
    stopped(&world, "run");
    // The frozen weights turn into something that gives no numbers.
    let shard = world.path("base/model-00002-of-00002.safetensors");
    let good = std::fs::read(&shard).expect("read");
    let mut bad = good.clone();
    let start = bad.len() - ((bad.len() / 2) & !3);
    for value in bad[start..].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    std::fs::write(&shard, &bad).expect("written");
    let error = complaint(&world.resume("run", &["--resume"]));
    assert!(
        error.contains("not finite") && error.contains("step"),
        "{error}"
    );
    std::fs::write(&shard, &good).expect("written");
    world.resumed("run", &["--resume"]);
    world.assert_same("whole", "run");
}

#[test]
fn a_file_too_large_for_the_disk_leaves_the_checkpoints() {
    let world = World::new();
    world.train("whole", &[]);
    stopped(&world, "run");
    let before = golden::entries(&world.path("run")).len();
    // No file above 16 KiB (32 blocks of 512 bytes), as if the disk had no more.
    let output: Output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_sq-llava"))
        .args(["train", "--device", "cpu", "--quiet", "--resume", "--out"])
        .arg(world.path("run"))
        .output()
        .expect("starts");
    let error = complaint(&output);
    assert!(error.contains("File too large"), "{error}");
    assert!(error.contains("run/"), "it names the file: {error}");
    assert!(
        !world.path("run/.unfinished").exists(),
        "it gives back what it took"
    );
    assert!(golden::entries(&world.path("run")).len() >= before);
    world.resumed("run", &["--resume"]);
    world.assert_same("whole", "run");
}

/// A disk of its own, where the system lets us have one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &Path, kib: u64) -> Option<Self> {
        std::fs::create_dir(path).expect("made");
        let size = format!("size={kib}k");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(path)
            .output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        mounted.then(|| Self(path.to_path_buf()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_the_checkpoints() {
    let world = World::new();
    world.train("whole", &[]);
    stopped(&world, "small");
    let size = |path: &Path| -> u64 {
        let output = Command::new("du")
            .arg("-sk")
            .arg(path)
            .output()
            .expect("du");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a size")
    };
    // Room for what is there and half a checkpoint.
    let checkpoint = golden::entries(&world.path("small"))
        .into_iter()
        .find(|p| golden::file_name(p).starts_with("checkpoint-"))
        .expect("a checkpoint");
    let room = size(&world.path("small")) + size(&checkpoint) / 2;
    let Some(disk) = SmallDisk::mount(&world.path("disk"), room) else {
        // The test above does the same by a limit on files.
        println!("no right to mount");
        return;
    };
    let copied = Command::new("cp")
        .arg("-a")
        .arg(world.path("small"))
        .arg(&disk.0)
        .status();
    assert!(copied.expect("cp").success());
    let keep = ["--resume", "--set", "keep_checkpoints=100"];
    let error = complaint(&world.resume("disk/small", &keep));
    assert!(error.contains("No space left on device"), "{error}");
    let moved = Command::new("cp")
        .arg("-a")
        .arg(disk.0.join("small"))
        .arg(world.path("moved"))
        .status();
    assert!(moved.expect("cp").success());
    world.resumed("moved", &["--resume"]);
    world.assert_same("whole", "moved");
}

/// `count` samples of pictures, none of which is there.
fn without_pictures(world: &World, count: usize) {
    let sample = |i: usize| {
        serde_json::json!({"id": format!("s{i}"), "image": format!("{i}.png"), "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat."},
        ]})
    };
    let samples: Vec<_> = (0..count).map(sample).collect();
    let text = serde_json::Value::Array(samples).to_string();
    std::fs::write(world.path("data.json"), text).expect("written");
    std::fs::create_dir_all(world.path("empty")).expect("made");
}

/// The folder of the pictures is there and empty, as of a share that is not mounted.
#[test]
fn fault_29_pictures_that_are_all_gone_are_an_error() {
    let world = World::new();
    let empty = world.path("empty").display().to_string();
    let images = [1, 2].map(|stage| format!("stage{stage}.images='{empty}'"));
    let sets = ["--set", &images[0], "--set", &images[1], "--set"];
    let more = [
        "--set",
        "validation.every=0",
        "--set",
        "validation.fraction=0",
    ];
    without_pictures(&world, 24);
    for policy in ["bad_images=skip", "bad_images=blank"] {
        let out = policy.replace('=', "-");
        let error = world.complaint(&out, &[&sets[..], &[policy], &more].concat());
        for part in ["bad pictures", ".png", "max_bad_images"] {
            assert!(error.contains(part), "{policy} {part}: {error}");
        }
        assert!(!world.path(&out).join("config.json").exists(), "{policy}");
    }
    // So few that the share says nothing, and yet nothing was learnt.
    without_pictures(&world, 4);
    let once = [
        "bad_images=skip",
        "--set",
        "stage1.epochs=1",
        "--set",
        "stage2.epochs=1",
    ];
    let error = world.complaint("few", &[&sets[..], &once, &more].concat());
    assert!(
        error.contains("stage 1: not one token was learnt"),
        "{error}"
    );
    let every = ["--set", "validation.every=1"];
    let error = world.complaint("valid", &[&sets[..], &once, &every].concat());
    assert!(error.contains("the validation had no token"), "{error}");
}

/// `2>&1 | head`: the reader of both streams goes away.
#[test]
fn fault_29_closed_streams_do_not_end_a_training() {
    let world = World::new();
    world.train("whole", &[]);
    for (name, closes_output) in [("error", false), ("both", true)] {
        let (reader, error) = std::io::pipe().expect("a pipe");
        let mut command = world.command(name, &["--set", "log_every=1"]);
        if closes_output {
            command.stdout(error.try_clone().expect("a pipe"));
        } else {
            command.stdout(Stdio::null());
        }
        let mut child = command.stderr(error).spawn().expect("starts");
        drop((command, reader));
        let status = child.wait().expect("ends");
        assert_eq!(status.code(), Some(0), "{name}");
        world.assert_same("whole", name);
    }
    // Asked to stop, it says so in its status nonetheless.
    let (reader, error) = std::io::pipe().expect("a pipe");
    let mut command = world.command("stopped", &["--set", "stage2.epochs=4000"]);
    command
        .stdout(error.try_clone().expect("a pipe"))
        .stderr(error);
    let mut child = command.spawn().expect("starts");
    drop((command, reader));
    world.wait_for("stopped", 14, &mut child);
    let id = child.id().to_string();
    let status = Command::new("kill").args(["-s", "INT", &id]).status();
    assert!(status.expect("kill").success());
    assert_eq!(child.wait().expect("ends").code(), Some(130));
}

/// Waits for a writer that never comes, unless it looks first what it opens.
#[cfg(unix)]
#[test]
fn fault_29_a_pipe_in_place_of_a_file_is_refused() {
    let world = World::new();
    let pipe = world.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    let text = pipe.display().to_string();
    let data = format!("stage1.data='{text}'");
    let valid = format!("stage2.validation='{text}'");
    for set in [&data, &valid] {
        let error = world.complaint("run", &["--set", set]);
        assert!(error.contains("pipe: a pipe"), "{error}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command.args(["train", "--recipe", &text, "--llm", "x", "--out", "y"]);
    let error = complaint(&command.output().expect("starts"));
    assert!(error.contains("pipe: a pipe"), "{error}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    let error = complaint(&command.args(["check", &text]).output().expect("starts"));
    assert!(error.contains("pipe: a pipe"), "{error}");
}
