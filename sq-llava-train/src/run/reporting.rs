//! What a stage tells beside its logs and metrics: the time left, samples, the page.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::Backend;
use sq_llava_model::SqLlava;

use crate::error::TrainError;
use crate::report::notes::{Notes, Topic};
use crate::report::page::{PAGE, Page, Status, write_page};
use crate::report::samples::SampleLog;
use crate::report::time_left::TimeLeft;
use crate::run::sampling::Samples;
use crate::run::state::{StageOutcome, StageProgress};
use crate::step::report::StepReport;

/// What a stage tells.
#[derive(Debug)]
pub(crate) struct Reporting {
    /// 1 or 2.
    pub stage: u8,
    /// Its optimizer steps.
    pub steps: usize,
    /// The run directory.
    pub run: PathBuf,
    /// What is said in words.
    pub notes: Notes,
    /// How long it will take.
    pub time: Mutex<TimeLeft>,
    /// What the model is shown; `None` for nothing.
    pub samples: Option<(Samples, Mutex<SampleLog>)>,
    /// When the page was written.
    pub page: Mutex<Page>,
}

impl Reporting {
    /// Says how long it will take after a step.
    pub fn time_left(&self, step: usize) {
        if let Some(left) = held(&self.time).after(step) {
            self.notes.set(Topic::TimeLeft, left.to_string());
        }
    }

    /// Shows the pictures to a model where it is time to. What it cannot say is told, and the
    /// training goes on.
    ///
    /// # Errors
    /// If what it says cannot be written.
    pub fn samples<B: Backend>(
        &self,
        progress: &StageProgress,
        model: impl FnOnce() -> SqLlava<B>,
    ) -> Result<(), TrainError> {
        let Some((samples, log)) = &self.samples else {
            return Ok(());
        };
        let step = progress.step;
        if !samples.due(step, progress.complete) {
            return Ok(());
        }
        let said = match samples.ask(model(), step) {
            Ok(said) => said,
            Err(error) => {
                let stage = self.stage;
                tracing::warn!("stage {stage}: no samples after step {step}: {error}");
                return Ok(());
            }
        };
        held(log).write(&said)?;
        let mut texts = Vec::with_capacity(said.len());
        for (line, _) in &said {
            let lines = line.lines();
            for text in &lines {
                let picture = &line.picture;
                let stage = self.stage;
                self.notes.add_line(format!(
                    "stage {stage} step {step} sample {picture}: {text}"
                ));
            }
            texts.push(lines.join(" | "));
        }
        self.notes.set(Topic::Samples, texts.join(" || "));
        Ok(())
    }

    /// Writes the page where it is time to, or `wanted`.
    ///
    /// # Errors
    /// If a log cannot be read or the page not written.
    pub fn page(
        &self,
        progress: &StageProgress,
        report: &StepReport,
        wanted: bool,
    ) -> Result<(), TrainError> {
        let mut facts = vec![
            ("step", format!("{} of {}", progress.step, self.steps)),
            ("loss", format!("{:.4}", report.loss)),
            (
                "tokens per second",
                format!("{:.0}", report.per_second(report.tokens)),
            ),
        ];
        if let Some(best) = progress.best {
            let text = format!("{:.4} at step {}", best.loss, best.step);
            facts.push(("best validation", text));
        }
        for (topic, name) in [
            (Topic::TimeLeft, "time"),
            (Topic::Checkpoint, "last checkpoint"),
        ] {
            let text = self.notes.last(topic);
            if !text.is_empty() {
                facts.push((name, text));
            }
        }
        let status = Status {
            state: format!("training, stage {}", self.stage),
            goes_on: true,
            done: progress.step as f64 / self.steps.max(1) as f64,
            facts,
        };
        held(&self.page).update(&self.run, &status, wanted)
    }
}

/// Writes the page of a run that goes on no longer; nothing where it has none.
///
/// # Errors
/// As [`write_page`].
pub(crate) fn last_page(
    run: &std::path::Path,
    state: String,
    stages: &[StageOutcome],
) -> Result<(), TrainError> {
    if !run.join(PAGE).is_file() {
        return Ok(());
    }
    let mut facts = Vec::new();
    for outcome in stages {
        let (steps, loss) = match outcome.stage {
            1 => ("steps of stage 1", "its last loss"),
            _ => ("steps of stage 2", "its last loss"),
        };
        facts.push((steps, outcome.steps.to_string()));
        if let Some(last) = outcome.loss {
            facts.push((loss, format!("{last:.4}")));
        }
        if let Some(best) = outcome.best {
            let text = format!("{:.4} at step {}", best.loss, best.step);
            facts.push(("its best validation", text));
        }
    }
    let status = Status {
        state,
        goes_on: false,
        done: 1.0,
        facts,
    };
    write_page(run, &status)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
