//! Several devices give what one gives.

use golden::Tensors;

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
        for name in [
            "adapter_model.safetensors",
            "Vit-lora/adapter_model.safetensors",
            "non_lora_trainables.safetensors",
            "new_tokens.safetensors",
        ] {
            let [one, more] =
                ["one", devices].map(|run| Tensors::read(&world.path(run).join(name)));
            assert!(one.names().eq(more.names()), "{name}: other tensors");
            for key in one.names() {
                // Some are all zero: the tower's last layer gives no features.
                for (a, b) in one.f32(key).iter().zip(more.f32(key)) {
                    assert!(
                        (a - b).abs() <= 1e-6 * (1.0 + a.abs()),
                        "{key}: {a} and {b}"
                    );
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 80, "only {compared} tensors");
}
