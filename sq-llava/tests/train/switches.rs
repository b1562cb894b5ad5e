//! The switches of the ablation, seen in what a run leaves.

use golden::{Tensors, Value};

use crate::world::{World, said};

struct Run {
    world: World,
    said: String,
}

/// A short run of both stages with some switches.
fn run(switches: &[&str]) -> Run {
    let world = World::new();
    let short = ["stage1.epochs=1", "stage2.epochs=2"];
    let sets: Vec<&str> = short
        .iter()
        .chain(switches)
        .flat_map(|set| ["--set", set])
        .collect();
    let output = world.command("run", &sets).output().expect("starts");
    let said = said(&output);
    assert!(output.status.success(), "{switches:?}: {said}");
    Run { world, said }
}

impl Run {
    fn read(&self, name: &str) -> Tensors {
        Tensors::read(&self.world.path("run").join(name))
    }

    /// Number of values of a file's tensors whose names pass.
    fn values(&self, name: &str, pass: impl Fn(&str) -> bool) -> usize {
        let tensors = self.read(name);
        let of = |key: &str| tensors.shape(key).iter().product::<usize>();
        tensors.names().filter(|key| pass(key)).map(of).sum()
    }

    /// Whether stage 2 moved a tensor of the projector or the prototypes.
    fn moved(&self, part: &str) -> bool {
        let [before, after] = ["stage1/", ""]
            .map(|stage| self.read(&format!("{stage}non_lora_trainables.safetensors")));
        let mut keys = before.names().filter(|key| key.contains(part)).peekable();
        assert!(keys.peek().is_some(), "no {part}");
        keys.any(|key| before.f32(key) != after.f32(key))
    }

    fn says(&self, stage: u8, group: &str, count: usize) {
        let line = format!("stage {stage}: {group} trains {count} parameters");
        assert!(self.said.contains(&line), "{line}: {}", self.said);
    }

    fn asked(&self) -> bool {
        let asks = |line: &Value| line["question_tokens"].as_u64() > Some(0);
        self.world.log("run", "log.jsonl").iter().any(asks)
    }
}

#[test]
fn everything_on() {
    let run = run(&[]);
    assert!(run.asked());
    assert!(run.moved("mm_projector") && run.moved("prototype"));
    // What is announced is what is saved. The centres are a buffer.
    let parts = run.values("non_lora_trainables.safetensors", |key| {
        !key.contains("centers")
    });
    let rows = run.values("new_tokens.safetensors", |_| true);
    run.says(1, "projector", parts);
    run.says(1, "llm", 0);
    run.says(2, "projector", parts + rows);
    run.says(2, "llm", run.values("adapter_model.safetensors", |_| true));
    run.says(
        2,
        "vision",
        run.values("Vit-lora/adapter_model.safetensors", |_| true),
    );
    assert!(!run.said.contains("by the recipe alone"), "{}", run.said);
    assert!(run.said.contains("tokens an epoch"), "{}", run.said);
}

#[test]
fn no_self_questioning() {
    let run = run(&["asking.delta=0"]);
    assert!(!run.asked());
}

/// An ablation's row without self-questioning never asks, whatever else the recipe says of asking.
#[test]
fn fault_16_a_delta_of_nothing_overrules_sources_and_schedule() {
    let run = run(&[
        "asking.delta=0",
        "asking.schedule=linear",
        "asking.delta_end=1",
        "asking.sources={\"data.json\"=1.0}",
    ]);
    assert!(!run.asked());
    assert!(run.said.contains("nothing is asked"), "{}", run.said);
}

#[test]
fn fault_16_epochs_can_be_a_fraction() {
    let run = run(&["stage1.epochs=0.5", "stage2.epochs=1.5"]);
    let log = run.world.log("run", "log.jsonl");
    let places: Vec<[u64; 3]> = log
        .iter()
        .map(|line| ["stage", "step", "epoch"].map(|key| line[key].as_u64().expect("a number")))
        .collect();
    // Three samples, two a step: two steps an epoch.
    assert_eq!(places, [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 3, 2]]);
}

/// The released stage 1 crops and stage 2 pads.
#[test]
fn fault_10_each_stage_sees_pictures_its_own_way() {
    let run = run(&["stage1.image_aspect_ratio=crop"]);
    for (folder, aspect) in [("run/stage1", "crop"), ("run", "pad")] {
        for file in ["config.json", "preprocessor_config.json"] {
            let json = golden::json(&run.world.path(folder).join(file));
            assert_eq!(json["image_aspect_ratio"], aspect, "{folder}/{file}");
        }
    }
    assert!(
        run.said.contains("\"pad\", as the recipe says") && run.said.contains("\"crop\""),
        "{}",
        run.said
    );
    // The picture itself is another: a wide one without its ends.
    let padded = self::run(&[]);
    let first = |run: &Run| run.world.log("run", "log.jsonl")[0]["loss"].as_f64();
    assert_ne!(first(&run), first(&padded));
}

/// A recipe for stage 2 alone that does not fit the projector it starts from.
#[test]
fn fault_10_a_recipe_that_does_not_fit_the_projector_is_refused() {
    let run = run(&[
        "stages=[1]",
        "model.select_layer=-3",
        "stage1.image_aspect_ratio=crop",
    ]);
    let before = run.world.path("run").display().to_string();
    let start = [
        "--projector",
        &before,
        "--set",
        "stages=[2]",
        "--set",
        "stage2.epochs=1",
    ];
    let layer = ["--set", "model.select_layer=-3"];
    let error = run.world.complaint("other", &start);
    for part in ["model.select_layer", "-2", "-3", &before] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let more = [&start[..], &layer, &["--set", "model.num_centers=5"]].concat();
    let error = run.world.complaint("other", &more);
    for part in ["model.num_centers is 5", "has 4", &before] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // How pictures became square before goes on, unless the recipe has another word, which is told.
    let pad = ["--set", "model.image_aspect_ratio=pad"];
    for (out, more, aspect) in [("other", &[][..], "crop"), ("told", &pad[..], "pad")] {
        let output = run.world.command(out, &[&start[..], &layer, more].concat());
        let output = { output }.output().expect("starts");
        assert!(output.status.success(), "{}", said(&output));
        let told = said(&output).contains("saw them by \"crop\"");
        assert_eq!(told, aspect == "pad", "{}", said(&output));
        let json = golden::json(&run.world.path(out).join("config.json"));
        assert_eq!(json["image_aspect_ratio"], aspect);
        assert_eq!(json["mm_vision_select_layer"], -3);
    }
}

#[test]
fn no_prototypes() {
    let run = run(&["model.prototype=false"]);
    let tensors = run.read("non_lora_trainables.safetensors");
    assert!(tensors.names().all(|key| !key.contains("prototype")));
    assert!(run.moved("mm_projector"));
}

#[test]
fn no_vision_adapters() {
    let run = run(&["lora.vision.r=0"]);
    assert!(!run.world.path("run/Vit-lora").exists());
    run.says(2, "vision", 0);
}

#[test]
fn a_frozen_projector() {
    let run = run(&["stage2.freeze_projector=true"]);
    assert!(!run.moved("mm_projector") && !run.moved("prototype"));
    // The rows of the role tokens still learn.
    run.says(
        2,
        "projector",
        run.values("new_tokens.safetensors", |_| true),
    );
    let adapters = run.read("adapter_model.safetensors");
    let moves = |key: &str| key.contains("lora_B") && adapters.f32(key).iter().any(|&v| v != 0.0);
    assert!(adapters.names().any(moves));
}
