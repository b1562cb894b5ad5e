//! Packed samples: the same steps, and a killed run that goes on as if it had not been.

use std::time::Duration;

use crate::world::{STEPS, World, random, said};

/// Two samples a step, which share a row.
const PACKED: [&str; 4] = [
    "--set",
    "stage1.packing=true",
    "--set",
    "stage2.packing=true",
];

/// Loss of every step and validation.
fn losses(world: &World, run: &str) -> Vec<f64> {
    let of = |name| world.log(run, name);
    let lines = ["log.jsonl", "validation.jsonl"].into_iter().flat_map(of);
    lines
        .map(|line| line["loss"].as_f64().expect("a number"))
        .collect()
}

#[test]
fn a_packed_run_takes_the_steps_of_one_that_is_not() {
    let world = World::new();
    world.train(
        "padded",
        &[
            "--set",
            "stage2.batch_size=2",
            "--set",
            "stage2.accumulation=1",
        ],
    );
    let output = world.command("packed", &PACKED).output().expect("starts");
    let told = said(&output);
    assert!(output.status.success(), "{told}");
    let (padded, packed) = (losses(&world, "padded"), losses(&world, "packed"));
    assert_eq!(padded.len(), 2 * STEPS + 2 * STEPS / 3);
    assert_eq!(padded.len(), packed.len());
    for (step, (padded, packed)) in padded.iter().zip(&packed).enumerate() {
        // Rounding grows from step to step: AdamW divides by the size of the gradients.
        let error = (padded - packed).abs() / padded;
        assert!(error < 1e-3, "{step}: {padded} and {packed}");
    }
    assert!((padded[0] - packed[0]).abs() < 1e-5);
    let padding: Vec<&str> = told.lines().filter(|l| l.contains("are padding")).collect();
    assert_eq!(padding.len(), 2, "{told}");
    // Two samples of a step are one row, behind which nothing is left.
    assert!(
        padding.iter().all(|line| line.contains(" 0.0 % of")),
        "{padding:?}"
    );
}

#[test]
fn a_packed_run_that_is_killed_ends_as_if_it_had_not_been() {
    let world = World::new();
    world.train("whole", &PACKED);
    let after = 1 + random(2 * STEPS - 2);
    println!("killed after step {after}");
    let mut child = world.command("killed", &PACKED).spawn().expect("starts");
    world.wait_for("killed", after, &mut child);
    std::thread::sleep(Duration::from_millis(random(40) as u64));
    child.kill().expect("killed");
    child.wait().expect("gone");
    world.resumed("killed", &["--resume"]);
    world.assert_same("whole", "killed");
}
