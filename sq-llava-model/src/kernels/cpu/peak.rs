//! What the processor can reach at all: products that never leave the registers, and reading.

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use super::level::{Baseline, Level, prefetch, vectorised};
#[cfg(target_arch = "x86_64")]
use super::processor::KernelPath;

/// Sums that a loop adds to in turn, more than any unit has in flight.
const SUMS: usize = 12;
/// Turns of a loop that is timed: some milliseconds.
const TURNS: u64 = 1_000_000;
/// How far ahead reading asks, in bytes.
const AHEAD: usize = 4096;
/// Numbers that reading adds up in a turn, a line of the cache for each of eight sums.
const LINES: usize = 8;
const WORDS: usize = 8;

/// A kind of instruction that multiplies and adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Whatever f32 arithmetic the compiler's target always has.
    PortableF32,
    /// f32 in 256 bits.
    Avx2F32,
    /// f32 in 512 bits.
    Avx512F32,
    /// Pairs of bf16 numbers in 512 bits.
    Avx512Bf16,
    /// Four 8-bit integers at a time in 512 bits.
    VnniInt8,
    /// Tiles of bf16 numbers.
    AmxBf16,
    /// Tiles of 8-bit integers.
    AmxInt8,
}

impl Unit {
    /// All that are known.
    pub const ALL: [Self; 7] = [
        Self::PortableF32,
        Self::Avx2F32,
        Self::Avx512F32,
        Self::Avx512Bf16,
        Self::VnniInt8,
        Self::AmxBf16,
        Self::AmxInt8,
    ];

    /// Whether it multiplies f32 numbers.
    pub fn is_f32(self) -> bool {
        matches!(self, Self::PortableF32 | Self::Avx2F32 | Self::Avx512F32)
    }

    /// Whether it multiplies bf16 numbers.
    pub fn is_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::AmxBf16)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::PortableF32 => true,
            Self::Avx2F32 => KernelPath::Avx2.is_available(),
            Self::Avx512F32 => KernelPath::Avx512.is_available(),
            Self::Avx512Bf16 => KernelPath::Bf16.is_available(),
            Self::VnniInt8 => {
                KernelPath::Avx512.is_available() && is_x86_feature_detected!("avx512vnni")
            }
            Self::AmxBf16 => KernelPath::Amx.is_available(),
            Self::AmxInt8 => KernelPath::Amx.is_available() && super::bf16::amx::has_int8(),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::PortableF32;
    }

    /// Operations a second, a product and its sum being two, of all cores together: the best of
    /// `repeat` short runs. `None` if this machine does not have the unit.
    pub fn operations_per_s(self, repeat: usize) -> Option<f64> {
        if !self.is_available() {
            return None;
        }
        let (turn, numbers) = self.turn();
        let threads = threads();
        let seconds = best(repeat, || {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| turn(TURNS));
                }
            });
        });
        Some(2.0 * (numbers * TURNS * threads as u64) as f64 / seconds)
    }

    /// A loop, and the products of a turn of it. The unit is there.
    fn turn(self) -> (fn(u64), u64) {
        let sums = SUMS as u64;
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::PortableF32 => {}
            // SAFETY: the unit is there.
            Self::Avx2F32 => return (|n| unsafe { x86::avx2(n) }, 8 * sums),
            // SAFETY: as above.
            Self::Avx512F32 => return (|n| unsafe { x86::avx512(n) }, 16 * sums),
            // SAFETY: as above.
            Self::Avx512Bf16 => return (|n| unsafe { x86::bf16(n) }, 32 * sums),
            // SAFETY: as above.
            Self::VnniInt8 => return (|n| unsafe { x86::int8(n) }, 64 * sums),
            Self::AmxBf16 => {
                // SAFETY: as above.
                return (
                    |n| unsafe { super::bf16::amx::turns_bf16(n) },
                    4 * 16 * 16 * 32,
                );
            }
            Self::AmxInt8 => {
                // SAFETY: as above.
                return (
                    |n| unsafe { super::bf16::amx::turns_int8(n) },
                    4 * 16 * 16 * 64,
                );
            }
        }
        (portable, 4 * sums)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortableF32 => "portable f32",
            Self::Avx2F32 => "AVX2 f32",
            Self::Avx512F32 => "AVX-512 f32",
            Self::Avx512Bf16 => "AVX-512 bf16",
            Self::VnniInt8 => "AVX-512 VNNI int8",
            Self::AmxBf16 => "AMX bf16",
            Self::AmxInt8 => "AMX int8",
        })
    }
}

