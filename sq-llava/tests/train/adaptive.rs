//! Adaptive asking: δ follows what is measured, and is the same however the run got there.

use golden::Value;

use crate::world::{World, random, said};

/// Samples of two folders of pictures, and one without a picture, in a stage that asks, of 18 steps
/// of three batches; δ moves every so many steps.
pub fn prepare(world: &World, every: usize) -> Vec<String> {
    let pictures = [
        "china_rgb_640x427.png",
        "camera_gray_512.png",
        "chelsea_rgba_tall.png",
        "wide_600x37.png",
    ];
    let mut samples = vec![serde_json::json!({"id": "text", "conversations": [
        {"from": "human", "value": "What is the capital of France?"},
        {"from": "gpt", "value": "Paris."},
    ]})];
    for (i, (picture, source)) in pictures
        .iter()
        .cycle()
        .zip(["photos", "more photos"].into_iter().cycle())
        .take(8)
        .enumerate()
    {
        let folder = world.path("pictures").join(source);
        std::fs::create_dir_all(&folder).expect("made");
        let from = golden::repository().join("e_image").join(picture);
        std::fs::copy(from, folder.join(picture)).expect("copied");
        samples.push(
            serde_json::json!({"id": i, "image": format!("{source}/{picture}"), "conversations": [
                {"from": "human", "value": format!("<image>\nWhat is picture {i}?")},
                {"from": "gpt", "value": "A picture."},
                {"from": "human", "value": "Is it in color, or is it in black and white?"},
                {"from": "gpt", "value": if i % 2 == 0 { "Yes." } else { "No." }},
            ]}),
        );
    }
    let data = Value::Array(samples).to_string();
    std::fs::write(world.path("data.json"), data).expect("written");
    let sets = [
        "stages=[2]",
        "model.prototype=false",
        "workers=3",
        "asking.schedule=adaptive",
        "asking.smoothing=0.5",
        "asking.strength=1",
        "stage2.epochs=6",
        "stage2.accumulation=3",
        "stage2.lr_llm=2e-2",
        "validation.every=5",
        "validation.fraction=0.1",
    ];
    let images = format!("stage2.images='{}'", world.path("pictures").display());
    let more = [images, format!("asking.every={every}")];
    let sets = sets.into_iter().map(str::to_owned).chain(more);
    sets.flat_map(|set| ["--set".to_owned(), set]).collect()
}

fn with<'a>(sets: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().map(String::as_str);
    sets.chain(more.iter().copied()).collect()
}

/// δ of each source in each step, as the log has it.
pub fn deltas(world: &World, run: &str) -> Vec<String> {
    let log = world.log(run, "log.jsonl");
    log.iter().map(|line| line["delta"].to_string()).collect()
}

/// Looks whether δ of each source moves with each interval, within its bounds.
pub fn assert_moves(world: &World, run: &str, every: usize) {
    let log = world.log(run, "log.jsonl");
    assert_eq!(log.len(), 18);
    for source in ["photos", "more photos"] {
        let delta = |line: &Value| line["delta"][source].as_f64().expect("a number");
        let all: Vec<f64> = log.iter().map(delta).collect();
        // The first interval is where they start; the second moves the fourth.
        let (still, moving) = all.split_at(3 * every);
        assert!(still.iter().all(|delta| *delta == 0.5), "{source}: {all:?}");
        assert!(all.iter().all(|delta| (0.1..=0.9).contains(delta)));
        let intervals: Vec<&[f64]> = moving.chunks(every).collect();
        assert!(
            intervals
                .iter()
                .all(|deltas| deltas.iter().all(|delta| delta == &deltas[0]))
        );
        // At a bound it may stay.
        let other = intervals.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(other >= 3.min(intervals.len() - 1), "{source}: {all:?}");
    }
    let differ = |line: &&Value| line["delta"]["photos"] != line["delta"]["more photos"];
    assert!(log.iter().filter(differ).count() > 4);
}

#[test]
fn killed_and_resumed_it_draws_what_it_would_have_drawn() {
    let world = World::new();
    // Checkpoints every two steps, mostly in the middle of an interval.
    let sets = prepare(&world, 3);
    world.train("whole", &with(&sets, &[]));
    assert_moves(&world, "whole", 3);

    let step = 3 + random(13);
    println!("killed after step {step}");
    let mut child = world.command("killed", &with(&sets, &[])).spawn();
    let child = child.as_mut().expect("starts");
    world.wait_for("killed", step, child);
    child.kill().expect("killed");
    child.wait().expect("gone");
    world.resumed("killed", &["--resume"]);
    world.assert_same("whole", "killed");
    assert_eq!(deltas(&world, "whole"), deltas(&world, "killed"));
    let csv = |run: &str| {
        let text = std::fs::read_to_string(world.path(run).join("log.csv")).expect("a log");
        let fields = text
            .lines()
            .map(|line| line.split_once("\"{").unwrap_or_default().1.to_owned());
        fields.collect::<Vec<_>>()
    };
    assert_eq!(csv("whole"), csv("killed"));
    assert!(
        csv("whole")[4].contains("\"\"photos\"\":0."),
        "{:?}",
        csv("whole")
    );
    let page = std::fs::read_to_string(world.path("killed/report.html")).expect("a page");
    assert!(page.contains("stage 2, asking") && page.contains("more photos"));

    // Threads that run further ahead, and packed rows: the same draws.
    world.train("workers", &with(&sets, &["--set", "workers=1"]));
    world.assert_same("whole", "workers");
    assert_eq!(deltas(&world, "whole"), deltas(&world, "workers"));
    world.train("packed", &with(&sets, &["--set", "stage2.packing=true"]));
    assert_moves(&world, "packed", 3);
    let close = |a: &str, b: &str, tolerance: f64| {
        for (a, b) in world
            .log(a, "log.jsonl")
            .iter()
            .zip(world.log(b, "log.jsonl"))
        {
            for source in ["photos", "more photos"] {
                let [a, b] = [a, &b].map(|line| line["delta"][source].as_f64().expect("a number"));
                assert!((a - b).abs() < tolerance, "{a} and {b}");
            }
        }
    };
    close("whole", "packed", 1e-3);
}

