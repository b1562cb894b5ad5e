//! From a LLaVA manifest and an image folder to encoded samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sq_llava_data::foreign::guarded;
use sq_llava_data::image::{ImageProcessor, RgbImage};
use sq_llava_data::{
    AskingPolicy, DataError, DrawContext, LabelOptions, LengthIndex, Manifest, Sampler,
    TextTokenizer, encode_sample, machine_threads, shuffle_turns,
};

use crate::data::bad_images::{BadImage, BadImagePolicy};
use crate::data::batch::{Picture, TrainSample};
use crate::data::features::FeatureCache;
use crate::error::TrainError;
use crate::recipe::StageRecipe;

/// The key of a blank picture: no path is like it.
pub(crate) const BLANK: &str = "";

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
    /// Seed of the order of the turns in each epoch; `None` keeps it as it is.
    pub shuffle_turns: Option<u64>,
    /// The order of the samples.
    pub sampler: Sampler,
    /// What is done with pictures that cannot be used.
    pub bad_images: BadImagePolicy,
    /// Where the vision tower is frozen, the features that are known already.
    pub features: Option<Arc<FeatureCache>>,
}

/// Which pass over the data it is, and how much of the training is done, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// From 0.
    pub epoch: usize,
    /// Optimizer step / all steps.
    pub progress: f64,
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

/// The order of a stage's samples. For grouping by length it reads the manifest once.
///
/// # Errors
/// If a sample of it cannot be read.
pub fn sampler(
    manifest: &Manifest,
    stage: &StageRecipe,
    tokens_per_image: usize,
    seed: u64,
) -> Result<Sampler, TrainError> {
    use sq_llava_data::Grouping;
    if stage.grouping == Grouping::Random {
        return Ok(Sampler::random(manifest.len(), seed));
    }
    let cap = Some(stage.max_length);
    let lengths = LengthIndex::estimate(manifest, tokens_per_image, cap, machine_threads())?;
    let step = stage.samples_per_step();
    Ok(Sampler::grouped(stage.grouping, lengths, step, seed))
}

/// Refuses sources with a δ of their own that no sample is from.
///
/// # Errors
/// If there is one, or a sample cannot be read.
pub fn check_sources(manifest: &Manifest, policy: &AskingPolicy) -> Result<(), TrainError> {
    let unused = policy.unused_sources(manifest, machine_threads())?;
    if unused.is_empty() {
        return Ok(());
    }
    Err(TrainError::Recipe(format!(
        "asking.sources has {}, which no sample is from: a source is the first folder of a sample's \
         first image path, or else the file name of its manifest",
        unused.join(", ")
    )))
}

impl StageData {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.manifest.len()
    }

    /// Ids and roles of a sample, and how many tokens were cut off. Pictures are named, not read.
    ///
    /// # Errors
    /// If the sample cannot be read or does not fit the template.
    pub fn encode(&self, at: Moment, index: usize) -> Result<(TrainSample, usize), TrainError> {
        let mut sample = self.manifest.get(index)?;
        if let Some(seed) = self.shuffle_turns {
            shuffle_turns(&mut sample, seed, at.epoch as u64);
        }
        let asked = match &self.asking {
            Some(policy) => {
                let context = DrawContext {
                    epoch: at.epoch as u64,
                    progress: at.progress,
                    manifest: &self.manifest.file_name(index),
                };
                policy.asked(context, &sample)
            }
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
        Ok((train, encoded.cut.map_or(0, |cut| cut.tokens)))
    }

    /// Decodes the pictures of a sample to the tower's input in eight bits; `None` where their
    /// features are known. One that cannot be used is added to `bad`; with the policy `blank` it
    /// becomes the blank picture.
    pub fn open_pictures(
        &self,
        sample: &mut TrainSample,
        bad: &mut Vec<BadImage>,
    ) -> Vec<Option<RgbImage>> {
        let known = |key: &str| {
            let features = self.features.as_ref();
            features.is_some_and(|features| features.get(key).is_some())
        };
        let mut opened = Vec::with_capacity(sample.pictures.len());
        for picture in &mut sample.pictures {
            if known(&picture.key) {
                opened.push(None);
                continue;
            }
            let path = self.images.join(&*picture.key);
            opened.push(match self.open_picture(&path) {
                Ok(image) => Some(image),
                Err(reason) => {
                    bad.push(BadImage {
                        sample: sample.id.clone(),
                        image: picture.key.clone(),
                        reason,
                    });
                    (self.bad_images == BadImagePolicy::Blank).then(|| {
                        picture.key = BLANK.into();
                        self.processor.blank()
                    })
                }
            });
        }
        opened
    }

    /// A picture as the tower's input in eight bits, or why there is none. A decoder that panics is
    /// one more reason.
    fn open_picture(&self, path: &Path) -> Result<RgbImage, String> {
        let open = || {
            let image = self.processor.open(path)?;
            Ok(self.processor.resize_to_input(&image))
        };
        match guarded(open) {
            Ok(opened) => opened.map_err(|error: DataError| error.to_string()),
            Err(panic) => Err(format!("{}: {panic}", path.display())),
        }
    }

    /// Puts the pixels of opened pictures into their sample.
    pub fn fill_pictures(&self, sample: &mut TrainSample, opened: &[Option<RgbImage>]) {
        for (picture, opened) in sample.pictures.iter_mut().zip(opened) {
            let pixels = opened.as_ref().map(|image| self.processor.normalize(image));
            picture.pixels = pixels.map(|pixels| pixels.data.into());
        }
    }

    /// Tokens of the first epoch, from at most `limit` samples spread over the data, asked as
    /// halfway through the training.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn estimate(&self, limit: usize) -> Result<DataEstimate, TrainError> {
        let total = self.len();
        let stride = total.div_ceil(limit.max(1)).max(1);
        let (mut seen, mut tokens, mut learnable) = (0usize, 0usize, 0usize);
        let halfway = Moment {
            epoch: 0,
            progress: 0.5,
        };
        for index in (0..total).step_by(stride) {
            let (sample, _) = self.encode(halfway, index)?;
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
