//! What moves δ while a stage trains.

use std::sync::Arc;

use crate::data::dataset::StageData;
use crate::data::deltas::DeltaBoard;
use crate::error::TrainError;
use crate::recipe::AskingRecipe;
use crate::run::state::{STATE, StageProgress};
use crate::step::adaptive::{AdaptiveSettings, AskingState};
use crate::step::report::StepReport;

/// Adaptive asking in the training loop. What it knows is the stage's progress and so in every
/// checkpoint; all nodes know the same.
#[derive(Debug, Clone)]
pub(crate) struct AdaptiveAsking {
    settings: AdaptiveSettings,
    deltas: DeltaBoard,
}

impl AdaptiveAsking {
    /// Begins with the stage, or goes on from its progress, and tells the loader of `data` δ of the
    /// first two intervals. `None` where no δ is measured.
    ///
    /// # Errors
    /// If the progress is not that of a stage with these data.
    pub fn open(
        asking: &AskingRecipe,
        data: &StageData,
        progress: &mut StageProgress,
    ) -> Result<Option<Self>, TrainError> {
        let Some(followed) = &data.followed else {
            return Ok(None);
        };
        let settings = AdaptiveSettings::of(asking);
        let names = followed.sources.names();
        let fault = match &progress.asking {
            Some(state) => state.fault(names, &settings),
            None if progress.step > 0 => Some("it has nothing of adaptive asking".into()),
            None => None,
        };
        if let Some(fault) = fault {
            return Err(TrainError::RunDirectory {
                path: STATE.into(),
                reason: format!("{fault}; go on from another checkpoint, or begin a new run"),
            });
        }
        let state = progress
            .asking
            .get_or_insert_with(|| AskingState::new(names, &settings));
        let opened = Self {
            settings,
            deltas: followed.deltas.clone(),
        };
        let first = progress.step / settings.every;
        for (interval, deltas) in (first..).zip(state.deltas()) {
            opened.deltas.publish(interval, deltas);
        }
        Ok(Some(opened))
    }

    /// Adds what a step has measured, of all nodes, to the progress that counts the step already, and
    /// puts the δ that it was drawn with into its report. Moves δ where an interval ends.
    pub fn after_step(&self, progress: &mut StageProgress, report: &mut StepReport) {
        let Some(state) = &mut progress.asking else {
            return;
        };
        report.deltas = Arc::new(state.by_name());
        state.add(&report.by_source);
        let every = self.settings.every;
        if progress.step.is_multiple_of(every) {
            state.end_interval(&self.settings);
            let [_, next] = state.deltas();
            self.deltas.publish(progress.step / every + 1, next);
        }
    }
}
