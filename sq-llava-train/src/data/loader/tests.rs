use std::path::PathBuf;

use burn_flex::Flex;
use serde_json::{Value, json};
use sq_llava_data::image::ImageProcessor;
use sq_llava_data::{
    AskingPolicy, DataSet, DeltaSchedule, LabelOptions, Sampler, Template, TextTokenizer, TokenRole,
};

use super::*;
use crate::data::batch::TrainSample;

mod adaptive;
mod bad_images;
mod masks;
mod packing;

/// Photographs and conversations about them.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    /// `shown` samples with a picture each, then `text` without.
    fn new(shown: usize, text: usize) -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let pictures: Vec<PathBuf> = golden::entries(&golden::folders("e_").remove(0))
            .into_iter()
            .filter(|path| {
                let name = golden::file_name(path);
                name.ends_with(".png") && name.matches('.').count() == 1
            })
            .collect();
        assert!(!pictures.is_empty(), "no pictures");
        let samples = (0..shown + text).map(|i| {
            let mut turns = vec![
                json!({"from": "human", "value": format!("what is it {i}?")}),
                json!({"from": "gpt", "value": "it is ".repeat(1 + i * 5 % 7)}),
            ];
            turns.extend([
                json!({"from": "human", "value": "and the other?"}),
                json!({"from": "gpt", "value": "no"}),
            ]);
            let mut sample = json!({"id": format!("s{i}"), "conversations": turns});
            if i < shown {
                let name = format!("{i}.png");
                let source = &pictures[i % pictures.len()];
                std::fs::copy(source, world.folder.path().join(&name)).expect("copied");
                sample["image"] = Value::String(name);
            }
            sample
        });
        let samples = Value::Array(samples.collect());
        let path = world.folder.path().join("data.json");
        std::fs::write(path, samples.to_string()).expect("written");
        world
    }

    fn spoil(&self, picture: usize) {
        let path = self.folder.path().join(format!("{picture}.png"));
        std::fs::write(path, b"not a picture").expect("written");
    }

    fn data(&self) -> StageData {
        let words = golden::folders("i_").remove(0);
        let processor = ImageProcessor::from_dir(&words, Some("pad"));
        let folder = self.folder.path();
        let data = DataSet::open_one(folder.join("data.json"), folder).expect("the samples");
        StageData {
            sampler: Sampler::random(data.shares(), 3),
            data,
            tokenizer: Arc::new(TextTokenizer::from_dir(words).expect("a tokenizer")),
            processor: Arc::new(processor.expect("a processor")),
            labels: LabelOptions {
                tokens_per_image: 16,
                ..LabelOptions::new(Template::V1Sq)
            },
            asking: Some(AskingPolicy {
                seed: 3,
                ..AskingPolicy::default()
            }),
            followed: None,
            bad_images: BadImagePolicy::Error,
            features: None,
            masks: None,
            shuffle_turns: None,
        }
    }

    fn with(&self, policy: BadImagePolicy) -> Arc<StageData> {
        Arc::new(StageData {
            bad_images: policy,
            ..self.data()
        })
    }
}

/// Two batches of two samples a step.
fn plan(data: &StageData, epochs: usize) -> Plan {
    Plan {
        batch_size: 2,
        beside: 1,
        samples_per_step: 4,
        epochs: epochs as f64,
        samples: data.len(),
        row_tokens: None,
    }
}

fn batches(loader: &BatchLoader) -> Vec<MicroBatch> {
    let loader: &dyn DataLoader<Flex, MicroBatch> = loader;
    loader.iter().collect()
}

fn all(data: &Arc<StageData>, epochs: usize) -> Vec<MicroBatch> {
    let failure = Failure::default();
    let plan = plan(data, epochs);
    let found = batches(&BatchLoader::new(data.clone(), plan, 0, 2, failure.clone()));
    assert!(failure.take().is_none());
    found
}

