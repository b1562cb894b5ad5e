//! From the samples of a stage's sources to encoded ones.

use std::sync::Arc;

use sq_llava_data::foreign::guarded;
use sq_llava_data::image::{ImagePacking, ImageProcessor, ImageTiles};
use sq_llava_data::source;
use sq_llava_data::{
    AskingPolicy, DataError, DataSet, Draw, DrawContext, FollowedSources, LabelOptions,
    LengthIndex, LlavaSample, Sampler, TextTokenizer, encode_sample_with_images, machine_threads,
    shuffle_turns,
};

use crate::data::bad_images::{BadImage, BadImagePolicy};
use crate::data::batch::{Picture, TrainSample};
use crate::data::deltas::{DeltaBoard, Followed};
use crate::data::features::FeatureCache;
use crate::data::masks::StageMasks;
use crate::error::TrainError;
use crate::recipe::{AskingRecipe, StageRecipe};

/// Ends the path in a key; in front of it a blank picture has none.
const KEY_END: char = '\0';

/// Whether a picture's key is that of a blank one.
pub(crate) fn is_blank(key: &str) -> bool {
    key.is_empty() || key.starts_with(KEY_END)
}

/// The data of one stage.
#[derive(Debug)]
pub struct StageData {
    /// The samples.
    pub data: DataSet,
    /// The tokenizer, with the template's tokens.
    pub tokenizer: Arc<TextTokenizer>,
    /// Pictures to pixels.
    pub processor: Arc<ImageProcessor>,
    /// Template, length cap and tokens of an image of one tile.
    pub labels: LabelOptions,
    /// Which questions are asked; `None` where the template cannot ask.
    pub asking: Option<AskingPolicy>,
    /// The sources whose δ is measured; `None` where none is.
    pub followed: Option<Followed>,
    /// Seed of the order of the turns in each epoch; `None` keeps it as it is.
    pub shuffle_turns: Option<u64>,
    /// The order of the samples.
    pub sampler: Sampler,
    /// What is done with pictures that cannot be used.
    pub bad_images: BadImagePolicy,
    /// Where the vision tower is frozen, the features that are known already.
    pub features: Option<Arc<FeatureCache>>,
    /// Masks that guide the prototypes.
    pub masks: Option<StageMasks>,
}

/// When a sample is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment<'a> {
    /// Pass over the data, from 0.
    pub epoch: usize,
    /// Optimizer step / all steps, from 0 to 1.
    pub progress: f64,
    /// δ of each source that is followed; without it that of the recipe.
    pub deltas: Option<&'a [f64]>,
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

/// The pictures of a stage's samples, before any is decoded.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The samples.
    pub data: &'a DataSet,
    /// Pictures to pixels.
    pub processor: &'a ImageProcessor,
    /// Features of one tile.
    pub tile_tokens: usize,
}

impl Shown<'_> {
    /// How the pictures of a sample become tokens, and how many each has. Where pictures are laid
    /// over tiles, the beginning of each file is read; one that cannot be read counts as a blank
    /// picture of one tile's size.
    ///
    /// # Errors
    /// If a tile's features cannot be joined.
    pub fn packings(
        &self,
        index: usize,
        sample: &LlavaSample,
    ) -> Result<Vec<(ImagePacking, usize)>, DataError> {
        let tiles = self.processor.config().tiling.is_some();
        let pictures = sample.images.len();
        let size = |place: usize, name: &str| {
            let picture = self.data.picture(index, place, name)?;
            picture.size(self.processor)
        };
        let packing = |(place, name): (usize, &String)| {
            let size = match tiles {
                true => size(place, name).ok(),
                // Their shape does not matter.
                false => None,
            };
            let size = size.unwrap_or(self.processor.input_size());
            let packing = self.processor.packing(size, pictures);
            Ok((packing, packing.tokens(self.tile_tokens)?))
        };
        sample.images.iter().enumerate().map(packing).collect()
    }
}

/// The order of a stage's samples. For grouping by length it reads the samples once, and where
/// pictures are laid over tiles the beginning of every picture.
///
/// # Errors
/// If a sample of it cannot be read.
pub fn sampler(stage: &StageRecipe, shown: Shown<'_>, seed: u64) -> Result<Sampler, TrainError> {
    use sq_llava_data::Grouping;
    let shares = shown.data.shares();
    if stage.grouping == Grouping::Random {
        return Ok(Sampler::random(shares, seed));
    }
    let cap = Some(stage.max_length);
    let image_tokens = |index, sample: &LlavaSample| {
        let packings = shown.packings(index, sample).unwrap_or_default();
        packings.iter().map(|(_, tokens)| tokens).sum()
    };
    let lengths = LengthIndex::estimate(shown.data, image_tokens, cap, machine_threads())?;
    let step = stage.samples_per_step();
    Ok(Sampler::grouped(
        stage.grouping,
        shares,
        lengths,
        step,
        seed,
    ))
}

