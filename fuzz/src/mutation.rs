//! Damaged copies of good files, the same in every run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use golden::allocations::{Counting, measure};

use crate::{Reader, Trial, data, eval, model, train};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Damaged copies that every reader is given.
const COUNT: u64 = 2000;

/// Bytes that a reader may hold at once, whatever the file.
const FIXED: usize = 32 << 20;
/// Bytes that it may hold beyond that for each byte of the file.
const PER_BYTE: usize = 64;

/// Allocations are counted for the whole process: one reader at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Gives a reader every good file as it is and [`COUNT`] mutations of them.
///
/// # Panics
/// With the number of the mutation, if the reader panics or holds too much memory.
pub(crate) fn survives(reader: &'static Reader) {
    let seeds = (reader.seeds)();
    assert!(!seeds.is_empty(), "no seeds for {}", reader.name);
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let trial = Trial::of(reader);
    for number in 0..seeds.len() as u64 + COUNT {
        let bytes = mutation(&seeds, number);
        let (outcome, used) = measure(|| catch_unwind(AssertUnwindSafe(|| trial.read(&bytes))));
        let place = format!("mutation {number} of {}", reader.name);
        assert!(outcome.is_ok(), "{place}: the reader panicked");
        assert!(
            used.peak <= FIXED + PER_BYTE * bytes.len(),
            "{place}: {} bytes held for a file of {}",
            used.peak,
            bytes.len()
        );
    }
}

/// The seed of a mutation's number, damaged; the first numbers are the seeds themselves.
fn mutation(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let of = seeds.len() as u64;
    let mut bytes = seeds[(number % of) as usize].clone();
    if number >= of {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        let other = &seeds[random.below(seeds.len())];
        for _ in 0..1 + random.below(4) {
            damage(&mut bytes, other, &mut random);
        }
    }
    bytes
}

/// Sizes and counts that readers stumble over.
const INTERESTING: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let len = bytes.len();
    if len == 0 {
        bytes.push(random.next() as u8);
        return;
    }
    // Headers are short and at the front: half of the damage is done there.
    let near = if random.below(2) == 0 {
        len.min(128)
    } else {
        len
    };
    let at = random.below(near);
    match random.below(9) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => {
            let to = (at + 1 + random.below(64)).min(len);
            bytes.drain(at..to);
        }
        4 => {
            let to = (at + 1 + random.below(64)).min(len);
            let piece = bytes[at..to].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            let piece: Vec<u8> = (0..1 + random.below(8))
                .map(|_| random.next() as u8)
                .collect();
            bytes.splice(at..at, piece);
        }
        6 => number(bytes, at, random),
        7 => digits(bytes, at, random),
        _ if !other.is_empty() => {
            let from = random.below(other.len());
            let to = (from + 1 + random.below(256)).min(other.len());
            let end = (at + to - from).min(len);
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        _ => {}
    }
}

/// A binary number of one to eight bytes.
fn number(bytes: &mut [u8], at: usize, random: &mut Random) {
    let value = INTERESTING[random.below(INTERESTING.len())];
    let width = (1 << random.below(4)).min(bytes.len() - at);
    let mut written = value.to_le_bytes();
    if random.below(2) == 0 {
        written[..width].reverse();
    }
    bytes[at..at + width].copy_from_slice(&written[..width]);
}

/// The next number that is written in digits.
fn digits(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(from) = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) else {
        return;
    };
    let to = (from..bytes.len())
        .find(|&i| !bytes[i].is_ascii_digit())
        .unwrap_or(bytes.len());
    let text = match random.below(4) {
        0 => format!("-{}", INTERESTING[random.below(INTERESTING.len())]),
        1 => "1e999".into(),
        _ => INTERESTING[random.below(INTERESTING.len())].to_string(),
    };
    bytes.splice(from..to, text.into_bytes());
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

macro_rules! survives {
    ($($test:ident: $reader:expr;)*) => {
        $(#[test]
        fn $test() {
            survives(&$reader);
        })*
    };
}

survives! {
    pictures: data::PICTURE;
    settings_of_pictures: data::PICTURE_SETTINGS;
    label_maps: data::LABEL_MAP;
    annotations_of_masks: data::MASK_ANNOTATIONS;
    tokenizers_in_json: data::TOKENIZER_JSON;
    tokenizers_of_sentencepiece: data::TOKENIZER_MODEL;
    manifests: data::MANIFEST;
    parquet_files: data::PARQUET;
    tar_files: data::TAR;
    configurations: model::CONFIG;
    configurations_of_transformers: model::CONFIG_HF;
    configurations_of_vision_towers: model::VISION_CONFIG;
    indices_of_safetensors: model::SAFETENSORS_INDEX;
    safetensors: model::SAFETENSORS;
    pickles: model::PICKLE;
    adapters: model::ADAPTER;
    settings_of_adapters: model::ADAPTER_CONFIG;
    settings_of_vision_adapters: model::VISION_ADAPTER_CONFIG;
    gguf_files: model::GGUF;
    towers_in_gguf_files: model::MMPROJ;
    recipes: train::RECIPE;
    paths_of_runs: train::PATHS;
    states_of_runs: train::STATE;
    tables: eval::TABLE;
    questions: eval::QUESTIONS;
    questions_of_benchmarks: eval::OWN_QUESTIONS;
    answers: eval::ANSWERS;
    asked_questions: eval::ASKED;
    captions: eval::CAPTIONS;
    requests: eval::REQUESTS;
}

#[test]
fn mutations_are_the_same_in_every_run_and_differ_from_their_seed() {
    let seeds = [b"{\"layers\": 12}".to_vec(), vec![7; 300]];
    assert_eq!(mutation(&seeds, 0), seeds[0]);
    let damaged = (2..1002).filter(|&n| {
        assert_eq!(mutation(&seeds, n), mutation(&seeds, n));
        mutation(&seeds, n) != seeds[(n % 2) as usize]
    });
    assert!(damaged.count() > 900);
}

#[test]
fn a_reader_that_panics_is_named_with_its_mutation() {
    static FRAGILE: Reader = Reader {
        name: "fragile",
        file: "a/b.txt",
        beside: |_| {},
        seeds: || vec![b"1 2 3".to_vec()],
        read: |file, _| {
            assert!(
                std::fs::read(file).is_ok_and(|bytes| bytes.len() > 3),
                "short"
            )
        },
    };
    let found = catch_unwind(|| survives(&FRAGILE));
    let message = found.expect_err("some mutation is cut to nothing");
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(
        message.starts_with("mutation ") && message.ends_with("of fragile: the reader panicked"),
        "{message}"
    );
}

#[test]
fn a_reader_that_holds_too_much_is_found() {
    static GREEDY: Reader = Reader {
        name: "greedy",
        file: "size.txt",
        beside: |_| {},
        seeds: || vec![b"40000000".to_vec()],
        read: |file, _| {
            let size = std::fs::read_to_string(file).map(|text| text.parse());
            if let Ok(Ok(size @ ..40_000_001)) = size {
                std::hint::black_box(vec![1u8; size]);
            }
        },
    };
    let found = catch_unwind(|| survives(&GREEDY));
    let message = found.expect_err("the seed itself asks for more");
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(message.contains("bytes held for a file of 8"), "{message}");
}
