//! Quantised blocks of GGUF tensors (`ggml-common.h`, `ggml-quants.c`), all little-endian.
//!
//! | format | elements | bytes | value of element *i* |
//! |---|---|---|---|
//! | Q4_0 | 32 | f16 d, 16 × 2 nibbles | d·(q−8) |
//! | Q4_1 | 32 | f16 d, f16 m, 16 × 2 nibbles | d·q + m |
//! | Q5_0 | 32 | f16 d, 32 high bits, 16 × 2 nibbles | d·(q−16) |
//! | Q5_1 | 32 | f16 d, f16 m, 32 high bits, 16 × 2 nibbles | d·q + m |
//! | Q8_0 | 32 | f16 d, 32 × i8 | d·q |
//! | Q4_K | 256 | f16 d, f16 m, 8 × 6-bit scale and minimum, 128 × 2 nibbles | d·s·q − m·t |
//! | Q5_K | 256 | as Q4_K with 256 high bits before the nibbles | d·s·q − m·t |
//! | Q6_K | 256 | 128 × 2 nibbles, 64 × 4 high pairs, 16 × i8 scale, f16 d | d·s·(q−32) |
//! | Q2_K | 256 | 16 × 4-bit scale and minimum, 64 × 4 pairs, f16 d, f16 m | d·s·q − m·t |
//! | Q3_K | 256 | 256 high bits, 64 × 4 pairs, 16 × 6-bit scale, f16 d | d·(s−32)·(q−4) |
//! | IQ4_NL | 32 | f16 d, 16 × 2 nibbles | d·v\[q\] |
//! | IQ4_XS | 256 | f16 d, 8 × 6-bit scale (high pairs first), 128 × 2 nibbles | d·(s−32)·v\[q\] |
//! | MXFP4 | 32 | exponent e, 16 × 2 nibbles | 2^(e−128)·f\[q\] |

use half::f16;

/// Format of the blocks of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::weights) enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    Q2K,
    Q3K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// The sixteen values v of IQ4_NL and IQ4_XS (`kvalues_iq4nl`).
const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the sixteen values of MXFP4, E2M1 (`kvalues_mxfp4`).
const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl BlockFormat {
    /// Name as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Mxfp4 => "MXFP4",
        }
    }

    /// Elements of a block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Iq4Nl => 18,
            Self::Iq4Xs => 136,
            Self::Mxfp4 => 17,
        }
    }

    /// Values of whole blocks; `out` has `elements` places for each `bytes` of `blocks`.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        let one = match self {
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Iq4Nl => iq4_nl,
            Self::Iq4Xs => iq4_xs,
            Self::Mxfp4 => mxfp4,
        };
        let blocks = blocks.chunks_exact(self.bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.elements())) {
            one(block, out);
        }
    }
}

/// A half at a byte offset.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    let (low, high) = out.split_at_mut(16);
    for (i, &byte) in block[2..18].iter().enumerate() {
        low[i] = f32::from((byte & 15) as i8 - 8) * d;
        high[i] = f32::from((byte >> 4) as i8 - 8) * d;
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (i, &byte) in block[4..20].iter().enumerate() {
        low[i] = f32::from(byte & 15) * d + m;
        high[i] = f32::from(byte >> 4) * d + m;
    }
}

/// Nibbles with a fifth bit, element by element.
fn fives(high_bits: &[u8], nibbles: &[u8], mut put: impl FnMut(usize, u8)) {
    for (i, &byte) in nibbles.iter().enumerate() {
        let bit = |i: usize| (high_bits[i / 8] >> (i % 8)) & 1;
        put(i, (byte & 15) | (bit(i) << 4));
        put(i + 16, (byte >> 4) | (bit(i + 16) << 4));
    }
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    fives(&block[2..6], &block[6..22], |i, q| {
        out[i] = f32::from(q as i8 - 16) * d;
    });
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    fives(&block[4..8], &block[8..24], |i, q| {
        out[i] = f32::from(q) * d + m;
    });
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..34]) {
        *out = f32::from(byte as i8) * d;
    }
}

