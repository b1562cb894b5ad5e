//! δ of adaptive asking on its way from the training loop to the loader's threads.
//!
//! A stage is cut into intervals of optimizer steps. δ of an interval follows from what was measured
//! up to the end of the last but one before it, so the threads have a whole interval to prepare
//! batches ahead, and draw the same questions however far ahead they are.
//!
//! Nobody waits for ever. The loop takes batches in the order of steps; a thread waits, at a step of
//! interval i, for the end of interval i − 2 alone, whose steps all come before its own. So the thread
//! that has the next step to hand over never waits: δ of its interval was published before the step
//! before it ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use sq_llava_data::FollowedSources;

use crate::error::TrainError;

/// How often a thread that waits looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(50);

/// The sources of a stage whose δ is measured, and what it is.
#[derive(Debug, Clone)]
pub struct Followed {
    /// The sources.
    pub sources: FollowedSources,
    /// Optimizer steps of an interval.
    pub every: usize,
    /// δ of each of them.
    pub deltas: DeltaBoard,
}

/// δ of each source in the interval at hand and in the next; shared by all clones.
#[derive(Debug, Clone, Default)]
pub struct DeltaBoard(Arc<Board>);

#[derive(Debug, Default)]
struct Board {
    /// By interval, from 0.
    deltas: Mutex<BTreeMap<usize, Arc<[f64]>>>,
    published: Condvar,
}

impl DeltaBoard {
    /// Tells δ of each source in an interval. No thread is in the one before the last any more.
    pub fn publish(&self, interval: usize, deltas: Arc<[f64]>) {
        let mut board = self.0.deltas.lock().unwrap_or_else(PoisonError::into_inner);
        board.insert(interval, deltas);
        board.retain(|&other, _| other + 1 >= interval);
        self.0.published.notify_all();
    }

    /// δ of each source in an interval, once it is published; `None` where the `listener` that
    /// would take what is made of it is gone.
    ///
    /// # Errors
    /// If the interval is long past.
    pub(crate) fn wait(
        &self,
        interval: usize,
        listener: &Weak<()>,
    ) -> Result<Option<Arc<[f64]>>, TrainError> {
        let mut board = self.0.deltas.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(deltas) = board.get(&interval) {
                return Ok(Some(deltas.clone()));
            }
            if board.keys().any(|&other| other > interval) {
                return Err(TrainError::Internal(format!(
                    "δ of interval {interval} of the stage is no longer known"
                )));
            }
            if listener.strong_count() == 0 {
                return Ok(None);
            }
            let woken = self.0.published.wait_timeout(board, LOOK);
            (board, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_wait_for_what_is_to_come_and_for_nobody() {
        let (board, listener) = (DeltaBoard::default(), Arc::new(()));
        let deltas = |delta: f64| -> Arc<[f64]> { Arc::new([delta]) };
        for interval in [0, 1] {
            board.publish(interval, deltas(0.5));
        }
        let waits = |interval| {
            let (board, listener) = (board.clone(), Arc::downgrade(&listener));
            std::thread::spawn(move || board.wait(interval, &listener).unwrap())
        };
        let third = waits(2);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!third.is_finished());
        board.publish(2, deltas(0.25));
        assert_eq!(third.join().unwrap(), Some(deltas(0.25)));
        assert_eq!(waits(1).join().unwrap(), Some(deltas(0.5)));
        let past = board.wait(0, &Arc::downgrade(&listener)).unwrap_err();
        assert!(past.to_string().contains("interval 0"), "{past}");
        let never = waits(3);
        drop(listener);
        assert_eq!(never.join().unwrap(), None);
    }
}
