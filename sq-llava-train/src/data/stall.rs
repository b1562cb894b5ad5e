//! Says what the training waits for when its data do not come.

use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a thread works at, and since when; shared by all clones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Activity(Arc<Mutex<Option<(String, Instant)>>>);

impl Activity {
    /// Something begins.
    pub fn begin(&self, what: String) {
        self.set(Some((what, Instant::now())));
    }

    /// Nothing is under way.
    pub fn end(&self) {
        self.set(None);
    }

    fn set(&self, what: Option<(String, Instant)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn text(&self) -> String {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((what, since)) => {
                format!("{what} (for {:.1} s)", since.elapsed().as_secs_f64())
            }
            None => "between two samples".into(),
        }
    }
}

/// Waits for what a thread sends, and says each time that the wait has doubled, from `patience` on,
/// what that thread works at.
///
/// # Errors
/// If the thread ended.
pub(crate) fn wait<T>(
    receiver: &Receiver<T>,
    thread: usize,
    activity: &Activity,
    patience: Duration,
) -> Result<T, RecvError> {
    let start = Instant::now();
    let mut next = patience;
    loop {
        match receiver.recv_timeout(next.saturating_sub(start.elapsed())) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!(
                    "the training has waited {:.1} s for its data: loader {thread} is at {}; is the \
                     disk or the network too slow, or gone?",
                    start.elapsed().as_secs_f64(),
                    activity.text()
                );
                next = next.saturating_mul(2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_comes_late_comes_all_the_same() {
        let (sender, receiver) = channel();
        let activity = Activity::default();
        activity.begin("sample a".into());
        assert!(activity.text().starts_with("sample a (for "));
        activity.end();
        assert_eq!(activity.text(), "between two samples");
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            sender.send(7)
        });
        let patience = Duration::from_millis(1);
        let waited = |receiver| wait(receiver, 0, &activity, patience);
        assert_eq!(waited(&receiver), Ok(7));
        thread.join().unwrap().unwrap();
        assert_eq!(waited(&receiver), Err(RecvError));
    }
}
