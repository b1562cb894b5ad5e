//! The image processor that belongs to a model.

use std::path::Path;

use sq_llava_data::image::ImageProcessorConfig;

use super::SqLlavaConfig;
use crate::error::ModelError;

impl SqLlavaConfig {
    /// The image processor in a folder as this model uses it: the model says how images are laid
    /// over tiles or become square, where its own file says it.
    ///
    /// # Errors
    /// If the file is missing or malformed, or the model and its processor lay images over other
    /// tiles.
    pub fn image_processor(&self, folder: &Path) -> Result<ImageProcessorConfig, ModelError> {
        let mut config = ImageProcessorConfig::read_dir(folder)?;
        match (&self.anyres, config.tiling.take(), &self.image_aspect_ratio) {
            (Some(own), Some(theirs), _) if *own != theirs => Err(ModelError::config(
                folder,
                format!(
                    "the image processor lays pictures over other tiles ({}, {:?}) than the \
                     model's config.json says ({}, {:?}); correct \"image_grid_pinpoints\"",
                    theirs.aspect_name(),
                    theirs.pinpoints,
                    own.aspect_name(),
                    own.pinpoints
                ),
            )),
            (Some(own), _, _) => Ok(config.with_tiling(own.clone())?),
            (None, Some(theirs), None) => Err(ModelError::config(
                folder,
                format!(
                    "the image processor lays pictures over tiles ({}), but the model's \
                     config.json does not say so",
                    theirs.aspect_name()
                ),
            )),
            (None, _, Some(name)) => {
                config.aspect = name.parse()?;
                Ok(config)
            }
            (None, None, None) => Ok(config),
        }
    }
}
