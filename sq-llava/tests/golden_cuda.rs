//! The reference checks on CUDA. Without an NVIDIA GPU the tests say so and do nothing.
#![cfg(feature = "cuda")]
#![allow(clippy::print_stderr)] // A skipped test says so.

mod golden_gpu;

use std::path::Path;

use burn_cuda::{Cuda, CudaDevice};

type B = Cuda;
type Device = CudaDevice;

/// The first NVIDIA GPU; `None`, with a message, if there is none. A driver without its NVRTC or
/// headers is a failure: then nothing was checked.
fn device() -> Option<Device> {
    if Path::new("/dev/nvidiactl").exists() {
        return Some(CudaDevice::new(0));
    }
    eprintln!("skipped: no NVIDIA GPU (/dev/nvidiactl is missing)");
    None
}
