//! From a LLaVA manifest and an image folder to encoded samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use sq_llava_data::image::ImageProcessor;
use sq_llava_data::{
    AskingPolicy, DataError, LabelOptions, Manifest, TextTokenizer, encode_sample,
};

use crate::batch::{Picture, TrainSample};
use crate::error::TrainError;
use crate::features::FeatureCache;

/// The data of one stage.
#[derive(Debug)]
pub struct StageData {
    /// The samples.
    pub manifest: Manifest,
    /// Folder that image paths start from.
    pub images: PathBuf,
    /// The tokenizer, with the template's tokens.
    pub tokenizer: Arc<TextTokenizer>,
    /// Pictures to pixels.
    pub processor: Arc<ImageProcessor>,
    /// Template, length cap and tokens of an image.
    pub labels: LabelOptions,
    /// Which questions are asked; `None` where the template cannot ask.
    pub asking: Option<AskingPolicy>,
    /// Seed of the order.
    pub seed: u64,
    /// Where the vision tower is frozen, the features that are known already.
    pub features: Option<Arc<FeatureCache>>,
}

/// Numbers of a data set, from a part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataEstimate {
    /// Tokens of all samples, images in place.
    pub tokens: f64,
    /// Learnable tokens of all samples.
    pub learnable: f64,
    /// Whether every sample was looked at.
    pub exact: bool,
}

impl StageData {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.manifest.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The order of an epoch, a pure function of seed and epoch.
    pub fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        // Two words of the seed are the run's, two the epoch's.
        let mut seed = [0u8; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[16..24].copy_from_slice(&(epoch as u64).to_le_bytes());
        order.shuffle(&mut rand_chacha::ChaCha8Rng::from_seed(seed));
        order
    }

    /// Ids and roles of a sample, and whether it was cut. Pictures are named, not read.
    ///
    /// # Errors
    /// If the sample cannot be read or does not fit the template.
    pub fn encode(&self, epoch: usize, index: usize) -> Result<(TrainSample, bool), TrainError> {
        let sample = self.manifest.get(index)?;
        let asked = match &self.asking {
            Some(policy) => policy.asked(epoch as u64, &sample),
            None => Vec::new(),
        };
        let encoded = encode_sample(&self.tokenizer, &sample, &asked, &self.labels)?;
        let pictures = sample
            .images
            .iter()
            .take(encoded.images)
            .map(|name| Picture {
                key: name.as_str().into(),
                pixels: None,
            });
        let train = TrainSample {
            pictures: pictures.collect(),
            id: sample.id.into(),
            ids: encoded.input_ids,
            roles: encoded.roles,
        };
        if encoded.images != train.pictures.len() {
            return Err(TrainError::Sample {
                sample: train.id.to_string(),
                reason: format!(
                    "{} image(s) in the text but {} named",
                    encoded.images,
                    train.pictures.len()
                ),
            });
        }
        Ok((train, encoded.cut.is_some()))
    }

    /// Reads the pictures of a sample whose features are not known yet.
    ///
    /// # Errors
    /// If a file is missing or is not a whole picture; the message names sample and file.
    pub fn read_pictures(&self, sample: &mut TrainSample) -> Result<(), TrainError> {
        for picture in &mut sample.pictures {
            let known = self.features.as_ref().and_then(|f| f.get(&picture.key));
            if known.is_none() {
                let pixels =
                    self.pixels(Path::new(&*picture.key))
                        .map_err(|error| TrainError::Sample {
                            sample: sample.id.to_string(),
                            reason: error.to_string(),
                        })?;
                picture.pixels = Some(pixels);
            }
        }
        Ok(())
    }

    fn pixels(&self, name: &Path) -> Result<Arc<[f32]>, DataError> {
        let pixels = self.processor.preprocess_path(&self.images.join(name))?;
        Ok(pixels.data.into())
    }

    /// Tokens of the first epoch, from at most `limit` samples spread over the data.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn estimate(&self, limit: usize) -> Result<DataEstimate, TrainError> {
        let total = self.len();
        let stride = total.div_ceil(limit.max(1)).max(1);
        let (mut seen, mut tokens, mut learnable) = (0usize, 0usize, 0usize);
        for index in (0..total).step_by(stride) {
            let (sample, _) = self.encode(0, index)?;
            seen += 1;
            tokens += sample.len(self.labels.tokens_per_image);
            learnable += sample.learnable();
        }
        let scale = total as f64 / seen.max(1) as f64;
        Ok(DataEstimate {
            tokens: tokens as f64 * scale,
            learnable: learnable as f64 * scale,
            exact: stride == 1,
        })
    }
}
