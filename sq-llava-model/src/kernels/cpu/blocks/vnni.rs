//! AVX-512 with products of bytes (VNNI), four to a sum.
//!
//! The instruction multiplies unsigned with signed bytes. An input's 16 bits are its high and its
//! low byte, both signed, 256 · high + low. int4 weights are unsigned as they are; int8 weights
//! get 128 added, and what that adds to the sum, 128 times the input, is taken off where it starts.
//! All of it is exact.

use std::arch::x86_64::*;

use super::super::level::prefetch;
use super::{BLOCK, Input, Row, STEP};
use crate::kernels::blocks::QuantFormat;

/// Sums that do not wait for each other.
const SUMS: usize = 2;
/// Rows whose sums are added up together.
const ROWS: usize = 4;
/// Blocks of a vector of int8 weights, and of int4 ones.
const WIDE: usize = 2;
const NARROW: usize = 4;
/// Bytes of a vector.
const VECTOR: usize = 64;
/// How far ahead weights are asked for, in bytes: the processor sees their streams too late (one
/// core of an Emerald Rapids reads 15 GB/s without this and 24 with it, of 25 at most).
const AHEAD: usize = 4096;

/// The bytes of an input, in the order of the weights' vectors.
#[derive(Default)]
pub(in super::super) struct SplitInput {
    /// For int8 weights.
    wide: Vec<Wide>,
    /// For int4 weights.
    narrow: Vec<Narrow>,
}

/// Two blocks.
#[repr(C, align(64))]
struct Wide {
    high: [i8; VECTOR],
    low: [i8; VECTOR],
    /// −128 times the sum of four values, for each sum of a vector.
    start: [i32; VECTOR / 4],
}

/// Four blocks: their first halves, then their second ones.
#[repr(C, align(64))]
struct Narrow {
    high: [[i8; VECTOR]; 2],
    low: [[i8; VECTOR]; 2],
}

impl SplitInput {
    /// Splits fours of blocks for weights in one of these formats.
    ///
    /// # Safety
    /// The machine has the features of [`rows`].
    pub unsafe fn new(values: &[i16], formats: &[Option<QuantFormat>]) -> Self {
        let mut split = Self::default();
        let values = values.as_chunks::<BLOCK>().0;
        // SAFETY: the caller's promise.
        unsafe {
            if formats.contains(&Some(QuantFormat::Q8)) {
                let pairs = values.as_chunks::<WIDE>().0.iter();
                split.wide = pairs.map(|pair| Wide::new(pair)).collect();
            }
            if formats.contains(&Some(QuantFormat::Q4)) {
                let fours = values.as_chunks::<NARROW>().0.iter();
                split.narrow = fours.map(|four| Narrow::new(four)).collect();
            }
        }
        split
    }

    /// Blocks that it has in a format.
    pub fn reach(&self, format: QuantFormat) -> usize {
        match format {
            QuantFormat::Q8 => self.wide.len() * WIDE,
            QuantFormat::Q4 => self.narrow.len() * NARROW,
        }
    }
}

/// High and low bytes of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn bytes(values: &[i16; BLOCK]) -> (__m256i, __m256i) {
    // SAFETY: 64 bytes are read.
    let values = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
    // The low byte is signed: what it takes off, the high one has to have.
    let high = _mm512_srai_epi16::<8>(_mm512_add_epi16(values, _mm512_set1_epi16(128)));
    (_mm512_cvtepi16_epi8(high), _mm512_cvtepi16_epi8(values))
}

impl Wide {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn new(pair: &[[i16; BLOCK]; WIDE]) -> Self {
        let [(high0, low0), (high1, low1)] = [bytes(&pair[0]), bytes(&pair[1])];
        let high = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(high0), high1);
        let low = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low0), low1);
        let (none, added) = (_mm512_setzero_si512(), _mm512_set1_epi8(-128));
        // 128, which is that byte without a sign, times the high and the low bytes of four values.
        let sums = _mm512_add_epi32(
            _mm512_slli_epi32::<8>(_mm512_dpbusd_epi32(none, added, high)),
            _mm512_dpbusd_epi32(none, added, low),
        );
        let mut wide = Self {
            high: [0; VECTOR],
            low: [0; VECTOR],
            start: [0; VECTOR / 4],
        };
        // SAFETY: each is 64 bytes.
        unsafe {
            _mm512_storeu_si512(wide.high.as_mut_ptr().cast(), high);
            _mm512_storeu_si512(wide.low.as_mut_ptr().cast(), low);
            let start = _mm512_sub_epi32(none, sums);
            _mm512_storeu_si512(wide.start.as_mut_ptr().cast(), start);
        }
        wide
    }
}

