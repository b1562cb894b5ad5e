//! How long a run will take.

use std::time::{Duration, Instant};

/// The time that a stage has left, and the stages behind it.
#[derive(Debug, Clone)]
pub struct TimeLeft {
    /// Steps of the stage.
    steps: usize,
    /// Steps that an earlier sitting took.
    done: usize,
    /// Work of the later stages, in steps of this one; `None` where there are none.
    later: Option<f64>,
    /// The end of the first step of this sitting, which is slower than the others.
    start: Option<Instant>,
}

/// What is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Of the stage.
    pub stage: Duration,
    /// Of the whole run, where stages follow.
    pub run: Option<Duration>,
}

impl TimeLeft {
    /// A stage of `steps` steps, `done` of them taken before.
    pub fn new(steps: usize, done: usize, later: Option<f64>) -> Self {
        Self {
            steps,
            done,
            later,
            start: None,
        }
    }

    /// What is left after a step (from 1); `None` after the first of a sitting.
    pub fn after(&mut self, step: usize) -> Option<Left> {
        let start = *self.start.get_or_insert_with(Instant::now);
        self.at(step, start.elapsed())
    }

    /// The same, `elapsed` after the first step of the sitting.
    fn at(&self, step: usize, elapsed: Duration) -> Option<Left> {
        let taken = step.saturating_sub(self.done + 1);
        if taken == 0 {
            return None;
        }
        let each = elapsed.as_secs_f64() / taken as f64;
        let stage = each * self.steps.saturating_sub(step) as f64;
        let run = self.later.map(|later| duration(stage + each * later));
        Some(Left {
            stage: duration(stage),
            run,
        })
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.run {
            None => write!(f, "{} left", clock(self.stage)),
            Some(run) => write!(
                f,
                "{} left, about {} with the next stage",
                clock(self.stage),
                clock(run)
            ),
        }
    }
}

/// Seconds as a time; one that no clock holds is the longest.
pub(crate) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// A time in two units at most.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (5, "5 s"),
            (65, "1 min 05 s"),
            (7322, "2 h 02 min"),
            (266_400, "3 d 02 h"),
        ] {
            assert_eq!(clock(Duration::from_secs(seconds)), text);
        }
        assert_eq!(duration(f64::INFINITY), Duration::MAX);
        assert_eq!(duration(-1.0), Duration::ZERO);
    }

    #[test]
    fn later_stages_count() {
        let left = |later| TimeLeft::new(100, 10, later);
        // Ten steps after the first of the sitting: two seconds each.
        let elapsed = Duration::from_secs(20);
        let seconds = |stage, run: Option<u64>| Left {
            stage: Duration::from_secs(stage),
            run: run.map(Duration::from_secs),
        };
        assert_eq!(left(None).at(21, elapsed), Some(seconds(158, None)));
        assert_eq!(
            left(Some(50.0)).at(21, elapsed),
            Some(seconds(158, Some(258)))
        );
        assert_eq!(left(None).at(100, elapsed).unwrap().stage, Duration::ZERO);
        assert_eq!(left(None).at(11, elapsed), None);
    }
}
