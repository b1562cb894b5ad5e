//! Counts what a test's process allocates: a guard for memory and speed without a clock.
//!
//! ```
//! use golden::allocations::{Counting, measure};
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//!
//! let (_, used) = measure(|| vec![0u8; 1000]);
//! assert!(used.bytes >= 1000 && used.peak >= 1000 && used.count >= 1);
//! ```
//!
//! The counters are the process's: such a test stands alone in its file, or allows for others.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
pub struct Counting;

fn taken(size: usize) {
    COUNT.fetch_add(1, Relaxed);
    BYTES.fetch_add(size, Relaxed);
    LARGEST.fetch_max(size, Relaxed);
    let now = NOW.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        NOW.fetch_sub(layout.size(), Relaxed);
        taken(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What some work allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Calls of the allocator.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: usize,
    /// Most bytes that were held at once, beyond those held before.
    pub peak: usize,
    /// Bytes of the largest one.
    pub largest: usize,
}

/// Runs some work and counts. All zero without [`Counting`] as the global allocator.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Used) {
    let now = NOW.load(Relaxed);
    PEAK.store(now, Relaxed);
    LARGEST.store(0, Relaxed);
    let (count, bytes) = (COUNT.load(Relaxed), BYTES.load(Relaxed));
    let value = work();
    let used = Used {
        count: COUNT.load(Relaxed) - count,
        bytes: BYTES.load(Relaxed) - bytes,
        peak: PEAK.load(Relaxed).saturating_sub(now),
        largest: LARGEST.load(Relaxed),
    };
    (value, used)
}
