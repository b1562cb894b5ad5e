//! Models that arguments name: paths, or names on the hub, which are downloaded with a bar.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use sq_llava::hub::{Hub, Part};
use sq_llava_model::weights::named_vision_tower;
use sq_llava_train::Recipe;

/// The hub, with a bar on standard error; nothing off a terminal.
pub fn hub() -> Hub {
    let style = "downloading {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = match ProgressStyle::with_template(style) {
        Ok(style) => ProgressBar::new(0).with_style(style),
        Err(_) => ProgressBar::hidden(),
    };
    Hub::from_env().with_progress(Arc::new(move |name, done, total| {
        if done == 0 || bar.length() != Some(total) {
            bar.set_length(total);
            bar.set_message(name.to_string());
        }
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
        }
    }))
}

/// The path of a model.
///
/// # Errors
/// If it is a name that neither cache nor hub know.
pub fn model(given: &Path) -> Result<PathBuf> {
    Ok(hub().locate(given, Part::Model)?)
}

/// The path of a model, if one is given.
///
/// # Errors
/// As [`model`].
pub fn given_model(given: Option<&Path>) -> Result<Option<PathBuf>> {
    given.map(model).transpose()
}

/// The path of a tokenizer, if one is given.
///
/// # Errors
/// As [`model`].
pub fn given_tokenizer(given: Option<&Path>) -> Result<Option<PathBuf>> {
    let locate = |path: &Path| Ok(hub().locate(path, Part::Tokenizer)?);
    given.map(locate).transpose()
}

/// The path of the vision tower that a LLaVA names and neither holds nor has beside it, if it is a
/// name on the hub.
///
/// # Errors
/// As [`model`], or if the LLaVA cannot be read.
pub fn tower_of(llm: &Path) -> Result<Option<PathBuf>> {
    let Some(name) = named_vision_tower(llm)? else {
        return Ok(None);
    };
    let found = hub().look_up()(&name).map_err(|reason| {
        let llm = llm.display();
        anyhow!(
            "{llm}: no vision tower inside the checkpoint; \"mm_vision_tower\" is \"{name}\", \
             {reason}; give its directory with --vision"
        )
    })?;
    if let Some(tower) = &found {
        tracing::info!("the vision tower is {}", tower.display());
    }
    Ok(found)
}

/// Turns the model that a recipe starts from into a path.
///
/// # Errors
/// As [`model`].
pub fn of_recipe(mut recipe: Recipe) -> Result<Recipe> {
    recipe.init_from = given_model(recipe.init_from.as_deref())?;
    Ok(recipe)
}
