//! Cross-entropy.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor};
use cubecl::wgpu::WgpuDevice;

use super::{Cpu, by_kernel, close, draw, dtypes, leaf, on_both, pass};
use crate::kernels::gpu::{CrossEntropyKernel, Kernel, Plain, float, run};
use crate::ops::cross_entropy::portable;

fn losses<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for (dtype, tolerance) in dtypes(device) {
        for (shape, scale) in [
            ([1, 1], 3.0),
            ([3, 255], 90.0),
            ([5, 257], 2.0),
            ([7, 4100], 9.0),
        ] {
            let what = format!("{dtype:?} {shape:?}");
            let ids: Vec<i64> = (0..shape[0])
                .map(|row| (row * 97 % shape[1]) as i64)
                .collect();
            // What the device holds.
            let drawn = draw(shape, 1, scale);
            let logits: Tensor<B, 2> = leaf(&drawn, dtype, device);
            let stored = logits.clone().inner().cast(DType::F32).into_data();
            let kernel = CrossEntropyKernel::new(&ids);
            let out = by_kernel::<B, _, 1, 1>(kernel, [float(logits.clone())]);
            assert_eq!(out.dtype(), DType::F32);
            let found = pass(out, std::slice::from_ref(&logits));
            let reference: Tensor<Cpu, 2> = leaf(&stored, DType::F32, &Default::default());
            let expected = pass(portable(reference.clone(), &ids), &[reference]);
            close(&found.0, &expected.0, 2e-5, &what);
            close(
                &found.1[0],
                &expected.1[0],
                tolerance,
                &format!("{what}, gradient"),
            );
            // The gradient took the place of what nothing else held.
            let after = logits.inner().cast(DType::F32).into_data();
            close(&after, &stored, 0.0, "what else holds the logits");
        }
    }
}

#[test]
fn cross_entropy_is_the_portable_form() {
    on_both!(losses);
}

/// The gradient of a product that nothing holds is made in the product's place.
fn behind_a_product<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    let (data, weight) = (draw([6, 8], 1, 1.0), draw([8, 300], 2, 1.0));
    let ids = [0, 299, 5, 5, 17, 256];
    let leaves: [Tensor<B, 2>; 2] = [&data, &weight].map(|data| leaf(data, DType::F32, device));
    let logits = leaves[0].clone().matmul(leaves[1].clone());
    let out = by_kernel::<B, _, 1, 1>(CrossEntropyKernel::new(&ids), [float(logits)]);
    let found = pass(out, &leaves);
    let cpu = Default::default();
    let leaves: [Tensor<Cpu, 2>; 2] = [&data, &weight].map(|data| leaf(data, DType::F32, &cpu));
    let logits = leaves[0].clone().matmul(leaves[1].clone());
    let expected = pass(portable(logits, &ids), &leaves);
    close(&found.0, &expected.0, 2e-5, "losses");
    for (found, expected) in found.1.iter().zip(&expected.1) {
        close(found, expected, 2e-5, "gradient");
    }
}

#[test]
fn cross_entropy_goes_on_into_a_product() {
    on_both!(behind_a_product);
}

#[test]
fn ids_outside_the_vocabulary_are_not_the_kernels() {
    for ids in [[0, 4], [-1, 0]] {
        let logits = Plain::new([2, 4], DType::F32);
        assert!(!CrossEntropyKernel::new(&ids).accepts(&[logits]));
    }
    let logits = Tensor::<burn_flex::Flex, 2>::zeros([2, 4], &Default::default());
    assert!(
        run::<burn_flex::Flex, _, 1>(CrossEntropyKernel::new(&[0, 3]), [float(logits)]).is_err()
    );
}