/// Refuses sources with a δ of their own that no sample is from.
///
/// # Errors
/// If there is one, or a sample cannot be read.
pub fn check_sources(data: &StageData) -> Result<(), TrainError> {
    let Some(policy) = &data.asking else {
        return Ok(());
    };
    let unused = policy.unused_sources(&data.data, machine_threads())?;
    if unused.is_empty() {
        return Ok(());
    }
    Err(TrainError::Recipe(format!(
        "asking.sources has {}, which no sample is from: a source is the first folder of a sample's \
         first image path, or else the file name of its manifest",
        unused.join(", ")
    )))
}

/// The sources of the data whose δ is measured; `None` where it is not, or nothing is asked.
///
/// # Errors
/// If there are too many, or a sample cannot be read.
pub fn followed(asking: &AskingRecipe, data: &StageData) -> Result<Option<Followed>, TrainError> {
    let Some(policy) = data.asking.as_ref().filter(|_| asking.is_adaptive()) else {
        return Ok(None);
    };
    let sources = policy.followed_sources(&data.data, machine_threads())?;
    let (count, most) = (sources.names().len(), FollowedSources::MOST);
    if count > most {
        return Err(TrainError::Recipe(format!(
            "asking.schedule is \"adaptive\", and the data are {count} files that are sources of their \
             own; at most {most} are followed: name several of them in one data = [...], or take another \
             schedule"
        )));
    }
    Ok(Some(Followed {
        sources,
        every: asking.every,
        deltas: DeltaBoard::default(),
    }))
}

impl StageData {
    /// Number of samples in a pass.
    pub fn len(&self) -> usize {
        self.sampler.len()
    }

