//! Blocks from values and back, number for number as the `gguf` package has them.

use half::f16;

use super::BLOCK;

/// Scale and its inverse of a block; a scale of 0 makes all numbers 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// A row in `q8`.
pub(super) fn write_q8(values: &[f32], quants: &mut [u8], scales: &mut [f16]) {
    let blocks = values.chunks(BLOCK).zip(quants.chunks_mut(BLOCK));
    for ((values, quants), scale) in blocks.zip(scales) {
        let d = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
        let id = inverse(d);
        for (quant, value) in quants.iter_mut().zip(values) {
            *quant = (value * id).round() as i8 as u8;
        }
        *scale = f16::from_f32(d);
    }
}

/// A row in `q4`.
pub(super) fn write_q4(values: &[f32], quants: &mut [u8], scales: &mut [f16], mins: &mut [f16]) {
    let blocks = values.chunks(BLOCK).zip(quants.chunks_mut(BLOCK / 2));
    for (((values, quants), scale), least) in blocks.zip(scales).zip(mins) {
        let min = values.iter().copied().fold(f32::INFINITY, f32::min);
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        for (i, value) in values.iter().enumerate() {
            let quant = (((value - min) * id + 0.5) as u8).min(15);
            quants[i % 16] |= quant << (4 * (i / 16));
        }
        *scale = f16::from_f32(d);
        *least = f16::from_f32(min);
    }
}

/// Values of a row in `q8`.
pub(super) fn read_q8(quants: &[u8], scales: &[f16], out: &mut [f32]) {
    let blocks = out.chunks_mut(BLOCK).zip(quants.chunks(BLOCK));
    for ((out, quants), scale) in blocks.zip(scales) {
        let d = scale.to_f32();
        for (out, &quant) in out.iter_mut().zip(quants) {
            *out = f32::from(quant as i8) * d;
        }
    }
}

/// Values of a row in `q4`.
pub(super) fn read_q4(quants: &[u8], scales: &[f16], mins: &[f16], out: &mut [f32]) {
    let blocks = out.chunks_mut(BLOCK).zip(quants.chunks(BLOCK / 2));
    for (((out, quants), scale), min) in blocks.zip(scales).zip(mins) {
        let (d, m) = (scale.to_f32(), min.to_f32());
        let (low, high) = out.split_at_mut(out.len().min(BLOCK / 2));
        for (out, &quant) in low.iter_mut().zip(quants) {
            *out = f32::from(quant & 15) * d + m;
        }
        for (out, &quant) in high.iter_mut().zip(quants) {
            *out = f32::from(quant >> 4) * d + m;
        }
    }
}