/// Bytes a second at which all cores together read memory of this size, each a part of its own:
/// the best of `repeat` runs. Memory is in large pages where the system has them.
pub fn read_bytes_per_s(bytes: usize, repeat: usize) -> f64 {
    let words = bytes / size_of::<u64>() / (LINES * WORDS) * (LINES * WORDS);
    let memory = super::place(burn::tensor::Bytes::from_elems(vec![1u64; words]));
    let memory: &[u64] = bytemuck::cast_slice(&memory);
    let part = words.div_ceil(threads()).next_multiple_of(LINES * WORDS);
    let seconds = best(repeat, || {
        std::thread::scope(|scope| {
            for part in memory.chunks(part.max(1)) {
                scope.spawn(|| black_box(sum(black_box(part))));
            }
        });
    });
    (words * size_of::<u64>()) as f64 / seconds
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Seconds of the fastest run.
fn best(repeat: usize, work: impl Fn()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..repeat.max(1)).map(run).fold(f64::INFINITY, f64::min)
}

/// Four numbers for each of the sums, which a product takes part in: one that does not change would
/// be computed once.
fn portable(turns: u64) {
    let x = black_box([0.5f32; 4]);
    let mut sums = [[0.0f32; 4]; SUMS];
    for _ in 0..turns {
        sums = sums.map(|sum| [0, 1, 2, 3].map(|lane| Baseline::fma(sum[lane], x[lane], x[lane])));
    }
    black_box(sums);
}

vectorised! {
    /// Sum of the words.
    fn sum<L>(words: &[u64]) -> u64 {
        let mut sums = [[0u64; WORDS]; LINES];
        for turn in words.chunks_exact(LINES * WORDS) {
            let (lines, _) = turn.as_chunks::<WORDS>();
            for line in lines {
                prefetch(line.as_ptr().wrapping_byte_add(AHEAD));
            }
            for (sums, line) in sums.iter_mut().zip(lines) {
                for (sum, word) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(*word);
                }
            }
        }
        sums.into_iter().flatten().fold(0, u64::wrapping_add)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::SUMS;

    macro_rules! turns {
        ($name:ident, $features:literal, $zero:expr, |$sum:ident, $x:ident| $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(turns: u64) {
                let mut sums = [$zero; SUMS];
                let $x = black_box($zero);
                for _ in 0..turns {
                    for $sum in &mut sums {
                        *$sum = $step;
                    }
                }
                black_box(&sums);
            }
        };
    }

    turns!(avx2, "avx2,fma", _mm256_setzero_ps(), |sum, x| {
        _mm256_fmadd_ps(x, x, *sum)
    });
    turns!(avx512, "avx512f", _mm512_setzero_ps(), |sum, x| {
        _mm512_fmadd_ps(x, x, *sum)
    });
    turns!(bf16, "avx512f,avx512bf16", _mm512_setzero_ps(), |sum, x| {
        // SAFETY: vectors of 64 bytes, whatever is in them.
        let pairs = unsafe { std::mem::transmute::<__m512, __m512bh>(x) };
        _mm512_dpbf16_ps(*sum, pairs, pairs)
    });
    turns!(
        int8,
        "avx512f,avx512vnni",
        _mm512_setzero_si512(),
        |sum, x| _mm512_dpbusd_epi32(*sum, x, x)
    );
}

#[cfg(test)]
#[allow(clippy::print_stderr)] // A unit that is not tested is named.
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_the_machine_has_a_speed() {
        for unit in Unit::ALL {
            match unit.operations_per_s(1) {
                Some(speed) => assert!(speed > 1e8 && speed < 1e15, "{unit}: {speed}"),
                None => eprintln!("this machine has no {unit}: it is not tested"),
            }
        }
    }

    #[test]
    fn every_word_is_read() {
        assert_eq!(sum(&vec![1; 64 * 10]), 640);
        assert!(read_bytes_per_s(1 << 20, 1) > 1e6);
    }
}
