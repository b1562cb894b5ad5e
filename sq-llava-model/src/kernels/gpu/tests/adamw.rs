//! AdamW.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use cubecl::wgpu::WgpuDevice;

use super::{Fused, Plain, close, draw};
use crate::kernels::adamw::AdamWStep;
use crate::kernels::gpu::{AdamW, float, launch, tensor};

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
