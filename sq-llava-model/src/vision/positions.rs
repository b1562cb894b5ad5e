//! Positions for pictures of another size than a tower was trained on, as DINOv2 has them in
//! transformers (`interpolate_pos_encoding`): a bicubic resize of their grid.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::tower::VisionTower;
use crate::config::{VisionConfig, VisionFamily};
use crate::ops::weight::Weight;

/// PyTorch's coefficient of the cubic kernel.
const A: f64 = -0.75;

impl<B: Backend> VisionTower<B> {
    /// Resizes the grid of positions to pictures of `side` × `side` pixels, and says so in the
    /// tower's configuration. Towers whose class in transformers takes one size stay as they are.
    pub fn resize_positions(&mut self, config: &mut VisionConfig, side: usize) {
        let (before, after) = (config.patches_per_side(), side / config.patch_size);
        if config.family != VisionFamily::Dinov2 || side == config.image_size || after == 0 {
            return;
        }
        config.image_size = side;
        let table = &mut self.embeddings.position_embedding.weight;
        if before == after {
            return;
        }
        if let Weight::Dense(positions) = table {
            *table = Weight::Dense(resized(positions.clone(), before, after));
        }
    }
}

/// The class token's position stays.
fn resized<B: Backend>(
    positions: Param<Tensor<B, 2>>,
    before: usize,
    after: usize,
) -> Param<Tensor<B, 2>> {
    positions.map(|table| {
        let ([rows, width], device, dtype) = (table.dims(), table.device(), table.dtype());
        let first = rows.saturating_sub(before * before) * width;
        let values = table.into_data().convert::<f32>();
        let values = values.as_slice::<f32>().unwrap_or_default();
        let (class, grid) = values.split_at(first.min(values.len()));
        let mut all = class.to_vec();
        all.extend(bicubic(grid, before, after, width));
        let rows = all.len() / width;
        Tensor::from_data(TensorData::new(all, [rows, width]), (&device, dtype))
    })
}

/// `[before · before, width]` → `[after · after, width]`, without smoothing what becomes smaller.
fn bicubic(grid: &[f32], before: usize, after: usize, width: usize) -> Vec<f32> {
    let taps = taps(before, after);
    // Columns first: `[before, after, width]`.
    let mut columns = vec![0.0f64; before * after * width];
    for (row, line) in columns.chunks_exact_mut(after * width).enumerate() {
        for (cell, taps) in line.chunks_exact_mut(width).zip(&taps) {
            for &(from, weight) in taps {
                let source = &grid[(row * before + from) * width..][..width];
                for (sum, &value) in cell.iter_mut().zip(source) {
                    *sum += weight * f64::from(value);
                }
            }
        }
    }
    let mut out = vec![0.0f64; after * after * width];
    for (line, taps) in out.chunks_exact_mut(after * width).zip(&taps) {
        for &(from, weight) in taps {
            let source = &columns[from * after * width..][..after * width];
            for (sum, value) in line.iter_mut().zip(source) {
                *sum += weight * value;
            }
        }
    }
    out.into_iter().map(|value| value as f32).collect()
}

/// For each place of the new row four of the old one with their weights; beyond its ends the last
/// counts again.
fn taps(before: usize, after: usize) -> Vec<[(usize, f64); 4]> {
    let scale = before as f64 / after as f64;
    let last = before as i64 - 1;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let place = |to: usize| {
        let middle = scale * (to as f64 + 0.5) - 0.5;
        let (start, t) = (middle.floor() as i64, middle - middle.floor());
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        let mut offset = -2;
        weights.map(|weight| {
            offset += 1;
            ((start + offset).clamp(0, last) as usize, weight)
        })
    };
    (0..after).map(place).collect()
}
