//! RMSNorm.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};
use cubecl::wgpu::WgpuDevice;

use super::{Cpu, by_kernel, close, draw, dtypes, leaf, on_both, pass};
use crate::kernels::gpu::{RmsNormKernel, float};
use crate::ops::norm::rms_norm;

/// Rows that fill neither cubes nor chunks.
const SHAPES: [[usize; 2]; 4] = [[1, 1], [3, 255], [65, 256], [130, 1000]];

const EPS: f64 = 1e-5;

fn expected(x: &TensorData, weight: &TensorData, offset: bool) -> (TensorData, Vec<TensorData>) {
    let device = Default::default();
    let x: Tensor<Cpu, 2> = leaf(x, DType::F32, &device);
    let weight: Tensor<Cpu, 2> = leaf(weight, DType::F32, &device);
    let factor = match offset {
        true => weight.clone() + 1.0,
        false => weight.clone(),
    };
    let out = rms_norm(x.clone(), factor.squeeze_dim(0), EPS);
    pass(out, &[x, weight])
}

fn rows<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, tolerance) in dtypes(device) {
        for shape in SHAPES {
            for offset in [false, true] {
                let (x, weight) = (draw(shape, 1, 3.0), draw([1, shape[1]], 2, 1.0));
                let x_leaf: Tensor<B, 2> = leaf(&x, dtype, device);
                let weight_leaf: Tensor<B, 2> = leaf(&weight, dtype, device);
                let kernel = RmsNormKernel { eps: EPS, offset };
                let vector: Tensor<B, 1> = weight_leaf.clone().squeeze_dim(0);
                let inputs = [float(x_leaf.clone()), float(vector)];
                let out = by_kernel::<B, _, 2, 2>(kernel, inputs);
                assert_eq!(out.dtype(), dtype);
                let found = pass(out, &[x_leaf, weight_leaf]);
                let expected = expected(&x, &weight, offset);
                let what = format!("{dtype:?} {shape:?} {offset}");
                close(&found.0, &expected.0, tolerance, &what);
                for (found, expected) in found.1.iter().zip(&expected.1) {
                    close(
                        found,
                        expected,
                        2.0 * tolerance,
                        &format!("{what}, gradient"),
                    );
                }
            }
        }
    }
}

#[test]
fn rms_norm_is_the_portable_form() {
    on_both!(rows);
}
