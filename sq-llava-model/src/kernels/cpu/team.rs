//! Sharing short work: a decoded token has a hundred sections of some microseconds each, a layer of a
//! prompt or a picture a dozen of up to some milliseconds, and waking a sleeping thread costs as much as the
//! short ones and up to a third of all the others.
//!
//! Threads of the pool that have been called stay awake for a while, look for the next section and
//! take pieces of it, as the caller does. Nobody is waited for who has not taken a piece: a thread
//! that comes late or never costs its help alone. One caller at a time has a team; others go through
//! the pool.

use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// How long a thread looks for a section before it goes back to the pool.
const PATIENCE: Duration = Duration::from_micros(400);
/// Parts of the pieces that one thread would have, of those that share memory.
const PARTS: usize = 8;
/// Looks between two questions for the time, and between two offers of the core to others.
const LOOKS: u32 = 256;

/// Calls `f` for every piece below `pieces`, each once, by all threads that have time. From inside
/// the pool its own way: what comes next needs its threads, which start at once there.
pub(super) fn share(pieces: usize, f: &(dyn Fn(usize) + Sync)) {
    if pieces <= 1 || rayon::current_num_threads() == 1 {
        return (0..pieces).for_each(f);
    }
    if rayon::current_thread_index().is_some() {
        return (0..pieces).into_par_iter().for_each(f);
    }
    let free = match TEAM.caller.try_lock() {
        Ok(caller) => Some(caller),
        // A piece panicked; the section was ended all the same.
        Err(TryLockError::Poisoned(caller)) => Some(caller.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    match free {
        Some(_caller) if u32::try_from(pieces).is_ok() => TEAM.section(pieces as u32, f),
        _ => (0..pieces).into_par_iter().for_each(f),
    }
}

/// As [`share`], with an item for every piece.
pub(super) fn share_each<T: Send>(items: &mut [T], f: impl Fn(&mut T) + Sync) {
    share_chunks(items, 1, |_, items| items.iter_mut().for_each(&f));
}

/// As [`share`], with each `size` items, the last maybe fewer, and their number.
pub(super) fn share_chunks<T: Send>(
    items: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let (len, size) = (items.len(), size.max(1));
    let start = Start(items.as_mut_ptr());
    share(len.div_ceil(size), &|piece| {
        let first = piece * size;
        // SAFETY: the items are borrowed alone until all pieces are done, and each piece, other
        // items inside, comes once.
        f(piece, unsafe {
            std::slice::from_raw_parts_mut(start.get().add(first), size.min(len - first))
        });
    });
}

/// As [`share`], with memory that is made once for several pieces.
pub(super) fn share_with<S>(
    pieces: usize,
    new: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize) + Sync,
) {
    let size = pieces.div_ceil(PARTS * rayon::current_num_threads()).max(1);
    share(pieces.div_ceil(size), &|part| {
        let mut space = new();
        for piece in part * size..((part + 1) * size).min(pieces) {
            f(&mut space, piece);
        }
    });
}

/// Where items stand that several threads take, each of them others.
pub(super) struct Start<T>(pub(super) *mut T);

// SAFETY: who uses it promises that an item is used by one thread alone, which may have it.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

/// A line of the cache of its own: what one thread writes often does not slow others' reading.
#[repr(align(128))]
struct Apart<T>(T);

static TEAM: Team = Team::new();

struct Team {
    /// Held by who shares a section.
    caller: Mutex<()>,
    /// Pieces of the section that nobody has taken.
    left: Apart<AtomicU32>,
    /// Pieces of the section that are done.
    done: Apart<AtomicU32>,
    /// Threads that look for sections, or were asked to.
    called: AtomicUsize,
    /// Whether a piece panicked.
    failed: AtomicBool,
    pieces: AtomicU32,
    /// The closure of the section: where a reference to it stands.
    work: AtomicPtr<()>,
}

type Work<'a> = &'a (dyn Fn(usize) + Sync);

impl Team {
    const fn new() -> Self {
        Self {
            caller: Mutex::new(()),
            left: Apart(AtomicU32::new(0)),
            done: Apart(AtomicU32::new(0)),
            called: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            pieces: AtomicU32::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// One section; the caller holds the lock.
    fn section(&'static self, pieces: u32, f: Work<'_>) {
        let work: *const Work<'_> = &f;
        self.work.store(work.cast_mut().cast(), Ordering::Relaxed);
        self.pieces.store(pieces, Ordering::Relaxed);
        self.done.0.store(0, Ordering::Relaxed);
        self.failed.store(false, Ordering::Relaxed);
        self.left.0.store(pieces, Ordering::Release);
        // Whatever happens to a piece of the caller's own, others may still read `f`.
        let ended = Ended(self, pieces);
        // Those that are awake begin meanwhile.
        self.call(pieces as usize);
        while self.take() {}
        drop(ended);
        if self.failed.load(Ordering::Relaxed) {
            panic!("a piece of shared work panicked");
        }
    }

    /// Takes a piece and does it, if there is one.
    fn take(&self) -> bool {
        let left = self.left.0.load(Ordering::Acquire);
        if left == 0 {
            return false;
        }
        let taken =
            self.left
                .0
                .compare_exchange(left, left - 1, Ordering::AcqRel, Ordering::Relaxed);
        if taken.is_ok() {
            let _done = Done(self);
            let pieces = self.pieces.load(Ordering::Relaxed);
            // SAFETY: the exchange took a piece of the section at hand, whose closure had been
            // stored before it; nothing is stored again before this piece is done, and the closure
            // lives until then.
            let work = unsafe { *self.work.load(Ordering::Relaxed).cast::<Work<'_>>() };
            work((pieces - left) as usize);
        }
        true
    }

    /// Asks threads of the pool to help, as many as there are or have something to do beside the
    /// caller.
    fn call(&'static self, pieces: usize) {
        let helpers = rayon::current_num_threads().min(pieces) - 1;
        while self.called.load(Ordering::Relaxed) < helpers {
            self.called.fetch_add(1, Ordering::Relaxed);
            rayon::spawn(move || self.help());
        }
    }

    /// Takes pieces until there have been none for a while.
    fn help(&self) {
        let mut last = Instant::now();
        let mut looks = 0u32;
        loop {
            // The caller says that a piece panicked; the pool would end the program.
            if catch_unwind(AssertUnwindSafe(|| self.take())).unwrap_or(true) {
                looks = 0;
                continue;
            }
            spin_loop();
            looks += 1;
            if !looks.is_multiple_of(LOOKS) {
                continue;
            }
            if looks == LOOKS {
                last = Instant::now();
            } else if last.elapsed() > PATIENCE {
                break;
            }
            std::thread::yield_now();
        }
        self.called.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a piece as done when it is dropped.
struct Done<'a>(&'a Team);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
        self.0.done.0.fetch_add(1, Ordering::Release);
    }
}

/// Waits for the end of the section when it is dropped.
struct Ended<'a>(&'a Team, u32);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let Self(team, pieces) = self;
        if std::thread::panicking() {
            // What nobody has taken is not done any more.
            let left = team.left.0.swap(0, Ordering::AcqRel);
            team.done.0.fetch_add(left, Ordering::Relaxed);
        }
        let mut looks = 0u32;
        while team.done.0.load(Ordering::Acquire) < *pieces {
            spin_loop();
            looks += 1;
            // Who has the last piece may have lost its core.
            if looks.is_multiple_of(LOOKS) {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_and_before_the_end() {
        for round in 0..2000 {
            let pieces = round % 23;
            let counts: Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
            share(pieces, &|piece| {
                counts[piece].fetch_add(1, Ordering::Relaxed);
            });
            let found: Vec<u32> = counts.into_iter().map(AtomicU32::into_inner).collect();
            assert_eq!(found, vec![1; pieces], "round {round}");
        }
    }

    #[test]
    fn every_item_comes_once_in_chunks_and_with_memory() {
        for (len, size) in [(0, 3), (1, 3), (6, 3), (7, 3), (1000, 1), (5, 0)] {
            let mut items = vec![0; len];
            share_chunks(&mut items, size, |chunk, items| {
                for (i, item) in items.iter_mut().enumerate() {
                    *item += 1 + chunk * size.max(1) + i;
                }
            });
            assert_eq!(items, (1..=len).collect::<Vec<_>>(), "{len} by {size}");
            let counts: Vec<AtomicU32> = (0..len).map(|_| AtomicU32::new(0)).collect();
            let made = AtomicUsize::new(0);
            let new = || made.fetch_add(1, Ordering::Relaxed);
            share_with(len, new, |_, piece| {
                counts[piece].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts
                    .iter()
                    .all(|count| count.load(Ordering::Relaxed) == 1)
            );
            assert!(made.into_inner() <= PARTS * rayon::current_num_threads());
        }
    }

    #[test]
    fn callers_at_the_same_time_and_inside_each_other_all_end() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        share(9, &|outer| {
                            share(5, &|inner| {
                                sum.fetch_add(outer * inner, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.into_inner(), 36 * 10);
                    }
                });
            }
        });
    }

    #[test]
    fn a_piece_that_panics_ends_the_section_and_leaves_the_team_whole() {
        for bad in 0..8 {
            let failed = std::panic::catch_unwind(|| {
                share(8, &|piece| {
                    // Long enough that other threads have pieces too.
                    std::thread::sleep(Duration::from_millis(1));
                    assert_ne!(piece, bad);
                });
            });
            assert!(failed.is_err(), "{bad}");
            let sum = AtomicUsize::new(0);
            share(8, &|piece| {
                sum.fetch_add(piece, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 28);
        }
    }
}
