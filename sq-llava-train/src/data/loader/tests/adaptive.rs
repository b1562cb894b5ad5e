//! Questions are drawn with the δ that is published, however far ahead the threads are.

use sq_llava_data::DrawContext;

use super::*;
use crate::data::deltas::{DeltaBoard, Followed};

/// Samples whose pictures lie in two folders, `even` and `odd` as their numbers are, and two without.
fn two_sources() -> World {
    let world = World::new(8, 2);
    let folder = world.folder.path();
    let path = folder.join("data.json");
    let text = std::fs::read_to_string(&path).expect("the samples");
    let mut samples: Value = serde_json::from_str(&text).expect("JSON");
    for (i, source) in (0..8).zip(["even", "odd"].into_iter().cycle()) {
        std::fs::create_dir_all(folder.join(source)).expect("made");
        let name = format!("{source}/{i}.png");
        std::fs::rename(folder.join(format!("{i}.png")), folder.join(&name)).expect("moved");
        samples[i]["image"] = Value::String(name);
    }
    std::fs::write(path, samples.to_string()).expect("written");
    world
}

/// The samples, with intervals of `every` steps.
fn followed(world: &World, every: usize) -> (Arc<StageData>, DeltaBoard) {
    let mut data = world.data();
    let policy = AskingPolicy {
        schedule: DeltaSchedule::Adaptive,
        seed: 3,
        ..AskingPolicy::default()
    };
    let sources = policy.followed_sources(&data.data, 2).expect("two");
    assert_eq!(sources.names(), ["even", "odd"]);
    let deltas = DeltaBoard::default();
    data.asking = Some(policy);
    data.followed = Some(Followed {
        sources,
        every,
        deltas: deltas.clone(),
    });
    (Arc::new(data), deltas)
}

/// δ of both sources in an interval: another one each time.
fn deltas(interval: usize) -> Arc<[f64]> {
    let even = (0.13 + 0.37 * interval as f64).fract();
    Arc::new([even, 1.0 - even])
}

/// The batches of four passes, from a step on. As in a training, each interval that ends tells δ of
/// the one after the next.
fn run(world: &World, every: usize, first: usize, workers: usize) -> Vec<MicroBatch> {
    let (data, board) = followed(world, every);
    for interval in [first / every, first / every + 1] {
        board.publish(interval, deltas(interval));
    }
    let failure = Failure::default();
    let plan = plan(&data, 4);
    let loader = BatchLoader::new(data, plan, first, workers, failure.clone());
    let loader: &dyn DataLoader<Flex, MicroBatch> = &loader;
    let mut found = Vec::new();
    for batch in loader.iter() {
        let done = batch.step + 1;
        if batch.is_last() && done.is_multiple_of(every) {
            // Meanwhile the threads run ahead as far as they can.
            std::thread::sleep(Duration::from_millis(10));
            board.publish(done / every + 1, deltas(done / every + 1));
        }
        found.push(batch);
    }
    assert!(failure.take().is_none());
    assert_eq!(found.last().map(|batch| batch.step), Some(11));
    found
}

#[test]
fn a_sample_is_asked_with_the_delta_of_its_source_and_interval() {
    let world = two_sources();
    for every in [1, 2, 5] {
        let (data, _) = followed(&world, every);
        let policy = data.asking.clone().expect("it asks");
        let mut changed = 0;
        for batch in run(&world, every, 0, 2) {
            let own = deltas(batch.step / every);
            for sample in &batch.samples {
                let index: usize = sample.id[1..].parse().expect("a number");
                let source = (index < 8).then_some(index % 2);
                assert_eq!(sample.source, source, "{}", sample.id);
                let asked = |measured| {
                    let context = DrawContext {
                        epoch: batch.epoch as u64,
                        progress: 0.0,
                        manifest: "data.json",
                        measured,
                    };
                    let asked = policy.asked(context, &data.data.get(index).expect("a sample"));
                    asked.into_iter().filter(|asked| *asked).count()
                };
                let expected = asked(source.map(|source| own[source]));
                // An answer stands between two questions.
                let of_questions = sample.roles.chunk_by(|a, b| a == b);
                let questions = of_questions.filter(|same| same[0] == TokenRole::Question);
                let place = format!("{} in step {}, every {every}", sample.id, batch.step);
                assert_eq!(questions.count(), expected, "{place}");
                changed += usize::from(asked(None) != expected);
            }
        }
        // Often enough it is another draw than with the δ that all start at.
        assert!(changed > 3, "every {every}: {changed}");
    }
}

#[test]
fn threads_that_are_far_ahead_draw_the_same() {
    let world = two_sources();
    for every in [1, 2, 5] {
        let one = run(&world, every, 0, 1);
        check_denominators(&one);
        for workers in [2, 4, 7] {
            let many = run(&world, every, 0, workers);
            assert_eq!(seen(&many), seen(&one), "every {every}, {workers} workers");
        }
        // From the middle of an interval on as if it had run until there.
        let rest = seen(&one).into_iter().filter(|(step, ..)| *step >= 7);
        assert_eq!(seen(&run(&world, every, 7, 3)), rest.collect::<Vec<_>>());
    }
}

#[test]
fn threads_that_wait_for_delta_end_with_their_listener() {
    let world = two_sources();
    let (data, board) = followed(&world, 1);
    board.publish(0, deltas(0));
    board.publish(1, deltas(1));
    leave_early(&data, 4);
}
