//! Several devices give what one gives.

use crate::world::World;

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
