//! The prototypes of a picture's tokens beside its masks.

use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use sq_llava_data::image::PreparedImage;
use sq_llava_data::masks::MaskFolder;
use sq_llava_eval::prototypes::Agreement;
use sq_llava_model::{Assistant, SqLlava};

/// The tokens of a picture, tile by tile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// The prototype of which each has most.
    pub prototypes: Vec<u32>,
    /// The mask that its patch belongs to; 0 is none.
    pub masks: Vec<u16>,
}

impl Tokens {
    /// Of an open picture and its file of masks.
    ///
    /// # Errors
    /// If the model has no prototypes, or the masks cannot be read or are of another size.
    pub fn of<B: Backend>(
        assistant: &Assistant<B>,
        image: &RgbImage,
        masks: &Path,
    ) -> Result<Self> {
        let grid = assistant.model.config.patch_grid();
        let (Some(grid), Some(processor)) = (grid, &assistant.processor) else {
            bail!("the model has no vision tower");
        };
        let size = (image.height(), image.width());
        let map = MaskFolder::read(masks, size)?;
        let tiles = processor.sources(size, 1);
        let masks = tiles.iter().flat_map(|tile| grid.labels(tile, &map));
        Ok(Self {
            masks: masks.collect(),
            prototypes: first_prototypes(&assistant.model, &processor.prepare(image, 1))?,
        })
    }

    /// How far prototypes are masks; `None` if no token belongs to one.
    pub fn agreement(&self) -> Option<Agreement> {
        let masks = self.masks.iter().map(|mask| u32::from(*mask));
        Agreement::of(self.prototypes.iter().copied().zip(masks))
    }

    /// How far the prototypes of another model part the same picture alike.
    pub fn alike(&self, other: &Self) -> Option<Agreement> {
        // 0 would be no mask.
        let others = other.prototypes.iter().map(|prototype| prototype + 1);
        Agreement::of(self.prototypes.iter().copied().zip(others))
    }
}

fn first_prototypes<B: Backend>(model: &SqLlava<B>, image: &PreparedImage) -> Result<Vec<u32>> {
    let features = model.vision_features(model.prepared_pixels(&[image])?)?;
    let (_, assignment) = model.project_assigned(features);
    let assignment =
        assignment.context("the model has no prototypes, or assigns no token to one")?;
    let first = assignment.argmax(1).into_data();
    Ok(first.iter::<i64>().map(|index| index as u32).collect())
}
