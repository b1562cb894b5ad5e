//! AdamW.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use cubecl::wgpu::WgpuDevice;

use super::{Fused, Plain, close, draw};
use crate::kernels::adamw::AdamWStep;
use crate::kernels::gpu::{AdamW, float, launch, tensor};
use crate::ops::adamw::AdamWSteps;

/// Two steps behind each other; what something else holds stays as it was.
fn steps<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    let mut step = AdamWStep {
        rate: 1e-2,
        beta_1: 0.9,
        beta_2: 0.95,
        epsilon: 1e-6,
        weight_decay: 0.1,
        time: 1,
        grad_scale: 0.5,
    };
    let shape = [3, 111];
    let start = draw(shape, 1, 1.0);
    let first: Tensor<B, 2> = Tensor::from_data(start.clone(), device);
    let zeros = || Tensor::<B, 2>::zeros(shape, device);
    let mut held = [first.clone(), zeros(), zeros()];
    let mut expected: Vec<[f64; 3]> = start.iter::<f64>().map(|x| [x, 0.0, 0.0]).collect();
    for time in [1, 2] {
        step.time = time;
        let grad = draw(shape, 10 + time as u64, 3.0);
        let inputs = held.map(float).into_iter();
        let inputs = inputs.chain([float(Tensor::<B, 2>::from_data(grad.clone(), device))]);
        let outputs = launch::<B, _>(&AdamW(step), inputs.collect()).ok();
        let outputs: Vec<_> = outputs
            .expect("the kernel knows these")
            .into_iter()
            .map(tensor)
            .collect();
        held = outputs.try_into().expect("three");
        for (values, grad) in expected.iter_mut().zip(grad.iter::<f64>()) {
            let (g, t) = (grad * 0.5, time as i32);
            let [parameter, mean, square] = values;
            *mean = 0.9 * *mean + 0.1 * g;
            *square = 0.95 * *square + 0.05 * g * g;
            let root = (*square / (1.0 - 0.95f64.powi(t))).sqrt() + 1e-6;
            let delta = *mean / (1.0 - 0.9f64.powi(t)) / root;
            *parameter = *parameter * (1.0 - 1e-2 * 0.1) - 1e-2 * delta;
        }
    }
    for (i, found) in held.into_iter().enumerate() {
        let expected: Vec<f64> = expected.iter().map(|values| values[i]).collect();
        close(
            &found.into_data(),
            &TensorData::new(expected, shape),
            1e-5,
            "after two steps",
        );
    }
    close(
        &first.into_data(),
        &start,
        0.0,
        "what else holds the parameter",
    );
}

#[test]
fn adamw_moves_parameters_and_moments() {
    if let Some(device) = super::device() {
        steps::<Plain>(&device);
        steps::<Fused>(&device);
    }
}

/// What a step alone gives, of tensors of every length around a cube's, in more than one launch,
/// with two sets of numbers among each other.
fn together<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    let step = |rate: f64| AdamWStep {
        rate,
        beta_1: 0.9,
        beta_2: 0.95,
        epsilon: 1e-6,
        weight_decay: 0.1,
        time: 3,
        grad_scale: 0.5,
    };
    let lengths = [
        1, 255, 256, 257, 1000, 3, 512, 2, 70_000, 5, 256, 31, 1, 513,
    ];
    let of = |i: usize| (step([1e-2, 1e-3][i % 3 / 2]), [1, lengths[i]]);
    let inputs = |i: usize| -> [Tensor<B, 2>; 4] {
        let (_, shape) = of(i);
        let draw = |seed, scale| draw(shape, 7 * i as u64 + seed, scale);
        let second = Tensor::from_data(draw(3, 1.0), device).abs();
        let others = [(1, 1.0), (2, 0.5), (4, 3.0)];
        let [parameter, first, grad] =
            others.map(|(seed, scale)| Tensor::from_data(draw(seed, scale), device));
        [parameter, first, second, grad]
    };
    let mut steps = AdamWSteps::<B>::new();
    let held = inputs(3);
    for i in 0..lengths.len() {
        let tensors = if i == 3 { held.clone() } else { inputs(i) };
        assert_eq!(steps.push(of(i).0, tensors), i);
    }
    let mut stepped = steps.apply();
    for i in 0..lengths.len() {
        let [parameter, first, second, grad] = inputs(i);
        let alone = of(i).0.apply(parameter, first, second, grad);
        let found = stepped.take::<2>(i).expect("a result");
        for (found, alone) in found.into_iter().zip(alone) {
            let [found, alone] = [found, alone].map(|t| t.into_data().to_vec::<f32>());
            assert_eq!(found.ok(), alone.ok(), "tensor {i}");
        }
    }
    assert!(stepped.take::<2>(0).is_none(), "each is taken once");
    for (held, before) in held.into_iter().zip(inputs(3)) {
        close(&held.into_data(), &before.into_data(), 0.0, "held");
    }
}

#[test]
fn steps_together_are_those_alone() {
    if let Some(device) = super::device() {
        together::<Plain>(&device);
        together::<Fused>(&device);
    }
}
