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
}

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
        }
    }

    /// Elements of a block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
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
