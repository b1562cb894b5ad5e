//! The same work for every number of a range, on several threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Most numbers that a thread takes at a time.
const CHUNK: usize = 64;

/// Calls `work` once for each number below `count`, in no order, from `threads` threads. Each
/// thread folds what it finds into a state of its own, made by `start`; all states are returned.
/// A `work` that gives `false` ends the whole before its time.
pub(crate) fn fold<T: Send>(
    count: usize,
    threads: usize,
    start: impl Fn() -> T + Sync,
    work: impl Fn(&mut T, usize) -> bool + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let threads = threads.clamp(1, count.max(1));
    // Little enough that all threads end at about the same time.
    let chunk = (count / (threads * 8)).clamp(1, CHUNK);
    let run = || {
        let mut state = start();
        loop {
            let first = next.fetch_add(chunk, Ordering::Relaxed);
            if first >= count {
                return state;
            }
            for index in first..(first + chunk).min(count) {
                if !work(&mut state, index) {
                    next.store(count, Ordering::Relaxed);
                    return state;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut states = vec![run()];
        for thread in others {
            match thread.join() {
                Ok(state) => states.push(state),
                // What went wrong there goes on here.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        states
    })
}

/// Threads that the machine runs at once.
pub fn machine_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_worked_on_once() {
        for (count, threads) in [(0, 3), (1, 4), (7, 2), (1000, 3), (10_000, 1)] {
            let parts = fold(count, threads, Vec::new, |seen, index| {
                seen.push(index);
                true
            });
            let mut seen = parts.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_refusal_ends_the_work() {
        let parts = fold(
            1_000_000,
            2,
            || 0usize,
            |done, index| {
                *done += 1;
                index < 100
            },
        );
        assert!(parts.iter().sum::<usize>() < 100_000);
    }
}
