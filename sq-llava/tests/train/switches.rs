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