/// Scale and minimum of sub-block `i` of 8, 6 bits each.
pub(in crate::weights) fn scale_and_min(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (
            (packed[i + 4] & 15) | ((packed[i - 4] >> 6) << 4),
            (packed[i + 4] >> 4) | ((packed[i] >> 6) << 4),
        )
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (scales, nibbles) = (&block[4..16], &block[16..144]);
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, i);
        let (scale, min) = (d * f32::from(scale), m * f32::from(min));
        let shift = 4 * (i % 2);
        for (out, &byte) in out.iter_mut().zip(&nibbles[i / 2 * 32..]) {
            *out = scale * f32::from((byte >> shift) & 15) - min;
        }
    }
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (scales, high, nibbles) = (&block[4..16], &block[16..48], &block[48..176]);
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, i);
        let (scale, min) = (d * f32::from(scale), m * f32::from(min));
        let shift = 4 * (i % 2);
        let bytes = nibbles[i / 2 * 32..].iter().zip(high);
        for (out, (&byte, &high)) in out.iter_mut().zip(bytes) {
            let q = ((byte >> shift) & 15) | (((high >> i) & 1) << 4);
            *out = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high) = (&block[..128], &block[128..192]);
    let (scales, d) = (&block[192..208], half(block, 208));
    // Two halves of 128; in each, four runs of 32 share 64 bytes of nibbles and 32 of high pairs.
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (part, run) = (i / 4, i % 4);
        let low = &low[part * 64 + run % 2 * 32..];
        let high = &high[part * 32..];
        for (l, out) in out.iter_mut().enumerate() {
            let nibble = (low[l] >> (4 * (run / 2))) & 15;
            let q = (nibble | (((high[l] >> (2 * run)) & 3) << 4)) as i8 - 32;
            let scale = scales[part * 8 + run * 2 + l / 16] as i8;
            *out = d * f32::from(scale) * f32::from(q);
        }
    }
}

/// Two bits of each of 256 elements: in each half of 128, four runs of 32 share 32 bytes.
fn pair(pairs: &[u8], run: usize, l: usize) -> u8 {
    (pairs[run / 4 * 32 + l] >> (2 * (run % 4))) & 3
}

fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, pairs) = (&block[..16], &block[16..80]);
    let (d, m) = (half(block, 80), half(block, 82));
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (scales[i] & 15, scales[i] >> 4);
        let (scale, min) = (d * f32::from(scale), m * f32::from(min));
        for (l, out) in out.iter_mut().enumerate() {
            let q = pair(pairs, i / 2, i % 2 * 16 + l);
            *out = scale * f32::from(q) - min;
        }
    }
}

fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, pairs, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let low = (scales[i % 8] >> (4 * (i / 8))) & 15;
        let top = (scales[8 + i % 4] >> (2 * (i / 4))) & 3;
        let scale = d * f32::from((low | (top << 4)) as i8 - 32);
        let run = i / 2;
        for (l, out) in out.iter_mut().enumerate() {
            let l = i % 2 * 16 + l;
            let q = pair(pairs, run, l) | (((high[l] >> run) & 1) << 2);
            *out = scale * f32::from(q as i8 - 4);
        }
    }
}

/// Values by nibbles, the low ones first.
fn by_nibble(d: f32, nibbles: &[u8], values: &[i8; 16], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(16);
    for (i, &byte) in nibbles.iter().enumerate() {
        low[i] = d * f32::from(values[usize::from(byte & 15)]);
        high[i] = d * f32::from(values[usize::from(byte >> 4)]);
    }
}

fn iq4_nl(block: &[u8], out: &mut [f32]) {
    by_nibble(half(block, 0), &block[2..18], &IQ4_VALUES, out);
}

fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    let top = u16::from_le_bytes([block[2], block[3]]);
    let (scales, nibbles) = (&block[4..8], &block[8..136]);
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let low = (scales[i / 2] >> (4 * (i % 2))) & 15;
        let top = ((top >> (2 * i)) & 3) as u8;
        let scale = d * f32::from((low | (top << 4)) as i8 - 32);
        by_nibble(scale, &nibbles[i * 16..][..16], &IQ4_VALUES, out);
    }
}

fn mxfp4(block: &[u8], out: &mut [f32]) {
    // Half of 2^(e−127), since the values are doubled; the two smallest are not normal numbers.
    let scale = f32::from_bits(match block[0] {
        e @ 0..=1 => 0x0020_0000 << e,
        e => (u32::from(e) - 1) << 23,
    });
    by_nibble(scale, &block[1..17], &MXFP4_VALUES, out);
}
