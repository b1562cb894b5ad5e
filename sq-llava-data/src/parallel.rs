//! Work on a number of threads that the caller chooses.

use crate::DataError;

/// Runs `work` on a pool of `threads` threads, which rayon's parallel iterators inside it use. A
/// panic of any of them continues in the caller.
///
/// # Errors
/// As `work`, or if the threads cannot be started.
pub(crate) fn on_threads<T: Send>(
    threads: usize,
    work: impl FnOnce() -> Result<T, DataError> + Send,
) -> Result<T, DataError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build()
        .map_err(|error| DataError::Threads {
            threads,
            reason: error.to_string(),
        })?;
    pool.install(work)
}

/// Threads that the machine runs at once.
pub fn machine_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn every_number_is_worked_on_once_and_in_order() {
        for (count, threads) in [(0, 3), (1, 4), (7, 2), (1000, 3), (10_000, 1), (5, 0)] {
            let seen: Vec<usize> = on_threads(threads, || {
                assert_eq!(rayon::current_num_threads(), threads.max(1));
                (0..count).into_par_iter().map(Ok).collect()
            })
            .unwrap();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        let done = AtomicUsize::new(0);
        let work = |index: usize| {
            done.fetch_add(1, Ordering::Relaxed);
            match index < 100 {
                true => Ok(()),
                false => Err(DataError::UnknownTemplate(index.to_string())),
            }
        };
        let ended = on_threads(2, || (0..1_000_000).into_par_iter().try_for_each(work));
        assert!(ended.is_err() && done.into_inner() < 100_000);
    }
}