/// Step, place in it, id and ids of every sample.
fn seen(batches: &[MicroBatch]) -> Vec<(usize, usize, String, Vec<i64>)> {
    let of = |batch: &MicroBatch| {
        let (step, micro) = (batch.step, batch.micro);
        let samples = batch.samples.iter();
        let each = samples.map(move |s| (step, micro, s.id.to_string(), s.ids.clone()));
        each.collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}

fn sorted_ids<'a>(batches: impl IntoIterator<Item = &'a MicroBatch>) -> Vec<String> {
    let samples = batches.into_iter().flat_map(|batch| &batch.samples);
    let mut ids: Vec<String> = samples.map(|sample| sample.id.to_string()).collect();
    ids.sort_unstable();
    ids
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("s{i}")).collect()
}

/// Each step's batches say how many tokens the step has.
fn check_denominators(batches: &[MicroBatch]) {
    for same in batches.chunk_by(|a, b| a.step == b.step) {
        let samples = same.iter().flat_map(|batch| &batch.samples);
        let learnable: usize = samples.map(TrainSample::learnable).sum();
        assert!(same.iter().all(|batch| batch.step_tokens == learnable));
        assert!(same.iter().all(|batch| batch.micros.max(1) == same.len()));
        let last: Vec<bool> = same.iter().map(MicroBatch::is_last).collect();
        assert!(
            last.iter()
                .rposition(|l| !l)
                .is_none_or(|i| i + 2 == last.len())
        );
    }
}

#[test]
fn batches_do_not_depend_on_the_number_of_workers() {
    let world = World::new(6, 1);
    let data = Arc::new(world.data());
    let plan = plan(&data, 3);
    assert_eq!((plan.steps_per_epoch(), plan.steps()), (2, 6));
    let run = |workers, first| {
        let failure = Failure::default();
        let loader = BatchLoader::new(data.clone(), plan, first, workers, failure.clone());
        let all = batches(&loader);
        assert!(!failure.is_set());
        all
    };
    let one = run(1, 0);
    check_denominators(&one);
    for workers in [2, 3, 5] {
        assert_eq!(seen(&run(workers, 0)), seen(&one), "{workers} workers");
    }
    // From the middle on as if it had run until there.
    let rest = seen(&one).into_iter().filter(|(step, ..)| *step >= 3);
    assert_eq!(seen(&run(2, 3)), rest.collect::<Vec<_>>());
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let of_epoch: Vec<MicroBatch> = one.iter().filter(|b| b.epoch == epoch).cloned().collect();
        assert_eq!(sorted_ids(&of_epoch), ids(7));
        let order: Vec<String> = seen(&of_epoch).into_iter().map(|(.., id, _)| id).collect();
        orders.push(order);
    }
    assert!(
        orders[0] != orders[1] || orders[1] != orders[2],
        "epochs have one order"
    );
    // Halves of the data are disjoint and cover it.
    let loader = BatchLoader::new(data.clone(), plan, 0, 2, Failure::default());
    let loader: &dyn DataLoader<Flex, MicroBatch> = &loader;
    let halves: Vec<MicroBatch> = [loader.slice(0, 3), loader.slice(3, 7)]
        .iter()
        .flat_map(|half| half.iter().collect::<Vec<_>>())
        .collect();
    assert_eq!(sorted_ids(halves.iter().filter(|b| b.epoch == 0)), ids(7));
}

#[test]
fn a_listener_that_leaves_early_ends_the_workers() {
    let world = World::new(6, 1);
    leave_early(&Arc::new(world.data()), 2);
}

