//! Damaged copies of good files, the same in every run: a reader must answer each with a value or
//! an error, without a panic and within a memory of its file's size.
//!
//! ```
//! use golden::mutation::{Budget, survives};
//!
//! let seeds = [("one.txt".to_owned(), b"1 2 3".to_vec())];
//! survives("numbers", &seeds, 100, Budget::default(), |path| {
//!     let _ = std::fs::read_to_string(path);
//! });
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::allocations::measure;

/// Bytes that a reader may hold at once.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Whatever the file.
    pub fixed: usize,
    /// For each byte of the file.
    pub per_byte: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            fixed: 32 << 20,
            per_byte: 64,
        }
    }
}

/// The counters of [`measure`] belong to the process: one reader at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Gives `read` every seed as it is and `count` mutations of them, each in a file of the seed's
/// name (which may have folders in it).
///
/// # Panics
/// With the number of the mutation, if the reader panics or holds more than its budget. Memory is
/// measured where [`Counting`](crate::allocations::Counting) is the allocator.
pub fn survives(
    name: &str,
    seeds: &[(String, Vec<u8>)],
    count: u64,
    budget: Budget,
    read: impl Fn(&Path),
) {
    assert!(!seeds.is_empty(), "no seeds for {name}");
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = std::env::temp_dir().join(format!("sq-llava-{name}-{}", std::process::id()));
    for number in 0..seeds.len() as u64 + count {
        let (file, bytes) = mutation(seeds, number);
        let path = folder.join(file);
        let parent = path.parent().expect("a file in a folder");
        std::fs::create_dir_all(parent).expect("a folder for mutations");
        std::fs::write(&path, &bytes).expect("a mutation is written");
        let (outcome, used) = measure(|| catch_unwind(AssertUnwindSafe(|| read(&path))));
        let limit = budget.fixed + budget.per_byte * bytes.len();
        let place = format!("mutation {number} of {name} ({})", path.display());
        assert!(outcome.is_ok(), "{place}: the reader panicked");
        assert!(
            used.peak <= limit,
            "{place}: {} bytes held for a file of {}",
            used.peak,
            bytes.len()
        );
    }
    // What is left of a failed run can be looked at.
    let _ = std::fs::remove_dir_all(&folder);
}

/// The seed of a mutation's number, damaged; the first numbers are the seeds themselves.
pub fn mutation(seeds: &[(String, Vec<u8>)], number: u64) -> (&str, Vec<u8>) {
    let of = seeds.len() as u64;
    let (file, seed) = &seeds[(number % of) as usize];
    let mut bytes = seed.clone();
    if number >= of {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        let other = &seeds[random.below(seeds.len())].1;
        for _ in 0..1 + random.below(4) {
            damage(&mut bytes, other, &mut random);
        }
    }
    (file, bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds() -> Vec<(String, Vec<u8>)> {
        vec![
            ("a".into(), b"{\"layers\": 12}".to_vec()),
            ("b/c".into(), vec![7; 300]),
        ]
    }

    #[test]
    fn mutations_are_the_same_in_every_run_and_differ_from_their_seed() {
        let seeds = seeds();
        assert_eq!(mutation(&seeds, 0).1, seeds[0].1);
        let damaged = (2..1002).filter(|&n| {
            assert_eq!(mutation(&seeds, n), mutation(&seeds, n));
            mutation(&seeds, n).1 != seeds[(n % 2) as usize].1
        });
        assert!(damaged.count() > 900);
    }

    #[test]
    fn a_reader_that_panics_is_named_with_its_mutation() {
        let read = |path: &Path| assert!(std::fs::read(path).is_ok_and(|bytes| bytes.len() > 3));
        let found = catch_unwind(|| survives("panics", &seeds(), 500, Budget::default(), read));
        let message = found.expect_err("some mutation is cut to nothing");
        let message = message.downcast_ref::<String>().expect("a message");
        assert!(
            message.starts_with("mutation ") && message.contains("panicked"),
            "{message}"
        );
    }
}
