//! A batch's pictures: their pixels, and their features where the vision tower is frozen.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use sq_llava_data::image::ImagePacking;
use sq_llava_model::ModelError;
use sq_llava_model::kernels::blocks::is_native;

use crate::data::batch::{MicroBatch, Picture, TrainSample};
use crate::error::TrainError;
use crate::step::whole::TrainModel;

/// A batch's pictures, each once, in order of appearance.
pub(super) struct Pictures<B: Backend, const D: usize> {
    pub pictures: Vec<SeenPicture>,
    /// Pixels or features, a row for each tile; `None` if there are none.
    pub values: Option<Tensor<B, D>>,
}

/// A picture without its pixels.
#[derive(Clone)]
pub(super) struct SeenPicture {
    pub name: Arc<str>,
    pub key: Arc<str>,
    pub packing: ImagePacking,
}

impl From<&Picture> for SeenPicture {
    fn from(picture: &Picture) -> Self {
        Self {
            name: picture.name.clone(),
            key: picture.key.clone(),
            packing: picture.packing,
        }
    }
}

impl<B: Backend> TrainModel<B> {
    /// Pixels of the batch's pictures, each once, in order of appearance.
    pub(super) fn pixels(&self, batch: &MicroBatch) -> Result<Pictures<B, 4>, TrainError> {
        let mut seen: Vec<SeenPicture> = Vec::new();
        let mut pixels: Vec<&[f32]> = Vec::new();
        for (sample, picture) in pictures(batch) {
            if seen.iter().any(|one| one.key == picture.key) {
                continue;
            }
            let Some(values) = &picture.pixels else {
                return Err(missing(sample, &picture.name));
            };
            seen.push(picture.into());
            pixels.extend(tiles_of(values, &picture.packing));
        }
        let values = match pixels.is_empty() {
            true => None,
            false => Some(self.model.pixels(&pixels)?),
        };
        Ok(Pictures {
            pictures: seen,
            values,
        })
    }

    /// Features of a frozen tower, those known from before and new ones, which `see` makes of
    /// pixels of tiles; on the CPU of each picture by itself, so that its features do not depend on which
    /// others were known. `[tiles, tokens, d]`
    pub(super) fn frozen_features(
        &self,
        batch: &MicroBatch,
        mut see: impl FnMut(&[&[f32]]) -> Result<Vec<f32>, ModelError>,
    ) -> Result<Pictures<B, 3>, TrainError> {
        let cache = &self.context.features;
        let mut found: HashMap<Arc<str>, Arc<[f32]>> = HashMap::new();
        let mut seen: Vec<SeenPicture> = Vec::new();
        let mut fresh: Vec<SeenPicture> = Vec::new();
        let mut pixels: Vec<&[f32]> = Vec::new();
        for (sample, picture) in pictures(batch) {
            if seen.iter().any(|one| one.key == picture.key) {
                continue;
            }
            seen.push(picture.into());
            match (cache.get(&picture.key), &picture.pixels) {
                (Some(features), _) => {
                    found.insert(picture.key.clone(), features);
                }
                (None, Some(values)) => {
                    fresh.push(picture.into());
                    pixels.extend(tiles_of(values, &picture.packing));
                }
                (None, None) => return Err(missing(sample, &picture.name)),
            }
        }
        let tiles: usize = seen.iter().map(|one| one.packing.tiles()).sum();
        if tiles == 0 {
            return Ok(Pictures {
                pictures: seen,
                values: None,
            });
        }
        if !pixels.is_empty() {
            let values = match is_native::<B>() {
                true => {
                    let mut rest = &pixels[..];
                    let mut all = Vec::new();
                    for picture in &fresh {
                        let (own, behind) = rest.split_at(picture.packing.tiles());
                        all.extend(see(own)?);
                        rest = behind;
                    }
                    all
                }
                false => see(&pixels)?,
            };
            let each = values.len() / pixels.len();
            let mut rest = &values[..];
            for picture in fresh {
                let (own, behind) = rest.split_at(each * picture.packing.tiles());
                let features: Arc<[f32]> = own.into();
                cache.insert(&picture.key, &features);
                found.insert(picture.key, features);
                rest = behind;
            }
        }
        let tokens = self.model.config.tokens_per_image().max(1);
        let own = seen.iter().filter_map(|one| found.get(&one.key));
        let all: Vec<f32> = own.flat_map(|features| features.iter().copied()).collect();
        let width = all.len() / (tiles * tokens);
        let data = TensorData::new(all, [tiles, tokens, width]);
        let features = Tensor::from_data(data, (&self.model.device(), DType::F32));
        Ok(Pictures {
            pictures: seen,
            values: Some(features),
        })
    }
}

pub(super) fn pictures(batch: &MicroBatch) -> impl Iterator<Item = (&TrainSample, &Picture)> {
    batch
        .samples
        .iter()
        .flat_map(|sample| sample.pictures.iter().map(move |picture| (sample, picture)))
}

/// The pixels of each tile of a picture.
fn tiles_of<'a>(pixels: &'a [f32], packing: &ImagePacking) -> impl Iterator<Item = &'a [f32]> {
    let each = pixels.len() / packing.tiles().max(1);
    pixels.chunks_exact(each.max(1))
}

fn missing(sample: &TrainSample, name: &str) -> TrainError {
    TrainError::Sample {
        sample: sample.id.to_string(),
        reason: format!("the picture {name} was not read"),
    }
}
