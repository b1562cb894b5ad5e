//! Several devices give what one gives.

use crate::world::{STEPS, World, random, said};

#[test]
fn two_devices_train_as_one() {
    let world = World::new();
    let sets = [
        "stage1.accumulation=3",
        "stage2.accumulation=3",
        "stage1.epochs=2",
        "stage2.epochs=3",
        // The CPU backend's random numbers are one stream for all its devices.
        "lora.llm.dropout=0",
        "lora.vision.dropout=0",
        "model.redraw_centers=false",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    world.train("one", &sets);
    let mut compared = 0;
    // More devices than the last batches of a step are, too.
    for devices in ["devices=[0,1]", "devices=[0,1,2,3]"] {
        world.train(devices, &[&sets[..], &["--set", devices]].concat());
        compared += world.assert_close("one", devices, 1e-6);
    }
    assert!(compared > 80, "only {compared} tensors");
}

#[test]
fn groups_of_threads_train_as_one() {
    let world = World::new();
    let sets = [
        "stage1.epochs=3",
        "stage2.epochs=3",
        "lora.llm.dropout=0",
        "lora.vision.dropout=0",
        "model.redraw_centers=false",
    ];
    let batches = |size: usize, accumulation: usize| {
        [1, 2].into_iter().flat_map(move |stage| {
            [
                format!("stage{stage}.batch_size={size}"),
                format!("stage{stage}.accumulation={accumulation}"),
            ]
        })
    };
    let train = |out: &str, size, accumulation, more: &[&str]| {
        let own: Vec<String> = batches(size, accumulation).collect();
        let all = sets.into_iter().chain(own.iter().map(String::as_str));
        let all = all.chain(more.iter().copied());
        let all: Vec<&str> = all.flat_map(|set| ["--set", set]).collect();
        world.train(out, &all);
    };
    // Of three samples the last group of the step has none.
    train("one", 1, 4, &[]);
    train("groups", 2, 2, &["thread_groups=2"]);
    let more = ["thread_groups=4", "gradient_checkpointing=blocks"];
    train("recomputed", 4, 1, &more);
    let compared =
        world.assert_close("one", "groups", 1e-6) + world.assert_close("one", "recomputed", 1e-6);
    assert!(compared > 80, "only {compared} tensors");
}

#[test]
fn groups_of_threads_that_are_killed_end_as_if_they_had_not_been() {
    let world = World::new();
    let sets = [
        "thread_groups=2",
        "stage1.batch_size=2",
        "stage1.accumulation=1",
        "stage2.batch_size=2",
        "stage2.accumulation=1",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    world.train("whole", &sets);
    let after = 1 + random(2 * STEPS - 2);
    println!("killed after step {after}");
    let mut child = world.command("killed", &sets).spawn().expect("starts");
    world.wait_for("killed", after, &mut child);
    child.kill().expect("killed");
    child.wait().expect("gone");
    world.resumed("killed", &["--resume"]);
    world.assert_same("whole", "killed");
    let output = world.resume("killed", &["--resume", "--set", "thread_groups=1"]);
    let told = said(&output);
    assert!(told.contains("thread_groups was 2 and is 1"), "{told}");
}