    fn shown(&self) -> Shown<'_> {
        Shown {
            data: &self.data,
            processor: &self.processor,
            tile_tokens: self.labels.tokens_per_image,
        }
    }

    /// Place of a sample's source among those that are followed.
    fn source(&self, index: usize, sample: &LlavaSample) -> Option<usize> {
        let (followed, policy) = (self.followed.as_ref()?, self.asking.as_ref()?);
        followed.sources.place(policy, &self.data, index, sample)
    }

    /// Ids and roles of a sample, and how many tokens were cut off. Pictures are named, not decoded.
    ///
    /// # Errors
    /// If the sample cannot be read or does not fit the template.
    pub fn encode(&self, at: Moment<'_>, draw: Draw) -> Result<(TrainSample, usize), TrainError> {
        let index = draw.index;
        let mut sample = self.data.get(index)?;
        // What comes once more in a pass is asked and shuffled as if it were another one.
        let pass = at.epoch as u64 | ((draw.time as u64) << 32);
        if let Some(seed) = self.shuffle_turns {
            shuffle_turns(&mut sample, seed, pass);
        }
        let source = self.source(index, &sample);
        let asked = match &self.asking {
            Some(policy) => {
                let measured = source.zip(at.deltas);
                let context = DrawContext {
                    epoch: pass,
                    progress: at.progress,
                    manifest: &self.data.file_name(index),
                    measured: measured.and_then(|(source, deltas)| deltas.get(source).copied()),
                };
                policy.asked(context, &sample)
            }
            None => Vec::new(),
        };
        let packings = self.shown().packings(index, &sample)?;
        let tokens: Vec<usize> = packings.iter().map(|(_, tokens)| *tokens).collect();
        let (tokenizer, labels) = (&self.tokenizer, &self.labels);
        let encoded = encode_sample_with_images(tokenizer, &sample, &asked, &tokens, labels)?;
        let named = sample.images.iter().take(encoded.images);
        let pictures = named
            .zip(packings)
            .enumerate()
            .map(|(place, (name, (packing, tokens)))| Picture {
                name: name.as_str().into(),
                key: self.key(&self.data.picture_key(index, place, name), &packing),
                packing,
                tokens,
                pixels: None,
                labels: None,
            });
        let train = TrainSample {
            pictures: pictures.collect(),
            id: sample.id.into(),
            ids: encoded.input_ids,
            roles: encoded.roles,
            source,
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

    /// The sample of [`Self::encode`]; `None` where it is damaged: the loader says what becomes of
    /// it.
    ///
    /// # Errors
    /// As [`Self::encode`] otherwise.
    pub(crate) fn encode_whole(
        &self,
        at: Moment<'_>,
        draw: Draw,
    ) -> Result<Option<TrainSample>, TrainError> {
        match self.encode(at, draw) {
            Err(TrainError::Data(error)) if error.is_damage() => Ok(None),
            encoded => Ok(Some(encoded?.0)),
        }
    }

    /// Decodes the pictures of the sample of an index to the tower's input in eight bits; `None` where their
    /// features are known. One that cannot be used is added to `bad`; with the policy `blank` it
    /// becomes a blank picture of as many tiles.
    pub fn open_pictures(
        &self,
        index: usize,
        sample: &mut TrainSample,
        bad: &mut Vec<BadImage>,
    ) -> Vec<Option<ImageTiles>> {
        let known = |key: &str| {
            let features = self.features.as_ref();
            features.is_some_and(|features| features.get(key).is_some())
        };
        let mut opened = Vec::with_capacity(sample.pictures.len());
        for (place, picture) in sample.pictures.iter_mut().enumerate() {
            if known(&picture.key) {
                opened.push(None);
                continue;
            }
            let found = self.data.picture(index, place, &picture.name);
            opened.push(match self.open_picture(found, &picture.packing) {
                Ok(image) => Some(image),
                Err(reason) => {
                    bad.push(BadImage {
                        sample: sample.id.clone(),
                        image: picture.name.clone(),
                        reason,
                    });
                    (self.bad_images == BadImagePolicy::Blank).then(|| {
                        let blank = self.blank(&picture.packing);
                        picture.key = self.key(&blank_name(&blank), &picture.packing);
                        // All blank ones are one picture, whichever stands first in a batch.
                        picture.name = picture.key.clone();
                        blank
                    })
                }
            });
        }
        opened
    }

    /// A picture as the tower's input in eight bits, or why there is none. A decoder that panics is
    /// one more reason.
    fn open_picture(
        &self,
        picture: Result<source::Picture, DataError>,
        packing: &ImagePacking,
    ) -> Result<ImageTiles, String> {
        let picture = picture.map_err(|error| error.to_string())?;
        let open = || {
            let image = picture.open(&self.processor)?;
            Ok(self.processor.cut(&image, pictures_of(packing)))
        };
        let opened = match guarded(open) {
            Ok(opened) => opened.map_err(|error: DataError| error.to_string()),
            Err(panic) => Err(format!("{}: {panic}", picture.name())),
        };
        match opened {
            Ok(tiles) if tiles.packing != *packing => Err(format!(
                "{}: it is not of the size that its first bytes told",
                picture.name()
            )),
            opened => opened,
        }
    }

    /// The key of a picture that becomes tokens so: where pictures are laid over tiles, one of
    /// several in a prompt may be a single tile.
    fn key(&self, name: &str, packing: &ImagePacking) -> Arc<str> {
        match packing {
            ImagePacking::One { .. } if self.processor.config().tiling.is_some() => {
                format!("{name}{KEY_END}one").into()
            }
            _ => name.into(),
        }
    }

    /// A picture of as many tiles that shows nothing.
    fn blank(&self, packing: &ImagePacking) -> ImageTiles {
        let size = match packing {
            ImagePacking::Grid { grid, .. } => grid.image_size,
            ImagePacking::One { .. } => self.processor.input_size(),
        };
        self.processor.blank(size, pictures_of(packing))
    }

    /// Puts the pixels of opened pictures into their sample.
    pub fn fill_pictures(&self, sample: &mut TrainSample, opened: &[Option<ImageTiles>]) {
        for (picture, opened) in sample.pictures.iter_mut().zip(opened) {
            let prepared = opened
                .as_ref()
                .map(|image| self.processor.normalize_tiles(image));
            picture.pixels = prepared.map(|prepared| prepared.data.into());
        }
    }

    /// Tokens of the first pass, from at most `limit` samples spread over the data, asked as
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
            deltas: None,
        };
        for draw in self.sampler.in_file_order(0).into_iter().step_by(stride) {
            let Some(sample) = self.encode_whole(halfway, draw)? else {
                continue;
            };
            seen += 1;
            tokens += sample.len();
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

/// The name of a blank picture: as it is laid over tiles.
fn blank_name(blank: &ImageTiles) -> String {
    match blank.packing {
        ImagePacking::One { .. } => String::new(),
        ImagePacking::Grid { .. } => {
            let (height, width) = blank.image_size;
            format!("{KEY_END}{height}x{width}")
        }
    }
}

/// A number of pictures in a prompt with which a picture becomes tokens so.
pub(crate) fn pictures_of(packing: &ImagePacking) -> usize {
    match packing {
        ImagePacking::One { .. } => 2,
        ImagePacking::Grid { .. } => 1,
    }
}
