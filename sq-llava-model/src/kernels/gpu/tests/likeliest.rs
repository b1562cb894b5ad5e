//! The likeliest token.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use cubecl::wgpu::WgpuDevice;

use super::{Fused, Plain, draw, dtypes};
use crate::ops::likeliest::{Choice, Likeliest};

/// The first of the largest, as the host finds it.
fn first_largest(row: &[f32], barred: &[usize]) -> Choice {
    if !row.iter().all(|logit| logit.is_finite()) {
        return Choice::NotFinite;
    }
    let mut best: Option<usize> = None;
    for id in (0..row.len()).filter(|id| !barred.contains(id)) {
        if best.is_none_or(|best| row[id] > row[best]) {
            best = Some(id);
        }
    }
    best.map_or(Choice::NoneLeft, |id| Choice::Token(id as i64))
}

fn rows<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, _) in dtypes(device) {
        for width in [1, 2, 255, 256, 257, 1000, 4100] {
            let mut values: Vec<f32> = draw([9, width], 3, 4.0).iter().collect();
            let set = |values: &mut [f32], row: usize, at: usize, value: f32| {
                values[row * width + at % width] = value;
            };
            // Equal ones at places that different units and the same unit see.
            for at in [700, 3, 259, 4000] {
                set(&mut values, 0, at, 50.0);
            }
            values[width..2 * width].fill(-7.0);
            set(&mut values, 2, 600, f32::NAN);
            set(&mut values, 3, 1, f32::INFINITY);
            set(&mut values, 4, 300, f32::NEG_INFINITY);
            set(&mut values, 5, width - 1, 60.0);
            set(&mut values, 6, 0, 60.0);
            values[7 * width..8 * width].fill(-0.0);
            set(&mut values, 7, 5, 0.0);
            let barred: Vec<usize> = match width {
                1 => vec![],
                _ => vec![0, width - 1],
            };
            for barred in [vec![], barred, (0..width).collect()] {
                let bar = |scores: &mut [f32]| barred.iter().for_each(|&id| scores[id] = 1.0);
                let likeliest = Likeliest::<B>::on_gpu(width, bar, device);
                let likeliest = likeliest.expect("a GPU");
                let data = TensorData::new(values.clone(), [9, width]);
                let logits = Tensor::<B, 2>::from_data(data, (device, dtype));
                let stored: Vec<f32> = logits.clone().cast(DType::F32).into_data().iter().collect();
                let (ids, found) = likeliest.choose(logits).expect("the kernel knows these");
                let expected = stored
                    .chunks_exact(width)
                    .map(|row| first_largest(row, &barred));
                let expected: Vec<Choice> = expected.collect();
                let ids: Vec<i64> = ids.into_data().iter().collect();
                for (id, choice) in ids.iter().zip(&found) {
                    assert!(*id < 0 || Choice::Token(*id) == *choice);
                }
                assert_eq!(
                    found,
                    expected,
                    "{dtype:?}, {width} without {}",
                    barred.len()
                );
            }
        }
    }
}

#[test]
fn the_likeliest_token_is_the_first_of_the_largest() {
    if let Some(device) = super::device() {
        rows::<Plain>(&device);
        rows::<Fused>(&device);
    }
}