impl Narrow {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn new(four: &[[i16; BLOCK]; NARROW]) -> Self {
        let mut narrow = Self {
            high: [[0; VECTOR]; 2],
            low: [[0; VECTOR]; 2],
        };
        for (b, values) in four.iter().enumerate() {
            let (high, low) = bytes(values);
            for (bytes, to) in [(high, &mut narrow.high), (low, &mut narrow.low)] {
                let halves = [
                    _mm256_castsi256_si128(bytes),
                    _mm256_extracti128_si256::<1>(bytes),
                ];
                for (to, half) in to.iter_mut().zip(halves) {
                    let part = &mut to[b * BLOCK / 2..(b + 1) * BLOCK / 2];
                    // SAFETY: 16 bytes.
                    unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), half) };
                }
            }
        }
        narrow
    }
}

/// Products of rows with inputs, written behind each row.
///
/// # Safety
/// The machine has the features. Rows are from [`Rows::row`](super::Rows::row), and inputs have as many blocks as they,
/// and scales and sums up to a multiple of [`STEP`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn rows<'a, const Q4: bool, const M: usize>(
    mut rows: impl Iterator<Item = (Row<'a>, &'a mut [f32])>,
    inputs: &[&Input; M],
) {
    loop {
        let mut sums = [[_mm512_setzero_ps(); ROWS]; M];
        let mut outs: [Option<&mut [f32]>; ROWS] = [const { None }; ROWS];
        for (slot, (row, out)) in rows.by_ref().take(ROWS).enumerate() {
            // SAFETY: the caller's promise.
            let found = unsafe { row_sums::<Q4, M>(&row, inputs) };
            for (sums, found) in sums.iter_mut().zip(found) {
                sums[slot] = found;
            }
            outs[slot] = Some(out);
        }
        if outs[0].is_none() {
            return;
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let totals = totals(sums);
            for (out, total) in outs.iter_mut().zip(totals) {
                if let Some(out) = out {
                    out[m] = total;
                }
            }
        }
        if outs[ROWS - 1].is_none() {
            return;
        }
    }
}

/// The sums of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn totals([a, b, c, d]: [__m512; ROWS]) -> [f32; ROWS] {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let four = _mm512_add_ps(
        _mm512_shuffle_ps::<0x44>(ab, cd),
        _mm512_shuffle_ps::<0xee>(ab, cd),
    );
    let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(four));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(four), _mm256_castpd_ps(high));
    let sums = _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    );
    let mut totals = [0.0; ROWS];
    // SAFETY: four numbers are written.
    unsafe { _mm_storeu_ps(totals.as_mut_ptr(), sums) };
    totals
}

/// The products of one row, not added up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn row_sums<const Q4: bool, const M: usize>(
    row: &Row<'_>,
    inputs: &[&Input; M],
) -> [__m512; M] {
    let mut sums = [[_mm512_setzero_ps(); SUMS]; M];
    let whole = row.blocks / STEP * STEP;
    // SAFETY: the caller's promise; the blocks of all steps are inside the row.
    unsafe {
        for first in (0..whole).step_by(STEP) {
            // A known number of blocks, for which the compiler leaves no loop.
            step::<Q4, M>(row, inputs, &mut sums, first, STEP);
        }
        if whole < row.blocks {
            step::<Q4, M>(row, inputs, &mut sums, whole, row.blocks - whole);
        }
    }
    // A loop: `map` of an array is a call, and compiled without these instructions.
    let mut totals = [_mm512_setzero_ps(); M];
    for (total, [a, b]) in totals.iter_mut().zip(sums) {
        *total = _mm512_add_ps(a, b);
    }
    totals
}

