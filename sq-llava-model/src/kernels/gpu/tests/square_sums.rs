//! Sums of squares.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use cubecl::wgpu::WgpuDevice;

use super::{Fused, Plain, draw};
use crate::ops::square_sums::SquareSums;

/// Lengths around a cube's chunk, in more than one launch, in two of three sums; one tensor as a view.
fn sums<B: Backend<Device = WgpuDevice>>(device: &WgpuDevice) {
    let lengths = [
        1, 4095, 4096, 4097, 3, 255, 9000, 31, 2, 70_000, 5, 256, 513, 1, 8192, 7, 100, 12_289,
    ];
    let mut expected = [0.0; 3];
    let mut sums = SquareSums::<B, 3>::new();
    for (i, &length) in lengths.iter().enumerate() {
        let values = draw([2, length], i as u64, 1.0 + i as f32);
        let tensor = Tensor::<B, 2>::from_data(values.clone(), device).transpose();
        let own = values.iter::<f64>().map(|x| x * x).sum::<f64>();
        expected[i % 2 * 2] += own;
        sums.push(i % 2 * 2, tensor);
    }
    let found = sums.finish();
    for (found, expected) in found.into_iter().zip(expected) {
        assert!(
            (found - expected).abs() <= 1e-5 * expected,
            "{found} for {expected}"
        );
    }
}

#[test]
fn squares_of_many_tensors_are_summed_by_group() {
    if let Some(device) = super::device() {
        sums::<Plain>(&device);
        sums::<Fused>(&device);
    }
    assert_eq!(SquareSums::<Plain, 2>::new().finish(), [0.0; 2]);
}
