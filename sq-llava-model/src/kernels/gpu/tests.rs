//! Kernels on a Vulkan device, software ones included, against the portable form on the CPU:
//! forward and backward, with burn-fusion and without, in f32 and in f16 where the device has it.
//! Without a driver the tests say so and do nothing.
#![allow(clippy::print_stderr)] // A skipped test says so.

mod adamw;
mod attention;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda_source;
mod decode;
mod elements;
mod likeliest;
mod matmul;
mod norm;
#[cfg(feature = "cuda")]
mod nvrtc;
#[cfg(feature = "cuda")]
mod paper;
mod product;
mod square_sums;

use std::sync::OnceLock;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend, BackendTypes};
use burn::tensor::{DType, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_flex::Flex;
use burn_fusion::Fusion;
use cubecl::Runtime;
use cubecl::wgpu::{GraphicsApi, Vulkan, WgpuDevice, WgpuRuntime, init_setup};
use sq_llava_data::mix::splitmix64;

use super::{Kernel, run, tensor};

type Plain = CubeBackend<WgpuRuntime, f32, i32, u8>;
type Fused = Fusion<Plain>;

/// The first Vulkan device; `None`, with a message, if there is none.
fn device() -> Option<WgpuDevice> {
    static DEVICE: OnceLock<Option<WgpuDevice>> = OnceLock::new();
    let found = DEVICE.get_or_init(|| {
        let ids = WgpuRuntime::enumerate_all_devices(&Vulkan::backend());
        let device = match ids.first()?.type_id {
            0 => WgpuDevice::DiscreteGpu(0),
            1 => WgpuDevice::IntegratedGpu(0),
            2 => WgpuDevice::VirtualGpu(0),
            _ => WgpuDevice::Cpu,
        };
        init_setup::<Vulkan>(&device, Default::default());
        Some(device)
    });
    if found.is_none() {
        eprintln!("skipped: no Vulkan driver is installed");
    }
    found.clone()
}

/// Numbers between −`scale` and `scale` that depend on the seed.
fn draw<const D: usize>(shape: [usize; D], seed: u64, scale: f32) -> TensorData {
    let mut state = splitmix64(seed);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = splitmix64(state);
            scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect();
    TensorData::new(values, shape)
}

/// The largest difference, in units of the largest expected value (of 1e-3 if all are smaller).
fn close(found: &TensorData, expected: &TensorData, tolerance: f32, what: &str) {
    assert_eq!(found.shape, expected.shape, "{what}");
    let expected: Vec<f32> = expected.iter().collect();
    let size = expected.iter().fold(1e-3f32, |a, b: &f32| a.max(b.abs()));
    let worst = found.iter::<f32>().zip(&expected).map(|(f, e)| {
        assert!(f.is_finite(), "{what}: {f} where {e} was expected");
        (f - e).abs()
    });
    let difference = worst.fold(0.0, f32::max) / size;
    assert!(difference <= tolerance, "{what}: {difference:e}");
}

/// The kernel itself; a test that fell back would compare the portable form with itself.
fn by_kernel<B: Backend, K: Kernel<N>, const N: usize, const D: usize>(
    kernel: K,
    inputs: [<B as BackendTypes>::FloatTensorPrimitive; N],
) -> Tensor<B, D> {
    match run::<B, K, N>(kernel, inputs) {
        Ok(output) => tensor(output),
        Err(_) => panic!("the kernel does not take these inputs"),
    }
}

/// A leaf of the graph in a dtype.
fn leaf<B: AutodiffBackend, const D: usize>(
    data: &TensorData,
    dtype: DType,
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(data.clone(), (device, dtype)).require_grad()
}

/// The result and the gradients of `leaves` of `Σ out · weights` with weights that differ.
fn pass<B: AutodiffBackend, const D: usize, const E: usize>(
    out: Tensor<B, D>,
    leaves: &[Tensor<B, E>],
) -> (TensorData, Vec<TensorData>) {
    let weights = draw(out.dims(), 99, 1.0);
    let weights = Tensor::<B, D>::from_data(weights, (&out.device(), out.dtype()));
    let grads = (out.clone() * weights).sum().backward();
    let found = leaves.iter().map(|leaf| match leaf.grad(&grads) {
        Some(grad) => grad.cast(DType::F32).into_data(),
        None => panic!("a leaf has no gradient"),
    });
    let found = found.collect();
    (out.inner().cast(DType::F32).into_data(), found)
}

/// Dtypes that the device stores, each with what one rounding of it may change.
fn dtypes(device: &WgpuDevice) -> Vec<(DType, f32)> {
    let all = [(DType::F32, 2e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)];
    let known = |(dtype, _): &(DType, f32)| Plain::supports_dtype(device, *dtype);
    all.into_iter().filter(known).collect()
}

/// Compares on both backends of the device.
macro_rules! on_both {
    ($check:ident) => {
        if let Some(device) = super::device() {
            $check::<burn::backend::Autodiff<super::Plain>>(&device);
            $check::<burn::backend::Autodiff<super::Fused>>(&device);
        }
    };
}
pub(super) use on_both;

/// Reference.
type Cpu = Autodiff<Flex>;
