//! Pictures that cannot be used.

use super::*;
use crate::data::bad_images::BAD_IMAGES_FILE;
use crate::data::bad_images::BadImage;

#[test]
fn a_bad_picture_stops_a_careful_run_and_is_named() {
    let world = World::new(6, 1);
    world.spoil(4);
    let data = Arc::new(world.data());
    let failure = Failure::default();
    batches(&BatchLoader::new(
        data.clone(),
        plan(&data, 1),
        0,
        2,
        failure.clone(),
    ));
    let error = failure.take().expect("an error").to_string();
    for part in ["s4", "4.png", "bad_images"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn skipped_samples_count_for_nothing() {
    let world = World::new(6, 1);
    world.spoil(1);
    world.spoil(4);
    let data = world.with(BadImagePolicy::Skip);
    let log = BadImageLog::open(world.folder.path(), 2, BadImagePolicy::Skip).expect("a list");
    let run = |first, workers| {
        let failure = Failure::default();
        let loader = BatchLoader::new(
            data.clone(),
            plan(&data, 2),
            first,
            workers,
            failure.clone(),
        );
        let all = batches(&loader.with_bad_images(log.clone()));
        assert!(!failure.is_set());
        all
    };
    let found = run(0, 2);
    check_denominators(&found);
    let kept: Vec<String> = ids(7)
        .into_iter()
        .filter(|id| id != "s1" && id != "s4")
        .collect();
    for epoch in 0..2 {
        assert_eq!(sorted_ids(found.iter().filter(|b| b.epoch == epoch)), kept);
    }
    let skipped: usize = found.iter().map(|batch| batch.skipped).sum();
    assert_eq!(
        (skipped, found.iter().map(|b| b.bad_images.len()).sum()),
        (4, 4)
    );
    // A run that goes on has the same batches, and lists nothing twice.
    let rest = seen(&found).into_iter().filter(|(step, ..)| *step >= 1);
    assert_eq!(seen(&run(1, 3)), rest.collect::<Vec<_>>());
    let list = std::fs::read_to_string(world.folder.path().join(BAD_IMAGES_FILE)).expect("a list");
    let lines: Vec<Value> = list
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert!(
            line["image"] == "1.png" || line["image"] == "4.png",
            "{line}"
        );
        assert!(line["policy"] == "skip" && line["stage"] == 2, "{line}");
        let reason = line["reason"].as_str().expect("a reason");
        assert!(reason.contains("not a JPEG"), "{line}");
    }
    assert!(log.summary().expect("a summary").contains("4 pictures"));
}

#[test]
fn a_step_without_any_sample_left_learns_nothing() {
    let world = World::new(4, 0);
    (0..4).for_each(|picture| world.spoil(picture));
    let found = all(&world.with(BadImagePolicy::Skip), 1);
    let [batch] = &found[..] else {
        panic!("{} batches", found.len());
    };
    assert!(batch.is_last() && batch.step_tokens == 0 && batch.skipped == 4);
    assert_eq!((batch.samples.len(), batch.samples[0].learnable()), (1, 0));
    assert!(batch.samples[0].pictures.is_empty() && batch.samples[0].ids.len() == 1);
}

#[test]
fn a_blank_picture_takes_the_place_of_a_bad_one() {
    let world = World::new(6, 1);
    let good = all(&world.with(BadImagePolicy::Blank), 1);
    world.spoil(2);
    let found = all(&world.with(BadImagePolicy::Blank), 1);
    assert_eq!(seen(&found), seen(&good));
    check_denominators(&found);
    let of = |batches: &[MicroBatch], id: &str| -> Vec<f32> {
        let mut samples = batches.iter().flat_map(|b| &b.samples);
        let sample = samples.find(|s| &*s.id == id).expect("the sample");
        sample.pictures[0].pixels.as_ref().expect("pixels").to_vec()
    };
    let blank = of(&found, "s2");
    // The padding is the mean of all pictures: 0 but for its rounding to eight bits.
    assert!(blank.iter().all(|value| value.abs() < 0.02));
    assert_ne!(of(&good, "s2"), blank);
    // It draws by what all blank ones share, not by the name of the bad one.
    let mut samples = found.iter().flat_map(|b| &b.samples);
    let shown = samples.find(|s| &*s.id == "s2").expect("the sample");
    assert_eq!(shown.pictures[0].name, shown.pictures[0].key);
    assert_eq!(of(&good, "s3"), of(&found, "s3"));
    let bad: Vec<&BadImage> = found.iter().flat_map(|b| &b.bad_images).collect();
    assert_eq!(
        (bad.len(), &*bad[0].image, &*bad[0].sample),
        (1, "2.png", "s2")
    );
    assert!(found.iter().all(|batch| batch.skipped == 0));
}

/// A picture at which its decoder panics.
#[test]
fn fault_15_a_decoder_s_panic_follows_the_policy() {
    let world = World::new(6, 1);
    let damaged = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../sq-llava/tests/damaged/palette.png"
    );
    std::fs::copy(damaged, world.folder.path().join("2.png")).expect("copied");
    let found = all(&world.with(BadImagePolicy::Skip), 1);
    let bad: Vec<&BadImage> = found.iter().flat_map(|b| &b.bad_images).collect();
    let [bad] = &bad[..] else {
        panic!("{bad:?}");
    };
    assert_eq!((&*bad.sample, &*bad.image), ("s2", "2.png"));
    assert!(bad.reason.contains("2.png"), "{}", bad.reason);
    assert_eq!(sorted_ids(&found).len(), 6);

    let found = all(&world.with(BadImagePolicy::Blank), 1);
    assert_eq!(sorted_ids(&found), ids(7));

    let failure = Failure::default();
    let data = world.with(BadImagePolicy::Error);
    let loader = BatchLoader::new(data.clone(), plan(&data, 1), 0, 2, failure.clone());
    batches(&loader);
    let error = failure.take().expect("an error").to_string();
    assert!(
        error.contains("sample s2") && error.contains("2.png"),
        "{error}"
    );
}

