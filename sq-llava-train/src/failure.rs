//! Where a part that cannot return an error leaves it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::TrainError;

/// The first error of a run. Burn's traits for data loaders, steps and optimizers return no
/// errors; the training loop looks here after each of them.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<TrainError>>>);

impl Failure {
    /// Leaves an error; the first one stays.
    pub fn set(&self, error: TrainError) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
    }

    /// Takes the error away.
    pub fn take(&self) -> Option<TrainError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }
}
