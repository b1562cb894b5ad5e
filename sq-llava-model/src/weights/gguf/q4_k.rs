//! Writing blocks of Q4_K as llama.cpp does (`quantize_row_q4_K_ref` of `ggml-quants.c`).

use half::f16;

use super::blocks::scale_and_min;

/// Sub-blocks of a block, and elements of each.
const PARTS: usize = 8;
const PART: usize = 32;
/// Largest number of an element, and of a scale or minimum.
const MOST: f32 = 15.0;
const MOST_SCALE: f32 = 63.0;

/// One block of 256 values. What is too large for f16 becomes infinite, as the caller sees by the
/// values.
pub(super) fn write_q4_k(values: &[f32], block: &mut [u8]) {
    let mut quants = [[0u8; PART]; PARTS];
    let (mut scales, mut mins) = ([0.0f32; PARTS], [0.0f32; PARTS]);
    for (part, values) in values.chunks_exact(PART).enumerate() {
        (scales[part], mins[part]) = fit(values, &mut quants[part]);
    }
    let most = |list: &[f32]| list.iter().copied().fold(0.0f32, f32::max);
    let (scale, min) = (most(&scales), most(&mins));
    let steps = |most: f32| if most > 0.0 { MOST_SCALE / most } else { 0.0 };
    let packed = &mut block[4..16];
    for part in 0..PARTS {
        let one =
            |value: f32, most: f32| (steps(most) * value).round_ties_even().min(MOST_SCALE) as u8;
        let (s, m) = (one(scales[part], scale), one(mins[part], min));
        if part < 4 {
            packed[part] = s;
            packed[part + 4] = m;
        } else {
            packed[part + 4] = (s & 15) | ((m & 15) << 4);
            packed[part - 4] |= (s >> 4) << 6;
            packed[part] |= (m >> 4) << 6;
        }
    }
    let (d, m) = (
        f16::from_f32(scale / MOST_SCALE),
        f16::from_f32(min / MOST_SCALE),
    );
    for (part, values) in values.chunks_exact(PART).enumerate() {
        let (s, t) = scale_and_min(&block[4..16], part);
        let (scale, min) = (d.to_f32() * f32::from(s), m.to_f32() * f32::from(t));
        if scale == 0.0 {
            continue;
        }
        for (quant, value) in quants[part].iter_mut().zip(values) {
            *quant = nearest((value + min) / scale);
        }
    }
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&m.to_le_bytes());
    for (two, bytes) in quants
        .chunks_exact(2)
        .zip(block[16..].chunks_exact_mut(PART))
    {
        for (byte, (low, high)) in bytes.iter_mut().zip(two[0].iter().zip(&two[1])) {
            *byte = low | (high << 4);
        }
    }
}

/// A number from 0 to 15, halves to the even one.
fn nearest(value: f32) -> u8 {
    value.round_ties_even().clamp(0.0, MOST) as u8
}

/// Scale and minimum (how far below 0) of a sub-block with the least weighted square error of some
/// that are tried, and its numbers (`make_qkx2_quants`). Large values weigh more.
fn fit(values: &[f32], quants: &mut [u8; PART]) -> (f32, f32) {
    let squares: f32 = values.iter().fold(0.0, |sum, x| sum + x * x);
    let mean = (squares / PART as f32).sqrt();
    let weights: Vec<f32> = values.iter().map(|x| mean + x.abs()).collect();
    let least = values
        .iter()
        .copied()
        .fold(f32::INFINITY, f32::min)
        .min(0.0);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum_w, mut sum_x) = (0.0f32, 0.0f32);
    for (w, x) in weights.iter().zip(values) {
        sum_w += w;
        sum_x += w * x;
    }
    quants.fill(0);
    if most == least {
        return (0.0, -least);
    }
    let error = |scale: f32, min: f32, quants: &[u8; PART]| {
        let pairs = values.iter().zip(quants).zip(&weights);
        pairs.fold(0.0f32, |sum, ((x, &quant), w)| {
            let difference = scale * f32::from(quant) + min - x;
            sum + w * (difference * difference)
        })
    };
    let rounded = |steps: f32, min: f32, out: &mut [u8; PART]| {
        for (quant, x) in out.iter_mut().zip(values) {
            *quant = nearest(steps * (x - min));
        }
    };
    let steps = MOST / (most - least);
    rounded(steps, least, quants);
    let (mut scale, mut min) = (1.0 / steps, least);
    let mut best = error(scale, min, quants);
    let mut tried = [0u8; PART];
    for step in 0..=20 {
        let steps = (-1.0 + 0.1 * step as f32 + MOST) / (most - min);
        rounded(steps, min, &mut tried);
        let Some((this_scale, this_min)) = line(values, &weights, &tried, [sum_w, sum_x]) else {
            continue;
        };
        let this = error(this_scale, this_min, &tried);
        if this < best {
            *quants = tried;
            (best, scale, min) = (this, this_scale, this_min);
        }
    }
    (scale, -min)
}

/// Scale and minimum (not above 0) with the least weighted square error for given numbers; `None`
/// where all numbers are one. `sums` of the weights, and of the weighted values.
fn line(
    values: &[f32],
    weights: &[f32],
    quants: &[u8; PART],
    [sum_w, sum_x]: [f32; 2],
) -> Option<(f32, f32)> {
    let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
    for ((&quant, w), x) in quants.iter().zip(weights).zip(values) {
        let l = f32::from(quant);
        sum_l += w * l;
        sum_l2 += w * l * l;
        sum_xl += w * l * x;
    }
    let determinant = sum_w * sum_l2 - sum_l * sum_l;
    if determinant <= 0.0 {
        return None;
    }
    let scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    let min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    Some(match min > 0.0 {
        true => (sum_xl / sum_l2, 0.0),
        false => (scale, min),
    })
}
