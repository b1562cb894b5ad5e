//! Activations and rotary positions.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor};
use cubecl::wgpu::WgpuDevice;

use super::{Cpu, by_kernel, close, draw, dtypes, leaf, on_both, pass};
use crate::kernels::activation::Activation;
use crate::kernels::gpu::{Gated, Pointwise, Rotate, float};

pub(super) const ACTIVATIONS: [Activation; 5] = [
    Activation::Silu,
    Activation::QuickGelu,
    Activation::Gelu,
    Activation::GeluPytorchTanh,
    Activation::Relu,
];

fn activations<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    let cpu = Default::default();
    for (dtype, tolerance) in dtypes(device) {
        for (n, scale) in [(1, 3.0), (300, 6.0), (40, 60.0)] {
            for act in ACTIVATIONS {
                let what = format!("{act:?} of {n} in {dtype:?}");
                let (x, up) = (draw([1, n], 1, scale), draw([1, n], 2, 2.0));
                let on_gpu = |data| -> Tensor<B, 2> { leaf(data, dtype, device) };
                let on_cpu = |data| -> Tensor<Cpu, 2> { leaf(data, DType::F32, &cpu) };

                let (gate, other) = (on_gpu(&x), on_gpu(&up));
                let inputs = [float(gate.clone()), float(other.clone())];
                let found = pass(by_kernel::<B, _, 2, 2>(Gated(act), inputs), &[gate, other]);
                let (gate, other) = (on_cpu(&x), on_cpu(&up));
                let expected = pass(act.portable(gate.clone()) * other.clone(), &[gate, other]);
                close(&found.0, &expected.0, tolerance, &what);
                close(
                    &found.1[0],
                    &expected.1[0],
                    2.0 * tolerance,
                    &format!("{what}, gate"),
                );
                close(
                    &found.1[1],
                    &expected.1[1],
                    tolerance,
                    &format!("{what}, up"),
                );

                let alone = on_gpu(&x);
                let out = by_kernel::<B, _, 1, 2>(Pointwise(act), [float(alone.clone())]);
                let found = pass(out, &[alone]);
                let alone = on_cpu(&x);
                let expected = pass(act.portable(alone.clone()), &[alone]);
                close(&found.0, &expected.0, tolerance, &what);
                close(
                    &found.1[0],
                    &expected.1[0],
                    2.0 * tolerance,
                    &format!("{what}, slope"),
                );
            }
        }
    }
}

#[test]
fn activations_and_gates_are_the_portable_form() {
    on_both!(activations);
}

/// `x · cos + rotate_half(x) · sin` by its formula, in f64.
fn turned(
    x: &[f64],
    angles: [&[f64]; 2],
    [batch, heads, tokens, width]: [usize; 4],
    shared: bool,
) -> Vec<f64> {
    let rotated = angles[0].len() / tokens / if shared { 1 } else { batch };
    let mut out = x.to_vec();
    for row in 0..batch * heads * tokens {
        let sample = if shared { 0 } else { row / (heads * tokens) };
        let place = (sample * tokens + row % tokens) * rotated;
        for i in 0..rotated {
            let other = match i < rotated / 2 {
                true => -x[row * width + i + rotated / 2],
                false => x[row * width + i - rotated / 2],
            };
            out[row * width + i] =
                x[row * width + i] * angles[0][place + i] + other * angles[1][place + i];
        }
    }
    out
}

fn rotations<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, tolerance) in dtypes(device) {
        for (shape, rotated, shared) in [
            ([2, 3, 5, 8], 8, true),
            ([2, 1, 7, 12], 4, false),
            ([1, 4, 33, 64], 64, true),
        ] {
            let [batch, heads, tokens, width] = shape;
            let rows = if shared { 1 } else { batch };
            // As tokens come: heads are a view of them.
            let x = draw([batch, tokens, heads, width], 1, 2.0);
            let angles = [2, 3].map(|seed| draw([rows, 1, tokens, rotated], seed, 1.0));
            let x_leaf: Tensor<B, 4> = leaf(&x, dtype, device);
            let [cos, sin] = angles
                .clone()
                .map(|angles| Tensor::<B, 4>::from_data(angles, (device, DType::F32)));
            let inputs = [
                float(x_leaf.clone().swap_dims(1, 2)),
                float(cos),
                float(sin),
            ];
            let out = by_kernel::<B, _, 3, 4>(Rotate, inputs);
            let found = pass(out, &[x_leaf]);

            let view: Tensor<Cpu, 4> = leaf(&x, DType::F32, &Default::default());
            let doubles = |data: &burn::tensor::TensorData| data.iter::<f64>().collect::<Vec<_>>();
            let heads_first = doubles(&view.clone().swap_dims(1, 2).into_data());
            let [cos, sin] = angles.each_ref().map(doubles);
            let expected = turned(&heads_first, [&cos, &sin], shape, shared);
            let expected = burn::tensor::TensorData::new(expected, shape).convert::<f32>();
            let what = format!("{dtype:?} {shape:?}");
            close(&found.0, &expected, tolerance, &what);

            // The gradient, from the one that is wanted times the transposed map: each entry's
            // change moves the result linearly.
            let weights = doubles(&draw(shape, 99, 1.0));
            let mut slopes = vec![0.0; heads_first.len()];
            for (at, slope) in slopes.iter_mut().enumerate() {
                let mut unit = vec![0.0; heads_first.len()];
                unit[at] = 1.0;
                let row = at / width * width..(at / width + 1) * width;
                let moved = turned(&unit, [&cos, &sin], shape, shared);
                *slope = row.map(|i| moved[i] * weights[i]).sum();
                if at > 600 {
                    break;
                }
            }
            let grad: Tensor<Cpu, 4> = Tensor::from_data(found.1[0].clone(), &Default::default());
            let grad = doubles(&grad.swap_dims(1, 2).into_data());
            for (at, (found, expected)) in grad.iter().zip(&slopes).take(600).enumerate() {
                let difference = (found - expected).abs();
                assert!(
                    difference <= 2.0 * f64::from(tolerance),
                    "{what} at {at}: {difference}"
                );
            }
        }
    }
}

#[test]
fn rotations_are_the_formula() {
    on_both!(rotations);
}
