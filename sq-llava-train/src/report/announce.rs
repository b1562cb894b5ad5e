//! What is said before the first step.

use sq_llava_model::config::SqLlavaConfig;

use crate::data::dataset::StageData;
use crate::data::loader::Plan;
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::step::counts::trainable_counts;
use crate::step::groups::ParamGroup;
use crate::step::schedule::CosineWarmup;

/// Samples that the token count is estimated from.
const ESTIMATE_SAMPLES: usize = 512;

/// Says what will train and how long. `data` are the training data and the validation split's,
/// `plan` the steps and how many of them are done already.
///
/// # Errors
/// If nothing would be learnt, or a sample cannot be used.
pub(crate) fn announce(
    config: &SqLlavaConfig,
    recipe: &Recipe,
    stage: u8,
    (data, valid): (&StageData, Option<&StageData>),
    (plan, done): (&Plan, usize),
    schedule: &CosineWarmup,
    trainable: [usize; 3],
) -> Result<(), TrainError> {
    let settings = recipe.stage(stage);
    let fresh = trainable_counts(config, recipe, stage);
    let rates = [settings.lr_llm, settings.lr_projector, settings.lr_vision];
    for group in ParamGroup::ALL {
        let (count, rate) = (trainable[group.index()], rates[group.index()]);
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
    let estimate = data.estimate(ESTIMATE_SAMPLES)?;
    tracing::info!(
        "stage {stage}: {} samples, {} epochs, {} steps of {} samples, {} of them warm-up; {}{:.0} tokens an epoch, {:.0} of them learnt",
        plan.samples,
        plan.epochs,
        plan.steps(),
        plan.samples_per_step,
        schedule.warmup_steps,
        if estimate.exact { "" } else { "about " },
        estimate.tokens,
        estimate.learnable,
    );
    if done > 0 {
        tracing::info!("stage {stage}: {done} steps are done");
    }
    let mut learnable = vec![("data", estimate.learnable)];
    if let Some(valid) = valid {
        let estimate = valid.estimate(ESTIMATE_SAMPLES)?;
        tracing::info!("stage {stage}: {} samples to validate on", valid.len());
        learnable.push(("validation split", estimate.learnable));
    }
    match learnable.into_iter().find(|(_, tokens)| *tokens == 0.0) {
        None => Ok(()),
        Some((what, _)) => Err(TrainError::Recipe(format!(
            "stage {stage}: no token of the {what} would be learnt with template {}",
            settings.template
        ))),
    }
}
