//! One token: rotation into the cache, and attention, against the formulas in f64.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use cubecl::wgpu::WgpuDevice;

use super::{Fused, Plain, close, draw, dtypes};
use crate::kernels::gpu::{Append, Attend, float, launch, tensor};

fn doubles(data: &TensorData) -> Vec<f64> {
    data.iter().collect()
}

fn rotated(heads: &[f64], dim: usize, angles: Option<(&[f64], &[f64])>) -> Vec<f64> {
    let Some((cos, sin)) = angles else {
        return heads.to_vec();
    };
    let (width, half) = (cos.len(), cos.len() / 2);
    let turn = |head: &[f64]| -> Vec<f64> {
        let entry = |i: usize| match i {
            i if i < half => head[i] * cos[i] - head[i + half] * sin[i],
            i if i < width => head[i] * cos[i] + head[i - half] * sin[i],
            i => head[i],
        };
        (0..dim).map(entry).collect()
    };
    heads.chunks_exact(dim).flat_map(turn).collect()
}

fn appending<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    let (rows, heads, kv_heads, capacity, dim) = (2, 6, 3, 7, 12);
    for (dtype, tolerance) in dtypes(device) {
        for (past, rotates) in [(0, true), (6, true), (3, false)] {
            let widths = [heads, kv_heads, kv_heads].map(|heads| heads * dim);
            let given = [1, 2, 3].map(|seed| draw([rows, widths[seed as usize - 1]], seed, 2.0));
            let buffers = [4, 5].map(|seed| draw([rows, kv_heads, capacity, dim], seed, 2.0));
            let angles = [6, 7].map(|seed| draw([1, 1, 1, 8], seed, 1.0));
            let mut inputs: Vec<_> = given
                .each_ref()
                .map(|data| float(Tensor::<B, 2>::from_data(data.clone(), device)))
                .into();
            let held = buffers
                .each_ref()
                .map(|data| Tensor::<B, 4>::from_data(data.clone(), (device, dtype)));
            inputs.extend(held.clone().map(float));
            if rotates {
                inputs.extend(
                    angles
                        .each_ref()
                        .map(|data| float(Tensor::<B, 4>::from_data(data.clone(), device))),
                );
            }
            let outputs = launch::<B, _>(&Append { past, rotates }, inputs).ok();
            let mut outputs = outputs.expect("the kernel knows these").into_iter();
            let mut next = || {
                let output = tensor::<B, 4>(outputs.next().expect("three"));
                output.cast(DType::F32).into_data()
            };
            let (found, keys, values) = (next(), next(), next());

            let [cos, sin] = angles.each_ref().map(doubles);
            let angles = rotates.then_some((&cos[..], &sin[..]));
            let expected = rotated(&doubles(&given[0]), dim, angles);
            let shape = [rows, heads, 1, dim];
            close(&found, &TensorData::new(expected, shape), 1e-6, "queries");
            let new = [
                rotated(&doubles(&given[1]), dim, angles),
                doubles(&given[2]),
            ];
            for ((found, new), before) in [keys, values].iter().zip(new).zip(&buffers) {
                let mut expected = doubles(before);
                for (head, entries) in new.chunks_exact(dim).enumerate() {
                    expected[(head * capacity + past) * dim..][..dim].copy_from_slice(entries);
                }
                let expected = TensorData::new(expected, [rows, kv_heads, capacity, dim]);
                close(found, &expected, tolerance, "cache");
            }
            // What something else holds is not written.
            for (held, before) in held.into_iter().zip(&buffers) {
                close(
                    &held.cast(DType::F32).into_data(),
                    before,
                    tolerance,
                    "held",
                );
            }
        }
    }
}

#[test]
fn a_token_is_rotated_and_put_into_the_cache() {
    if let Some(device) = super::device() {
        appending::<Plain>(&device);
        appending::<Fused>(&device);
    }
}

/// Softmax of scores times values, of one head.
fn attended(query: &[f64], keys: &[f64], values: &[f64], scale: f64, cap: Option<f64>) -> Vec<f64> {
    let dim = query.len();
    let score = |key: &[f64]| {
        let score = query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * scale;
        cap.map_or(score, |cap| cap * (score / cap).tanh())
    };
    let scores: Vec<f64> = keys.chunks_exact(dim).map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let entry = |i: usize| {
        let values = values.chunks_exact(dim).zip(&weights);
        values.map(|(value, weight)| value[i] * weight).sum::<f64>() / total
    };
    (0..dim).map(entry).collect()
}

fn attending<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, _) in dtypes(device) {
        for (keys, dim, softcap) in [
            (1, 4, None),
            (255, 80, None),
            (256, 128, Some(5.0)),
            (257, 64, None),
            (700, 96, None),
            (300, 256, None),
        ] {
            let (rows, heads, kv_heads, capacity) = (2, 4, 2, keys + 3);
            let query = draw([rows, heads, 1, dim], 1, 3.0);
            let buffers = [2, 3].map(|seed| {
                let data = draw([rows, kv_heads, capacity, dim], seed, 1.0);
                Tensor::<B, 4>::from_data(data, (device, dtype))
            });
            let scale = 1.0 / (dim as f64).sqrt();
            let attend = Attend {
                keys,
                scale: scale as f32,
                softcap: softcap.map(|cap: f64| cap as f32),
            };
            let mut inputs = vec![float(Tensor::<B, 4>::from_data(query.clone(), device))];
            inputs.extend(buffers.clone().map(float));
            let outputs = launch::<B, _>(&attend, inputs).ok();
            let found = outputs.expect("the kernel knows these").swap_remove(0);
            let found = tensor::<B, 2>(found).into_data();

            let query = doubles(&query);
            let [k, v] = buffers.map(|b| doubles(&b.cast(DType::F32).into_data()));
            let mut expected = vec![];
            for row in 0..rows {
                for head in 0..heads {
                    let kv = (row * kv_heads + head * kv_heads / heads) * capacity * dim;
                    let (k, v) = (&k[kv..][..keys * dim], &v[kv..][..keys * dim]);
                    let q = &query[(row * heads + head) * dim..][..dim];
                    expected.extend(attended(q, k, v, scale, softcap));
                }
            }
            let expected = TensorData::new(expected, [rows, heads * dim]);
            close(
                &found,
                &expected,
                1e-5,
                &format!("{dtype:?}, {keys} keys of {dim}"),
            );
        }
    }
}

#[test]
fn a_token_attends_to_all_keys() {
    if let Some(device) = super::device() {
        attending::<Plain>(&device);
        attending::<Fused>(&device);
    }
}
