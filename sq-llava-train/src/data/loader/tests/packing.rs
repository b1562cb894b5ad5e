//! Packed batches hold the samples of the same steps.

use super::*;

/// Room for two or three of the samples, whose system message is long.
const ROW: usize = 1000;

fn packed(data: &StageData, epochs: usize) -> Plan {
    Plan {
        row_tokens: Some(ROW),
        ..plan(data, epochs)
    }
}

fn run(data: &Arc<StageData>, workers: usize, first: usize) -> Vec<MicroBatch> {
    let failure = Failure::default();
    let plan = packed(data, 3);
    let all = batches(&BatchLoader::new(
        data.clone(),
        plan,
        first,
        workers,
        failure.clone(),
    ));
    assert!(!failure.is_set());
    all
}

fn steps(batches: &[MicroBatch]) -> Vec<(usize, usize, Vec<String>)> {
    let of_step = |same: &[MicroBatch]| (same[0].step, same[0].step_tokens, sorted_ids(same));
    batches
        .chunk_by(|a, b| a.step == b.step)
        .map(of_step)
        .collect()
}

#[test]
fn packed_steps_have_the_samples_of_unpacked_ones() {
    let world = World::new(6, 5);
    let data = Arc::new(world.data());
    let one = run(&data, 1, 0);
    check_denominators(&one);
    assert_eq!(steps(&one), steps(&all(&data, 3)));
    let mut shared = 0;
    for batch in &one {
        let lengths = batch.lengths();
        assert!(lengths.len() <= packed(&data, 3).batch_size);
        assert_eq!(
            lengths.iter().map(Vec::len).sum::<usize>(),
            batch.samples.len()
        );
        for row in &lengths {
            assert!(row.iter().sum::<usize>() <= ROW || row.len() == 1);
            shared += usize::from(row.len() > 1);
        }
    }
    assert!(shared > 0, "no row is shared");
}

#[test]
fn packs_do_not_depend_on_workers_nor_on_where_a_run_goes_on() {
    let world = World::new(6, 5);
    let data = Arc::new(world.data());
    let told = |batches: &[MicroBatch]| {
        let rows: Vec<_> = batches.iter().map(|batch| batch.rows.clone()).collect();
        (seen(batches), rows)
    };
    let one = run(&data, 1, 0);
    assert_eq!(told(&run(&data, 3, 0)), told(&one));
    let rest: Vec<MicroBatch> = one.into_iter().filter(|batch| batch.step >= 4).collect();
    assert_eq!(told(&run(&data, 2, 4)), told(&rest));
}

#[test]
fn packed_batches_of_two_devices_are_those_of_one() {
    let world = World::new(6, 5);
    let data = Arc::new(world.data());
    let one = run(&data, 1, 0);
    let mut halves = Vec::new();
    for index in 0..2 {
        let loader = BatchLoader::new(data.clone(), packed(&data, 3), 0, 1, Failure::default());
        let half = batches(&loader.shard(index, 2));
        // A device without a batch of its own has a placeholder.
        halves.extend(half.into_iter().filter(|batch| !batch.is_idle()));
    }
    halves.sort_by_key(|batch| (batch.step, batch.micro));
    let rows =
        |batches: &[MicroBatch]| -> Vec<_> { batches.iter().map(|b| b.rows.clone()).collect() };
    assert_eq!(seen(&halves), seen(&one));
    assert_eq!(rows(&halves), rows(&one));
}
