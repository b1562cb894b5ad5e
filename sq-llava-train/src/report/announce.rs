//! What is said before the first step.

use sq_llava_model::config::SqLlavaConfig;

use crate::data::dataset::StageData;
use crate::data::loader::Plan;
use crate::data::padding::PaddingShare;
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::step::counts::trainable_counts;
use crate::step::groups::ParamGroup;

/// Samples that the token count is estimated from.
const ESTIMATE_SAMPLES: usize = 512;

/// What will train, and how long.
pub(crate) struct StageAnnouncement<'a> {
    pub config: &'a SqLlavaConfig,
    pub recipe: &'a Recipe,
    /// 1 or 2.
    pub stage: u8,
    /// What it trains on.
    pub data: &'a StageData,
    /// What it is validated on.
    pub validation: Option<&'a StageData>,
    pub plan: Plan,
    /// Steps that a resumed run has taken already.
    pub steps_done: usize,
    pub warmup_steps: usize,
    /// Trainable values of each group.
    pub trainable: [usize; 3],
}

impl StageAnnouncement<'_> {
    /// Says it.
    ///
    /// # Errors
    /// If nothing would be learnt, or a sample cannot be used.
    pub fn say(&self) -> Result<(), TrainError> {
        self.say_trainable();
        self.say_asking();
        let learnable = self.say_data()?;
        self.say_padding()?;
        self.say_masks()?;
        let Some((what, _)) = learnable.into_iter().find(|(_, tokens)| *tokens == 0.0) else {
            return Ok(());
        };
        let stage = self.stage;
        Err(TrainError::Recipe(format!(
            "stage {stage}: no token of the {what} would be learnt with template {}",
            self.recipe.stage(stage).template
        )))
    }

    fn say_trainable(&self) {
        let stage = self.stage;
        let settings = self.recipe.stage(stage);
        let fresh = trainable_counts(self.config, self.recipe, stage);
        let rates = [settings.lr_llm, settings.lr_projector, settings.lr_vision];
        for group in ParamGroup::ALL {
            let (count, rate) = (self.trainable[group.index()], rates[group.index()]);
            tracing::info!(
                "stage {stage}: {} trains {count} parameters at rate {rate:e}",
                group.name()
            );
            if count != fresh[group.index()] {
                // Adapters that were loaded keep their own rank.
                tracing::info!(
                    "stage {stage}: by the recipe alone {} would train {} parameters",
                    group.name(),
                    fresh[group.index()]
                );
            }
        }
    }

    /// What moves δ.
    fn say_asking(&self) {
        let (stage, asking) = (self.stage, &self.recipe.asking);
        let Some(followed) = &self.data.followed else {
            return;
        };
        let names = followed.sources.names();
        if names.is_empty() {
            tracing::warn!(
                "stage {stage}: adaptive asking has no data source to follow: samples have no picture, or \
                 their sources have a constant in asking.sources"
            );
            return;
        }
        // The first interval is where they start; the second moves the fourth.
        let moves = followed.every.saturating_mul(3);
        tracing::info!(
            "stage {stage}: asking starts at {} and follows the losses of {} data sources ({}) every {} \
             steps, from step {} on, between {} and {}",
            asking.delta,
            names.len(),
            names.join(", "),
            followed.every,
            moves.saturating_add(1),
            asking.delta_min,
            asking.delta_max,
        );
        if moves >= self.plan.steps() {
            tracing::warn!(
                "stage {stage}: its {} steps end before adaptive asking moves: lower asking.every below {}",
                self.plan.steps(),
                self.plan.steps().div_ceil(3).max(1)
            );
        }
    }

    /// Returns about how many tokens of each part of the data are learnt.
    fn say_data(&self) -> Result<Vec<(&'static str, f64)>, TrainError> {
        let (stage, plan) = (self.stage, self.plan);
        let estimate = self.data.estimate(ESTIMATE_SAMPLES)?;
        tracing::info!(
            "stage {stage}: {} samples, {} epochs, {} steps of {} samples, {} of them warm-up; {}{:.0} tokens an epoch, {:.0} of them learnt",
            plan.samples,
            plan.epochs,
            plan.steps(),
            plan.samples_per_step,
            self.warmup_steps,
            if estimate.exact { "" } else { "about " },
            estimate.tokens,
            estimate.learnable,
        );
        if self.steps_done > 0 {
            tracing::info!("stage {stage}: {} steps are done", self.steps_done);
        }
        let mut learnable = vec![("data", estimate.learnable)];
        if let Some(validation) = self.validation {
            let estimate = validation.estimate(ESTIMATE_SAMPLES)?;
            let samples = validation.len();
            tracing::info!("stage {stage}: {samples} samples to validate on");
            learnable.push(("validation split", estimate.learnable));
        }
        Ok(learnable)
    }

    /// How many pictures have masks.
    fn say_masks(&self) -> Result<(), TrainError> {
        let Some(masks) = &self.data.masks else {
            return Ok(());
        };
        let found = self.data.count_masks(masks, ESTIMATE_SAMPLES)?;
        let (stage, settings) = (self.stage, self.recipe.stage(self.stage));
        let looked = match found.exact {
            true => "",
            false => " that were looked at",
        };
        tracing::info!(
            "stage {stage}: {} of {} pictures{looked} have masks",
            found.masked,
            found.pictures
        );
        if found.pictures > 0 && found.masked == 0 {
            let reason = format!(
                "model.masks.folder is {}, but none of the pictures has a file there: the masks of \
                 a/b.jpg are a/b.png or a/b.json",
                masks.folder.path().display()
            );
            if found.exact {
                return Err(TrainError::Recipe(reason));
            }
            tracing::warn!("stage {stage}: {reason}");
        }
        let prototypes = settings.lr_projector > 0.0 && !settings.freeze_projector;
        if !prototypes && self.trainable[ParamGroup::Vision.index()] == 0 {
            tracing::info!(
                "stage {stage}: neither prototypes nor vision tower train, so that masks are measured \
                 alone"
            );
        }
        Ok(())
    }

    /// How much of the batches is padding, and what packing makes of it.
    fn say_padding(&self) -> Result<(), TrainError> {
        let stage = self.stage;
        let settings = self.recipe.stage(stage);
        let share =
            PaddingShare::estimate(self.data, self.plan, settings.max_length, ESTIMATE_SAMPLES)?;
        let about = if share.exact { "" } else { "about " };
        let (padded, packed) = (100.0 * share.padded, 100.0 * share.packed);
        match settings.packing {
            true => tracing::info!(
                "stage {stage}: {about}{packed:.1} % of the tokens in the batches are padding; without packing {padded:.1} %"
            ),
            false => tracing::info!(
                "stage {stage}: {about}{padded:.1} % of the tokens in the batches are padding; with stage{stage}.packing = true {packed:.1} %"
            ),
        }
        Ok(())
    }
}
