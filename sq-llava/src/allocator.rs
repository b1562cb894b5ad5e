//! How the system's allocator treats memory that is freed.

/// Most bytes of a block that is kept when it is freed: larger ones go back to the system, so that
/// loading a model holds one tensor of it twice and no more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = 32 << 20;
/// Bytes of address space that the heap grows by beyond what is needed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GROWTH: i32 = 64 << 20;

/// Lets the process keep what it frees, for its next use.
///
/// glibc gives large blocks back at once, and the system hands each new one out page by page, as
/// zeros: half of the time of preparing a picture, and some of each step of training. Elsewhere
/// nothing is changed. To be called before other threads start.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers of the allocator, which no other thread uses yet. One that it refuses
    // stays as it was: slower, not wrong.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, GROWTH);
    }
}