/// Adds `count` blocks from `first` on, a multiple of [`STEP`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn step<const Q4: bool, const M: usize>(
    row: &Row<'_>,
    inputs: &[&Input; M],
    sums: &mut [[__m512; SUMS]; M],
    first: usize,
    count: usize,
) {
    let mut factors = [_mm512_setzero_ps(); M];
    let there = (1u32 << count).wrapping_sub(1) as u16;
    // SAFETY: of scales and minima those of the blocks are read, and inputs reach to the end of
    // the step.
    unsafe {
        let halves = _mm256_maskz_loadu_epi16(there, row.scales.as_ptr().add(first).cast());
        let scales = _mm512_cvtph_ps(halves);
        for (factors, input) in factors.iter_mut().zip(inputs) {
            let input = _mm512_loadu_ps(input.scales.as_ptr().add(first));
            *factors = _mm512_mul_ps(scales, input);
        }
        if Q4 {
            let halves = _mm256_maskz_loadu_epi16(there, row.mins.as_ptr().add(first).cast());
            let mins = _mm512_cvtph_ps(halves);
            for (sums, input) in sums.iter_mut().zip(inputs) {
                let input = _mm512_loadu_ps(input.sums.as_ptr().add(first));
                sums[1] = _mm512_fmadd_ps(mins, input, sums[1]);
            }
        }
        let width = if Q4 { NARROW } else { WIDE };
        let whole = count / width;
        for i in 0..whole {
            let at = (first + i * width) * VECTOR / width;
            let quants = _mm512_loadu_si512(row.quants.as_ptr().add(at).cast());
            prefetch(row.quants.as_ptr().wrapping_add(at + AHEAD));
            vector::<Q4, M>(quants, inputs, &factors, sums, [first / width, i]);
        }
        let rest = count % width;
        if rest > 0 {
            let at = (first + whole * width) * VECTOR / width;
            let words = (1u8 << (8 / width * rest)).wrapping_sub(1);
            let quants = _mm512_maskz_loadu_epi64(words, row.quants.as_ptr().add(at).cast());
            vector::<Q4, M>(quants, inputs, &factors, sums, [first / width, whole]);
        }
    }
}

/// Adds the blocks of vector `i` behind the `first` one of a step.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vector<const Q4: bool, const M: usize>(
    quants: __m512i,
    inputs: &[&Input; M],
    factors: &[__m512; M],
    sums: &mut [[__m512; SUMS]; M],
    [first, i]: [usize; 2],
) {
    let none = _mm512_setzero_si512();
    let width = if Q4 { NARROW } else { WIDE };
    // Which block a sum belongs to.
    let block = match Q4 {
        true => _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0),
        false => _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),
    };
    let block = _mm512_add_epi32(block, _mm512_set1_epi32((i * width) as i32));
    for m in 0..M {
        // SAFETY: the input has this vector, of as many bytes as are read.
        let (high, low) = unsafe {
            let bytes = &inputs[m].bytes;
            let load = |part: &[i8; VECTOR]| _mm512_load_si512(part.as_ptr().cast());
            if Q4 {
                let nibble = _mm512_set1_epi8(15);
                let one = _mm512_and_si512(quants, nibble);
                let two = _mm512_and_si512(_mm512_srli_epi16::<4>(quants), nibble);
                let x = bytes.narrow.get_unchecked(first + i);
                let high = _mm512_dpbusd_epi32(none, one, load(&x.high[0]));
                let low = _mm512_dpbusd_epi32(none, one, load(&x.low[0]));
                (
                    _mm512_dpbusd_epi32(high, two, load(&x.high[1])),
                    _mm512_dpbusd_epi32(low, two, load(&x.low[1])),
                )
            } else {
                let unsigned = _mm512_xor_si512(quants, _mm512_set1_epi8(-128));
                let x = bytes.wide.get_unchecked(first + i);
                let start = _mm512_load_si512(x.start.as_ptr().cast());
                (
                    _mm512_dpbusd_epi32(none, unsigned, load(&x.high)),
                    _mm512_dpbusd_epi32(start, unsigned, load(&x.low)),
                )
            }
        };
        let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
        let factor = _mm512_permutexvar_ps(block, factors[m]);
        let sum = &mut sums[m][i % SUMS];
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, *sum);
    }
}