/// Takes one batch, and sees that all threads end with their listener.
fn leave_early(data: &Arc<StageData>, workers: usize) {
    let loader = BatchLoader::new(
        data.clone(),
        plan(data, 100),
        0,
        workers,
        Failure::default(),
    );
    let loader: &dyn DataLoader<Flex, MicroBatch> = &loader;
    let mut batches = loader.iter();
    assert!(batches.next().is_some());
    drop(batches);
    // The loader itself and the test hold the data; the workers let go of it.
    let start = std::time::Instant::now();
    while Arc::strong_count(data) > 2 {
        assert!(
            start.elapsed().as_secs() < 30,
            "a worker goes on for nobody"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn shards_share_out_every_step() {
    let world = World::new(5, 4);
    let data = Arc::new(world.data());
    // Nine samples: steps of 2, 2 and 1 batches.
    let plan = plan(&data, 1);
    let whole = all(&data, 1);
    let shards: Vec<Vec<MicroBatch>> = (0..2)
        .map(|index| {
            let loader = BatchLoader::new(data.clone(), plan, 0, 2, Failure::default());
            batches(&loader.shard(index, 2))
        })
        .collect();
    for (index, shard) in shards.iter().enumerate() {
        // One batch for each step and device, and each ends its step.
        assert_eq!(shard.len(), 3);
        assert!(
            shard
                .iter()
                .all(|b| b.is_last() && b.micro == index && b.stride == 2)
        );
        for batch in shard {
            let same = whole
                .iter()
                .find(|b| b.step == batch.step)
                .expect("the step");
            assert_eq!(batch.step_tokens, same.step_tokens);
        }
    }
    let mut dealt: Vec<_> = shards.iter().flat_map(|shard| seen(shard)).collect();
    dealt.sort();
    let nothing = dealt
        .iter()
        .position(|(step, micro, ..)| (*step, *micro) == (2, 1));
    let nothing = dealt.remove(nothing.expect("a batch of nothing"));
    assert_eq!(nothing.3.len(), 1);
    assert_eq!(shards[1][2].samples[0].learnable(), 0);
    let mut expected = seen(&whole);
    expected.sort();
    assert_eq!(dealt, expected);
}

#[test]
fn delta_grows_with_the_steps() {
    let world = World::new(8, 0);
    let mut data = world.data();
    data.asking = Some(AskingPolicy {
        delta: 0.0,
        delta_end: 1.0,
        schedule: DeltaSchedule::Linear,
        ..AskingPolicy::default()
    });
    let found = all(&Arc::new(data), 20);
    let asked = |batch: &MicroBatch| -> usize {
        let roles = batch.samples.iter().flat_map(|sample| &sample.roles);
        roles.filter(|role| **role == TokenRole::Question).count()
    };
    let half = found.len() / 2;
    let sum = |part: &[MicroBatch]| part.iter().map(asked).sum::<usize>();
    // At first δ is 0 and nothing can be asked; of the second half three quarters are.
    assert_eq!(asked(&found[0]), 0);
    let (early, late) = (sum(&found[..half]), sum(&found[half..]));
    assert!(late > 2 * early && early > 0, "{early} and {late}");
}

#[test]
fn fault_16_a_fraction_of_an_epoch_ends_at_a_whole_step() {
    let world = World::new(6, 1);
    let data = Arc::new(world.data());
    let whole = all(&data, 2);
    // Two steps an epoch: of 1.2 epochs the third is begun, and no fourth.
    for (epochs, steps, samples) in [(1.2, 3, 11), (1.5, 3, 11), (1.51, 4, 14), (0.01, 1, 4)] {
        let plan = Plan {
            epochs,
            ..plan(&data, 1)
        };
        assert_eq!(
            (plan.steps(), plan.all_samples()),
            (steps, samples),
            "{epochs}"
        );
        let failure = Failure::default();
        let found = batches(&BatchLoader::new(data.clone(), plan, 0, 2, failure.clone()));
        assert!(failure.take().is_none());
        let expected: Vec<_> = seen(&whole).into_iter().filter(|s| s.0 < steps).collect();
        assert_eq!(seen(&found), expected, "{epochs}");
    }
    // 1.1 · 10 is 11.000000000000002.
    let ten = Plan {
        batch_size: 1,
        beside: 1,
        samples_per_step: 1,
        epochs: 1.1,
        samples: 10,
        row_tokens: None,
    };
    assert_eq!((ten.steps(), ten.passes(), ten.all_samples()), (11, 2, 11));
}

/// What panics outside the pictures is an error too, not an end without a word.
#[cfg(debug_assertions)] // Overflows wrap elsewhere.
#[test]
fn fault_15_a_panic_of_the_encoding_names_the_sample() {
    let world = World::new(3, 0);
    let mut data = world.data();
    // An image takes more places than there are: the sum overflows.
    data.labels.tokens_per_image = usize::MAX;
    data.labels.max_length = Some(16);
    let data = Arc::new(data);
    let failure = Failure::default();
    let loader = BatchLoader::new(data.clone(), plan(&data, 1), 0, 1, failure.clone());
    assert!(batches(&loader).is_empty());
    let error = failure.take().expect("an error").to_string();
    assert!(error.contains("sample s"), "{error}");
}
