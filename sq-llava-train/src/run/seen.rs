//! How the pictures of a base were seen, which a recipe that says nothing of it follows.

use std::path::Path;

use sq_llava_data::image::ImageProcessorConfig;
use sq_llava_model::SqLlavaConfig;

use super::base::{Origin, TrainPaths, origin};
use crate::error::TrainError;
use crate::recipe::Recipe;

/// The recipe with `model.image_aspect_ratio` said: its own; else that of the run or LLaVA whose
/// projector it starts from; else the published one.
///
/// # Errors
/// If a configuration cannot be read.
pub(super) fn as_seen(mut recipe: Recipe, paths: &TrainPaths) -> Result<Recipe, TrainError> {
    // A run that goes on has it in its recipe, and need not have what it began with.
    if recipe.model.image_aspect_ratio.is_some() {
        return Ok(recipe);
    }
    let aspect = match origin(&recipe, paths)? {
        Origin::Base => seen_by(&paths.llm)?,
        Origin::Run(run) => seen_by(&run)?,
        Origin::Fresh | Origin::Projector(_) => Recipe::IMAGE_ASPECT_RATIO.to_owned(),
    };
    recipe.model.image_aspect_ratio = Some(aspect);
    Ok(recipe)
}

/// What the model in a directory says, or, where it leaves that to its processor, that one.
fn seen_by(dir: &Path) -> Result<String, TrainError> {
    // What else the file holds is judged when the model is loaded.
    let config = SqLlavaConfig::from_hf(&dir.join("config.json"), true)?;
    if let Some(own) = config.image_aspect_ratio {
        return Ok(own);
    }
    if ImageProcessorConfig::is_in(dir) {
        return Ok(ImageProcessorConfig::read_dir(dir)?.aspect_name());
    }
    Ok(Recipe::IMAGE_ASPECT_RATIO.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recipe of a run that goes on says it; what the run began with may be gone.
    #[test]
    fn where_the_recipe_says_it_nothing_is_looked_at() {
        let paths = TrainPaths {
            projector: Some("moved".into()),
            ..TrainPaths::default()
        };
        let change = ["model.image_aspect_ratio='crop'".to_owned()];
        let said = Recipe::parse("", &change).unwrap();
        let seen = as_seen(said, &paths).unwrap();
        assert_eq!(seen.model.image_aspect_ratio.as_deref(), Some("crop"));
        let silent = as_seen(Recipe::parse("", &[]).unwrap(), &paths);
        assert!(silent.unwrap_err().to_string().contains("moved"));
    }
}
