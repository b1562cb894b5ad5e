//! Data where it lies: Parquet and tar files train as the JSON of the same samples does.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::world::{World, complaint, said};

/// The fixtures of the readers: six samples in every form.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sq-llava-data/tests/fixtures/sources")
        .join(name)
}

/// `sq-llava train` on sources, the same in both stages.
fn command(world: &World, out: &str, sources: &[String], more: &[&str]) -> Command {
    let mut recipe = std::fs::read_to_string(world.path("recipe.toml")).expect("read");
    for source in sources {
        for stage in [1, 2] {
            recipe += &format!("[[stage{stage}.sources]]\n{source}\n");
        }
    }
    let path = world.path(&format!("{}.toml", out.replace('/', "-")));
    std::fs::write(&path, recipe).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command
        .args(["train", "--device", "cpu", "--quiet", "--recipe"])
        .arg(path)
        .arg("--llm")
        .arg(world.path("base"))
        .arg("--images")
        .arg(fixture("pictures"))
        .arg("--out")
        .arg(world.path(out))
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn source(path: &Path) -> String {
    format!("data = '{}'", path.display())
}

fn train(world: &World, out: &str, sources: &[String], more: &[&str]) -> String {
    let output = command(world, out, sources, more).output().expect("starts");
    assert!(output.status.success(), "{out}: {}", said(&output));
    said(&output)
}

fn refused(world: &World, out: &str, sources: &[String], more: &[&str]) -> String {
    complaint(&command(world, out, sources, more).output().expect("starts"))
}

/// Trains, is killed after a step, goes on.
fn killed(world: &World, out: &str, sources: &[String], more: &[&str], step: usize) {
    let mut child = command(world, out, sources, more).spawn().expect("starts");
    world.wait_for(out, step, &mut child);
    child.kill().expect("killed");
    child.wait().expect("gone");
    world.resumed(out, &["--resume"]);
}

#[test]
fn every_form_trains_as_the_json_does_killed_or_not() {
    let world = World::new();
    let json = [source(&fixture("data.json"))];
    train(&world, "json", &json, &[]);
    for (step, name) in [(5, "datasets.parquet"), (17, "data.tar")] {
        train(&world, name, &[source(&fixture(name))], &[]);
        world.assert_same("json", name);
        let out = format!("killed-{name}");
        killed(&world, &out, &[source(&fixture(name))], &[], step);
        world.assert_same("json", &out);
    }
    // The short form; another codec, and messages as chat programs have them.
    let short =
        [1, 2].map(|stage| format!("stage{stage}.{}", source(&fixture("messages.parquet"))));
    let short: Vec<&str> = short.iter().flat_map(|set| ["--set", set]).collect();
    train(&world, "short", &[], &short);
    world.assert_same("json", "short");
}

#[test]
fn sources_are_mixed_by_their_repeats_and_resumed() {
    let world = World::new();
    let columns = "columns = {id = 'key', image = 'photo', question = 'q', answer = 'a'}";
    let sources = [
        source(&fixture("data.json")) + "\nrepeat = 0.5",
        source(&fixture("col*.parquet")) + "\nrepeat = 1.4\n" + columns,
        format!(
            "data = ['{}']\nrepeat = 2",
            fixture("captions.tar").display()
        ),
    ];
    let more = [
        "--set",
        "stage1.grouping='modality_length'",
        "--set",
        "stage2.grouping='length'",
    ];
    train(&world, "whole", &sources, &more);
    // 16 samples, of which a quarter is held out; the rest by their repeats, at most.
    let samples = world.log("whole", "log.jsonl").len();
    assert!(samples > 2 * 6 * 5, "{samples} steps");
    killed(&world, "killed", &sources, &more, samples / 2 + 3);
    world.assert_same("whole", "killed");

    let other = sources.clone().map(|source| source.replace("0.5", "0.6"));
    let error = refused(
        &world,
        "killed",
        &other,
        &[&more[..], &["--resume"]].concat(),
    );
    assert!(
        error.contains("stage1.sources[0].repeat was 0.5 and is 0.6"),
        "{error}"
    );
    let error = refused(&world, "none", &[sources[0].replace("0.5", "0")], &[]);
    assert!(error.contains("stage1.sources[0].repeat"), "{error}");
    let error = refused(
        &world,
        "both",
        &sources,
        &["--data", "x.json", "--set", "stages=[2]"],
    );
    assert!(error.contains("stage2.data and stage2.sources"), "{error}");
}

#[test]
fn a_shard_that_changed_is_refused() {
    let world = World::new();
    let folder = world.path("shards");
    std::fs::create_dir(&folder).expect("made");
    for (name, text) in [
        ("datasets.parquet", b"A tall tree."),
        ("data.tar", b"A tall tree."),
    ] {
        let path = folder.join(name);
        std::fs::copy(fixture(name), &path).expect("copied");
        let sources = [source(&fixture("data.json")), source(&path)];
        let mut child = command(&world, name, &sources, &[])
            .spawn()
            .expect("starts");
        world.wait_for(name, 3, &mut child);
        child.kill().expect("killed");
        child.wait().expect("gone");
        let good = std::fs::read(&path).expect("read");
        let mut bytes = good.clone();
        let at = bytes.windows(text.len()).rposition(|w| w == text);
        bytes[at.expect("the text")] = b'B';
        std::fs::write(&path, bytes).expect("written");
        let error = complaint(&world.resume(name, &["--resume"]));
        assert!(
            error.contains("stage1.sources[1] has other content") && error.contains(name),
            "{error}"
        );
        // Elsewhere it may lie.
        let moved = folder.join(format!("moved-{name}"));
        std::fs::write(&moved, good).expect("written");
        let sources = [source(&fixture("data.json")), source(&moved)];
        train(&world, name, &sources, &["--resume"]);
    }
}

/// Damages a file.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Of two rows of `messages.parquet`.
fn damage_text(bytes: &mut [u8]) {
    let frame = [0x28, 0xb5, 0x2f, 0xfd];
    let at = bytes
        .windows(4)
        .rposition(|w| w == frame)
        .expect("a frame of zstd");
    bytes[at..at + 12].fill(0xff);
}

/// Without validation, in one epoch of one stage.
const ONCE: [&str; 10] = [
    "--set",
    "stages=[1]",
    "--set",
    "stage1.epochs=1",
    "--set",
    "validation.every=0",
    "--set",
    "validation.fraction=0",
    "--set",
    "max_bad_images=1",
];

#[test]
fn what_is_damaged_is_named_and_left_out() {
    let world = World::new();
    let damaged = |name: &str, change: Change| {
        let mut bytes = std::fs::read(fixture(name)).expect("read");
        change(&mut bytes);
        std::fs::write(world.path(name), bytes).expect("written");
        [source(&world.path(name))]
    };
    let picture = |bytes: &mut Vec<u8>| {
        // Its footer has parts of pictures too.
        let end = match bytes.starts_with(b"PAR1") {
            true => 12_000,
            false => bytes.len(),
        };
        let found = bytes[..end].windows(4).rposition(|w| w == b"IDAT");
        let at = found.expect("a picture");
        bytes[at + 4..at + 60].fill(0);
    };
    let text = |bytes: &mut Vec<u8>| damage_text(bytes);
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    let cases: [(&str, Change, &str, usize); 4] = [
        ("datasets.parquet", &picture, "row 5", 1),
        ("messages.parquet", &text, "row ", 2),
        ("data.tar", &picture, "sample \"sky\"", 1),
        ("data.tar", &cut, "cut short", 0),
    ];
    for (number, (name, change, place, lost)) in cases.into_iter().enumerate() {
        let sources = damaged(name, change);
        let error = refused(&world, &format!("error-{number}"), &sources, &ONCE);
        assert!(error.contains(name) && error.contains(place), "{error}");
        assert!(lost == 0 || !world.path(&format!("error-{number}/config.json")).exists());
        let out = format!("skip-{number}");
        let skip = [&ONCE[..], &["--set", "bad_images='skip'"]].concat();
        let warned = train(&world, &out, &sources, &skip);
        match lost {
            0 => assert!(warned.contains("cut short"), "{warned}"),
            lost => {
                let list = world.log(&out, "skipped.jsonl");
                assert_eq!(list.len(), lost, "{list:?}");
                let reason = list[0]["reason"].as_str().expect("a text");
                assert!(reason.contains(name) && reason.contains(place), "{reason}");
            }
        }
    }
    // A file without its footer tells nothing of its samples.
    let sources = damaged("datasets.parquet", &cut);
    let skip = [&ONCE[..], &["--set", "bad_images='skip'"]].concat();
    let error = refused(&world, "torn", &sources, &skip);
    assert!(error.contains("datasets.parquet: its footer"), "{error}");
}

#[test]
fn damage_is_passed_over_by_steps_of_one_sample_by_reports_and_by_dry_runs() {
    let world = World::new();
    let name = "messages.parquet";
    let mut bytes = std::fs::read(fixture(name)).expect("read");
    damage_text(&mut bytes);
    std::fs::write(world.path(name), bytes).expect("written");
    let sources = [source(&world.path(name))];
    let skip = [&ONCE[..], &["--set", "bad_images='skip'"]].concat();
    let told = train(
        &world,
        "dry",
        &sources,
        &[&skip[..], &["--dry-run"]].concat(),
    );
    assert!(told.contains("2 places of data are damaged"), "{told}");
    assert!(!world.path("dry").exists());
    let more = [
        "stage1.batch_size=1",
        "stage1.accumulation=1",
        "report.samples.every=1",
        "report.samples.count=6",
    ];
    let more = more.iter().flat_map(|set| ["--set", set]);
    let alone: Vec<&str> = skip.iter().copied().chain(more).collect();
    train(&world, "alone", &sources, &alone);
    assert_eq!(world.log("alone", "log.jsonl").len(), 6);
    assert_eq!(world.log("alone", "skipped.jsonl").len(), 2);
    // Three of those that can be read have a picture, and are shown after each step.
    assert_eq!(world.log("alone", "samples.jsonl").len(), 6 * 3);
}
