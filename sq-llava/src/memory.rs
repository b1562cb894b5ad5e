//! What memory a command takes: the process's, and the device's where tensors are there.

use burn::tensor::backend::Backend;
use sq_llava_model::kernels::DeviceMemory;
use sq_llava_train::report::resident::{proc_bytes, resident_bytes};
use sq_llava_train::step::memory::gib;

/// Most that the process has held, in bytes, where the system says.
fn peak() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmHWM:")
}

/// Most that the process has held and what was taken of the device, for people.
pub fn memory_taken<B: Backend>(device: &B::Device) -> String {
    let in_gib = |bytes: u64| format!("{:.2} GiB", gib(bytes as usize));
    let peak = peak().map_or("not known".into(), in_gib);
    match DeviceMemory::of::<B>(device) {
        Some(memory) => format!("peak memory {peak}, device {}", in_gib(memory.reserved)),
        None => format!("peak memory {peak}"),
    }
}

/// Memory in use at a moment, from which its growth is counted.
pub enum MemoryBefore {
    /// Of the device.
    Device(u64),
    /// Of the process, where the system says.
    Process(Option<u64>),
}

impl MemoryBefore {
    /// Now, when the device's work is done. What was given back before does not count.
    pub fn now<B: Backend>(device: &B::Device) -> Self {
        let resident = || {
            std::fs::write("/proc/self/clear_refs", "5").ok()?;
            resident_bytes()
        };
        B::memory_cleanup(device);
        match DeviceMemory::of::<B>(device) {
            Some(memory) => Self::Device(memory.reserved),
            None => Self::Process(resident()),
        }
    }

    /// Most that there has been since then, less that; the device's work is done.
    pub fn growth<B: Backend>(&self, device: &B::Device) -> Option<u64> {
        let (most, before) = match *self {
            Self::Device(before) => (DeviceMemory::of::<B>(device)?.reserved, before),
            Self::Process(before) => (peak()?, before?),
        };
        Some(most.saturating_sub(before))
    }
}