/// Batches until the share of bad pictures ends them, and what is said then.
fn with_most_bad(data: &Arc<StageData>, most: f64, shard: usize) -> (usize, Option<String>) {
    let failure = Failure::default();
    let loader = BatchLoader::new(data.clone(), plan(data, 1), 0, 2, failure.clone());
    let found = batches(&loader.with_most_bad(most, "step").shard(shard, 2));
    (found.len(), failure.take().map(|error| error.to_string()))
}

#[test]
fn fault_29_a_step_with_nothing_left_is_an_error_after_a_share() {
    let world = World::new(20, 0);
    (0..20).for_each(|picture| world.spoil(picture));
    for policy in [BadImagePolicy::Skip, BadImagePolicy::Blank] {
        let data = world.with(policy);
        let (steps, error) = with_most_bad(&data, 0.1, 0);
        let error = error.expect("an error");
        for part in ["step", "max_bad_images", ".png"] {
            assert!(error.contains(part), "{policy:?} {part}: {error}");
        }
        assert!(steps < 5, "{policy:?}: {steps} of 5 steps");
        // Fewer than ten are let pass: the third step of four makes twelve.
        if policy == BadImagePolicy::Skip {
            assert!(
                error.contains("step 3:") && error.contains("12 of the 12"),
                "{error}"
            );
            // Another device, or machine, ends at the same step.
            assert_eq!(with_most_bad(&data, 0.1, 1).0, steps);
        }
        let (steps, error) = with_most_bad(&data, 1.0, 0);
        assert_eq!((steps, error), (5, None), "{policy:?}: all may be lost");
    }
}

#[test]
fn fault_29_steps_with_something_left_go_on() {
    let world = World::new(20, 0);
    // Half of the samples are lost, and of each step two are left.
    let order = world.data().sampler.order(0);
    order
        .iter()
        .step_by(2)
        .for_each(|draw| world.spoil(draw.index));
    for policy in [BadImagePolicy::Skip, BadImagePolicy::Blank] {
        assert_eq!(
            with_most_bad(&world.with(policy), 0.1, 0),
            (5, None),
            "{policy:?}"
        );
    }
}
