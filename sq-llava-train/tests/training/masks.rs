//! Runs whose prototypes are guided by masks.

use std::path::Path;

use serde_json::{Value, json};
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};
use sq_llava_train::{Resume, TrainOptions, Ui, train};

use super::saved;
use super::world::{Ad, World};

/// Gives all pictures but the last three masks each: strips from left to right, the first is none.
fn write_masks(folder: &Path) -> usize {
    std::fs::create_dir(folder).expect("a folder");
    let processor = ImageProcessor::new(ImageProcessorConfig::default()).expect("a processor");
    let mut pictures: Vec<_> = golden::entries(&World::images())
        .into_iter()
        .filter(|path| golden::file_name(path).ends_with(".png"))
        .filter(|path| golden::file_name(path).matches('.').count() == 1)
        .collect();
    pictures.pop().expect("a picture");
    for path in &pictures {
        let (height, width) = processor.size(path).expect("a size");
        let strip = |at: u32| {
            let [start, end] = [at, at + 1].map(|part| part * width / 4 * height);
            json!({"segmentation": {"size": [height, width],
                "counts": [start, end - start, height * width - end]}})
        };
        let masks: Vec<Value> = (1..4).map(strip).collect();
        let name = golden::file_name(path).replace(".png", ".json");
        std::fs::write(folder.join(name), json!(masks).to_string()).expect("written");
    }
    pictures.len()
}

fn changes(folder: &Path, more: &[&str]) -> Vec<String> {
    let mut all = vec![format!("model.masks.folder='{}'", folder.display())];
    all.extend(more.iter().map(ToString::to_string));
    all
}

fn run(world: &World, out: &str, changes: &[String]) -> Result<(), String> {
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    let trained = world.train(out, &changes);
    trained.map(|_| ()).map_err(|error| error.to_string())
}

fn mask_losses(world: &World, out: &str, stage: u64) -> Vec<f64> {
    let log = world.log(out).into_iter();
    let lines = log.filter(|line| line["stage"] == stage);
    lines
        .filter_map(|line| line["loss_masks"].as_f64())
        .collect()
}

#[test]
fn masks_guide_the_prototypes_and_a_run_goes_on_with_them() {
    let world = World::new();
    let folder = world.path("masks");
    assert!(write_masks(&folder) > 2);
    let more = [
        "model.masks.weight=1",
        "stage1.epochs=12",
        "validation.every=4",
        "validation.fraction=0.2",
        "save_every=1",
        "keep_checkpoints=100",
    ];
    let guided = changes(&folder, &more);
    run(&world, "guided", &guided).expect("trains");
    // Measured alone, the loss of masks does not fall as far.
    let unguided = changes(&folder, &[&more[..], &["model.masks.weight=0"]].concat());
    run(&world, "measured", &unguided).expect("trains");
    let [guided_losses, measured] = ["guided", "measured"].map(|out| mask_losses(&world, out, 1));
    assert_eq!(guided_losses.len(), measured.len());
    // The least of the last: at this rate it jumps.
    let last = |losses: &[f64]| {
        let last = losses[losses.len() - 8..].iter().copied();
        last.fold(f64::INFINITY, f64::min)
    };
    let (first, end) = (guided_losses[0], last(&guided_losses));
    assert!(end < 0.9 * first, "{first} to {end}");
    assert!(end < 0.9 * last(&measured), "{end} and {}", last(&measured));
    assert!(!mask_losses(&world, "guided", 2).is_empty());
    let validation = std::fs::read_to_string(world.path("guided/validation.jsonl")).expect("a log");
    assert!(validation.contains("\"loss_masks\":"), "{validation}");

    // Measuring changes nothing; what is off is not even that.
    run(
        &world,
        "off",
        &more[1..]
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
    )
    .expect("trains");
    let files = |out: &str| {
        let mut files = Vec::new();
        saved(&world.path(out), &mut files);
        // The recipe says what was measured.
        files.retain(|(name, _)| name.ends_with(".safetensors"));
        files
    };
    assert!(files("off") == files("measured"));
    assert!(files("off") != files("guided"));
    assert!(mask_losses(&world, "off", 1).is_empty());

    // Going on from a checkpoint ends at the same bits.
    let before = files("guided");
    let point = Resume::Checkpoint("checkpoint-1-9".into());
    let options = TrainOptions {
        resume: Some(point),
        ..Ui::Quiet.into()
    };
    let texts: Vec<&str> = guided.iter().map(String::as_str).collect();
    let recipe = world.recipe(&texts);
    train::<Ad>(
        &recipe,
        &world.paths("guided"),
        &Default::default(),
        options,
    )
    .expect("resumes");
    assert!(files("guided") == before);
    assert_eq!(mask_losses(&world, "guided", 1), guided_losses);
}

#[test]
fn masks_that_cannot_be_used_are_named_before_or_when_they_are_read() {
    let world = World::new();
    let folder = world.path("masks");
    let quick = ["stages=[1]", "stage1.epochs=1"];
    let error = run(&world, "none", &changes(&folder, &quick)).expect_err("no folder");
    assert!(
        error.contains("model.masks.folder") && error.contains("no such folder"),
        "{error}"
    );
    std::fs::create_dir(&folder).expect("a folder");
    let error = run(&world, "empty", &changes(&folder, &quick)).expect_err("no masks");
    assert!(error.contains("none of the pictures"), "{error}");
    std::fs::remove_dir(&folder).expect("gone");
    write_masks(&folder);
    let damaged = golden::entries(&folder).remove(0);
    std::fs::write(&damaged, "[{}]").expect("written");
    let error = run(&world, "damaged", &changes(&folder, &quick)).expect_err("damaged");
    let name = golden::file_name(&damaged);
    assert!(
        error.contains(&name) && error.contains("annotation 1"),
        "{error}"
    );
    assert!(error.contains("sample s"), "{error}");
}