/// Computed again from the losses in the log, where all samples are of one source.
#[test]
fn delta_is_what_the_logged_losses_say() {
    let world = World::new();
    let sets = prepare(&world, 1);
    let path = world.path("data.json");
    let text = std::fs::read_to_string(&path).expect("read");
    let mut samples: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    samples.retain(|sample| {
        sample["image"]
            .as_str()
            .is_some_and(|path| path.starts_with("photos/"))
    });
    samples.extend_from_within(..);
    std::fs::write(&path, Value::Array(samples).to_string()).expect("written");
    let (every, smoothing, strength) = (3, 0.5, 1);
    let plain = [
        "--set",
        "asking.every=3",
        "--set",
        "validation.every=0",
        "--set",
        "validation.fraction=0",
    ];
    let packed = [&plain[..], &["--set", "stage2.packing=true"]].concat();
    for (run, more) in [("padded", &plain[..]), ("packed", &packed)] {
        world.train(run, &with(&sets, more));
        let log = world.log(run, "log.jsonl");
        let number = |line: &Value, key: &str| line[key].as_f64().unwrap_or(0.0);
        let mean = |lines: &[Value], what: &str| {
            let tokens = format!("{what}_tokens");
            let sum = lines
                .iter()
                .map(|line| number(line, &format!("loss_{what}")) * number(line, &tokens));
            sum.sum::<f64>() / lines.iter().map(|line| number(line, &tokens)).sum::<f64>()
        };
        let losses: Vec<[f64; 2]> = log
            .chunks(every)
            .map(|lines| ["question", "answer"].map(|what| mean(lines, what)))
            .collect();
        assert!(losses.len() > 5 && losses.iter().flatten().all(|loss| loss.is_finite()));
        let mut smooth = losses[0];
        let mut expected = vec![0.5, 0.5];
        for loss in &losses {
            for (mean, loss) in smooth.iter_mut().zip(loss) {
                *mean = smoothing * *mean + (1.0 - smoothing) * loss;
            }
            let ratio = smooth[0] / losses[0][0] / (smooth[1] / losses[0][1]);
            expected.push((0.5 * ratio.powi(strength)).clamp(0.1, 0.9));
        }
        for (line, step) in log.iter().zip(0..) {
            let (found, expected) = (number(&line["delta"], "photos"), expected[step / every]);
            assert!(
                (found - expected).abs() < 1e-9,
                "{run}, step {step}: {found}, {expected}"
            );
        }
        assert!(
            expected.iter().any(|delta| (delta - 0.5).abs() > 0.01),
            "{expected:?}"
        );
    }
}

#[test]
fn two_devices_draw_as_one() {
    let world = World::new();
    let sets = prepare(&world, 1);
    let still = [
        "lora.llm.dropout=0",
        "lora.vision.dropout=0",
        "model.redraw_centers=false",
    ];
    let still: Vec<&str> = still.iter().flat_map(|set| ["--set", set]).collect();
    let devices = [&still[..], &["--set", "devices=[0,1]"]].concat();
    world.train("one", &with(&sets, &still));
    world.train("two", &with(&sets, &devices));
    world.train("again", &with(&sets, &devices));
    assert_moves(&world, "two", 1);
    world.assert_same("two", "again");
    assert_eq!(deltas(&world, "two"), deltas(&world, "again"));
    assert!(world.assert_close("one", "two", 1e-5) > 40);
    let count = |run: &str| -> Vec<u64> {
        let log = world.log(run, "log.jsonl");
        let tokens = log.iter().map(|line| line["question_tokens"].as_u64());
        tokens.map(|tokens| tokens.expect("a count")).collect()
    };
    assert_eq!(count("one"), count("two"));
}

#[test]
fn what_it_cannot_follow_it_refuses_or_says() {
    let world = World::new();
    let sets = prepare(&world, 1);
    let refused = |out: &str, more: &str| world.complaint(out, &with(&sets, &["--set", more]));
    let error = refused("weight", "loss.question_weight=0");
    assert!(error.contains("loss.question_weight"), "{error}");
    let error = refused("start", "asking.delta=0.95");
    assert!(error.contains("asking.delta_max, 0.9"), "{error}");

    // A source with a constant of its own is none of those that are followed.
    let own = [
        "--set",
        "asking.sources={photos=0.3}",
        "--set",
        "stage2.epochs=2",
    ];
    world.train("own", &with(&sets, &own));
    for line in world.log("own", "log.jsonl") {
        let names: Vec<&String> = line["delta"]
            .as_object()
            .expect("an object")
            .keys()
            .collect();
        assert_eq!(names, ["more photos"]);
    }
    // Off, it measures nothing; nor does a stage that does not ask.
    let off = ["--set", "asking.delta=0", "--set", "stage2.epochs=1"];
    world.train("off", &with(&sets, &off));
    assert!(
        world
            .log("off", "log.jsonl")
            .iter()
            .all(|line| line.get("delta").is_none())
    );

    // It says beforehand what it follows, and that nothing of it would be seen.
    let dry = ["--dry-run", "--set", "asking.every=7"];
    let output = world.command("dry", &with(&sets, &dry)).output();
    let output = output.expect("starts");
    let told = said(&output);
    assert!(output.status.success(), "{told}");
    for part in [
        "2 data sources (more photos, photos)",
        "end before adaptive asking moves",
        "below 6",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}
