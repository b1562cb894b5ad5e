//! Memory, as Linux and GPUs' allocators tell it.

use burn::tensor::backend::Backend;
use sq_llava_model::kernels::DeviceMemory;

/// A line of a `/proc` file in bytes, such as `VmRSS:` of `/proc/self/status`; `None` where the
/// system has no such file or line.
pub fn proc_bytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Memory of the machine, in bytes; `None` where the system does not say.
pub fn machine_bytes() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemTotal:")
}

/// Memory that the process holds now, in bytes.
pub fn resident_bytes() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmRSS:")
}

/// Memory that training holds, in bytes: what was taken of the device where one trains and it is a
/// GPU, else the process's.
pub(crate) fn held_bytes<B: Backend>(one: Option<&B::Device>) -> Option<u64> {
    match one.and_then(DeviceMemory::of::<B>) {
        Some(memory) => Some(memory.reserved),
        None => resident_bytes(),
    }
}
