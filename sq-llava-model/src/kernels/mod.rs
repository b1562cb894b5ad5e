//! What a backend is too slow at: knows tensors and plain numbers, no layer and no model.

pub mod activation;
pub mod adamw;
pub mod blocks;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
pub(crate) mod dropout;
pub(crate) mod finite;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
pub(crate) mod key_span;
#[cfg(any(feature = "cpu", feature = "gpu"))]
pub(crate) mod primitive;

use burn::tensor::backend::Backend;

/// Memory of a GPU, as its allocator counts it for the calling thread. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What tensors hold.
    pub in_use: u64,
    /// What was taken from the device, room for other tensors included. It seldom gets less.
    pub reserved: u64,
}

impl DeviceMemory {
    /// Of a device whose work is done ([`Backend::sync`]); `None` where tensors are in the process's
    /// own memory.
    pub fn of<B: Backend>(device: &B::Device) -> Option<Self> {
        #[cfg(feature = "gpu")]
        if let Some(memory) = gpu::memory::<B>(device) {
            return Some(memory);
        }
        let _ = device;
        None
    }
}

/// Kernels of ours that run on a backend's tensors, in a graph or without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// None: all is Burn's own operations.
    None,
    /// Those of the CPU, on flex.
    Cpu,
    /// Those of GPUs, on CUDA, Vulkan, Metal and WebGPU.
    Gpu,
}

impl Kernels {
    /// Those of a backend.
    pub fn of<B: Backend>() -> Self {
        if blocks::is_native::<B>() {
            return Self::Cpu;
        }
        #[cfg(feature = "gpu")]
        if gpu::has_kernels::<B>() {
            return Self::Gpu;
        }
        Self::None
    }
}
