//! The whole model: vision tower → prototype extractor → projector → language model.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use sq_llava_data::image::{AnyResolution, ImagePacking, PreparedImage};

use crate::config::SqLlavaConfig;
use crate::connector::anyres::pack;
use crate::connector::projector::Projector;
use crate::connector::prototype::PrototypeExtractor;
use crate::connector::splice::splice;
use crate::error::ModelError;
use crate::language::llama::Llama;
use crate::ops::cat::cat;
use crate::ops::draws::normal;
use crate::ops::linear::Linear;
use crate::ops::lora::LoraConfig;
use crate::vision::tower::{VisionTower, pixel_tensor};

/// SQ-LLaVA (arXiv 2403.11299).
#[derive(Module, Debug)]
pub struct SqLlava<B: Backend> {
    /// `None` for a text-only model.
    pub vision_tower: Option<VisionTower<B>>,
    /// The paper's φ; the released one is part of the projector.
    pub prototype: Option<PrototypeExtractor<B>>,
    /// W.
    pub mm_projector: Projector<B>,
    /// Of a model that takes images of any shape: stands behind each row of an image's features.
    /// `[hidden]`
    pub image_newline: Option<Param<Tensor<B, 1>>>,
    /// The LLM.
    pub language_model: Llama<B>,
    /// What the model was built from.
    #[module(skip)]
    pub config: SqLlavaConfig,
}

/// Tiles that go through the vision tower at once.
const TILES_AT_ONCE: usize = 32;

/// Text and images of one sample.
#[derive(Debug, Clone)]
pub struct Sample<'a, B: Backend> {
    /// Token ids; [`IMAGE_TOKEN_INDEX`](crate::IMAGE_TOKEN_INDEX) where an image stands.
    pub ids: &'a [i64],
    /// Features of its images, each `[tokens, hidden]`.
    pub images: Vec<Tensor<B, 2>>,
}

impl SqLlavaConfig {
    /// A model with lazily drawn weights.
    ///
    /// # Errors
    /// If the parts do not fit together.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Result<SqLlava<B>, ModelError> {
        let width = self.llama.hidden_size;
        if let Some(vision) = &self.vision {
            if self.feature_layers().is_none() {
                return Err(ModelError::Argument(format!(
                    "there are no feature layers {:?} in a vision tower of {} layers (model.select_layer, vision_feature_layer, mm_vision_select_layer)",
                    self.select_layers, vision.num_hidden_layers
                )));
            }
            if self.tokens_per_image() == 0 {
                return Err(ModelError::Argument(
                    "the vision tower's only token is dropped by its selection of features (vision_feature_select_strategy \"default\", mm_vision_select_feature \"patch\")".into(),
                ));
            }
        }
        self.check_anyres()?;
        let d_in = self.feature_width().unwrap_or(width);
        if let Some(prototype) = &self.prototype
            && self.vision.is_some()
            && prototype.hidden_size != d_in
        {
            return Err(ModelError::Argument(format!(
                "the prototype extractor's width {} is not the image features' {d_in}",
                prototype.hidden_size
            )));
        }
        let projector = match &self.vision {
            Some(_) => self.projector.init(d_in, width, device),
            None => Projector::Identity(std::marker::PhantomData),
        };
        if matches!(projector, Projector::Identity(_)) && d_in != width {
            return Err(ModelError::Argument(format!(
                "the identity projector cannot join a tower of width {d_in} to an LLM of width {width}"
            )));
        }
        Ok(SqLlava {
            vision_tower: self.vision.as_ref().map(|v| v.init(device)),
            prototype: self.prototype.as_ref().map(|p| p.init(device)),
            mm_projector: projector,
            image_newline: self
                .has_image_newline()
                .then(|| image_newline(width, device)),
            language_model: self.llama.init(device),
            config: self.clone(),
        })
    }

    /// Whether tiles of the tower's size, with its features, can be joined.
    fn check_anyres(&self) -> Result<(), ModelError> {
        let (Some(anyres), Some(vision)) = (&self.anyres, &self.vision) else {
            return Ok(());
        };
        anyres.check(u32::try_from(vision.image_size).unwrap_or(u32::MAX))?;
        let features = self.tokens_per_image();
        if features.isqrt().pow(2) != features {
            return Err(ModelError::Argument(format!(
                "images of any shape need a square of features of each tile, but {features} are \
                 selected: take the patches without the class token"
            )));
        }
        Ok(())
    }
}

/// Deviation of the normal draw that an `image_newline` starts from, LLaVA-NeXT's 1/√hidden.
fn newline_deviation(hidden: usize) -> f64 {
    (hidden as f64).powf(-0.5)
}

/// A lazily drawn `image_newline`.
pub(crate) fn image_newline<B: Backend>(hidden: usize, device: &B::Device) -> Param<Tensor<B, 1>> {
    let normal = Initializer::Normal {
        mean: 0.0,
        std: newline_deviation(hidden),
    };
    normal.init([hidden], device)
}

impl<B: Backend> SqLlava<B> {
    /// Device of the weights.
    pub fn device(&self) -> B::Device {
        self.language_model.model.norm.weight.lazy_device()
    }

    /// Features of the vision tower. `[images, 3, side, side]` → `[images, tokens, d]`
    ///
    /// # Errors
    /// If there is no vision tower or the images are not of its size.
    pub fn vision_features(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 3>, ModelError> {
        let (Some(tower), Some(vision), Some(layers)) = (
            &self.vision_tower,
            &self.config.vision,
            self.config.feature_layers(),
        ) else {
            return Err(ModelError::NoVisionTower);
        };
        let [_, channels, height, width] = pixels.dims();
        let side = vision.image_size;
        if (channels, height, width) != (3, side, side) {
            return Err(ModelError::Argument(format!(
                "images of {channels} channels, {height}×{width} were given; the vision tower takes 3 channels, {side}×{side}"
            )));
        }
        Ok(tower.features(pixels, &layers, self.config.select_feature))
    }

    /// Image tokens as the LLM sees them. `[images, tokens, d]` → `[images, tokens, hidden]`
    pub fn project(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        self.project_assigned(features).0
    }

    /// [`Self::project`], and the soft assignment of tokens to prototypes in the last step of the
    /// paper's extractor or the released one, `[images, K, tokens]`; `None` without prototypes, or
    /// where they take no step.
    pub fn project_assigned(&self, features: Tensor<B, 3>) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
        let Some(prototype) = &self.prototype else {
            return self.mm_projector.project(features);
        };
        let found = prototype.extract(features);
        let projected = self.mm_projector.forward(found.tokens);
        (projected, prototype.assigns().then_some(found.assignment))
    }

    /// Image tokens of pixels. `[images, 3, side, side]` → `images` × `[tokens, hidden]`
    ///
    /// # Errors
    /// As [`Self::vision_features`].
    pub fn encode_images(&self, pixels: Tensor<B, 4>) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        let projected = self.project(self.vision_features(pixels)?);
        let [images, tokens, hidden] = projected.dims();
        Ok((0..images)
            .map(|i| {
                let one = projected.clone().slice([i..i + 1, 0..tokens, 0..hidden]);
                one.reshape([tokens, hidden])
            })
            .collect())
    }

    /// Lets a DINOv2 tower take images of this size, (height, width) in pixels, as its class in
    /// transformers does. Other towers, and other shapes than squares, stay what they are.
    pub fn take_images_of(&mut self, (height, width): (u32, u32)) {
        if let (Some(tower), Some(config)) = (&mut self.vision_tower, &mut self.config.vision)
            && height == width
        {
            tower.resize_positions(config, height as usize);
        }
    }

    /// Lays images over other tiles from now on. An `image_newline` that is needed and not there
    /// starts from a draw of `seed`; one that is not needed goes.
    pub fn set_tiling(&mut self, tiling: Option<AnyResolution>, seed: u64) {
        self.config.anyres = tiling;
        let own = self.image_newline.take();
        self.image_newline = self.config.has_image_newline().then(|| {
            own.unwrap_or_else(|| {
                let hidden = self.config.llama.hidden_size;
                let drawn = normal::<B>(1, hidden, seed, &self.device());
                let scaled = drawn.mul_scalar(newline_deviation(hidden));
                Param::from_tensor(scaled.reshape([hidden]))
            })
        });
    }

    /// Image tokens of the projected features of one image's tiles.
    /// `[tiles, tokens, hidden]` → `[tokens of the image, hidden]`
    ///
    /// # Errors
    /// As [`pack`](crate::connector::anyres::pack).
    pub fn pack(
        &self,
        projected: Tensor<B, 3>,
        packing: &ImagePacking,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let newline = self.image_newline.as_ref().map(Param::val);
        pack(projected, newline, packing)
    }

    /// Image tokens of prepared images, whatever their tiles. → `images` × `[tokens, hidden]`
    ///
    /// # Errors
    /// As [`Self::pixels`] and [`Self::pack`].
    pub fn encode_prepared(
        &self,
        images: &[&PreparedImage],
    ) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        let mut encoded = Vec::with_capacity(images.len());
        let mut rest = images;
        while !rest.is_empty() {
            let mut tiles = 0;
            let fit = rest.iter().take_while(|image| {
                tiles += image.tiles;
                tiles <= TILES_AT_ONCE
            });
            let (together, behind) = rest.split_at(fit.count().max(1));
            encoded.extend(self.encode_together(together)?);
            rest = behind;
        }
        Ok(encoded)
    }

    /// [`Self::encode_prepared`] of images whose projected tiles are held at once.
    fn encode_together(&self, images: &[&PreparedImage]) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        let tiles = tiles(images);
        let projected = tiles.chunks(TILES_AT_ONCE).map(|tiles| {
            let features = self.vision_features(self.pixels(tiles)?)?;
            Ok(self.project(features))
        });
        let projected = projected.collect::<Result<Vec<_>, ModelError>>()?;
        let packings = images.iter().map(|image| &image.packing);
        self.pack_each(cat(projected, 0), packings)
    }

    /// [`Self::pack`] of images one after the other.
    /// `[tiles of all, tokens, hidden]` → `images` × `[tokens of the image, hidden]`
    ///
    /// # Errors
    /// As [`Self::pack`].
    pub fn pack_each<'a>(
        &self,
        projected: Tensor<B, 3>,
        packings: impl Iterator<Item = &'a ImagePacking>,
    ) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        let [tiles, tokens, hidden] = projected.dims();
        let packings: Vec<&ImagePacking> = packings.collect();
        let expected: usize = packings.iter().map(|packing| packing.tiles()).sum();
        if tiles != expected {
            return Err(ModelError::Argument(format!(
                "{expected} tiles of images have the features of {tiles}"
            )));
        }
        let mut start = 0;
        let packed = packings.into_iter().map(|packing| {
            let end = start + packing.tiles();
            let own = projected.clone().slice([start..end, 0..tokens, 0..hidden]);
            start = end;
            self.pack(own, packing)
        });
        packed.collect()
    }

    /// Pixels of all tiles of prepared images. → `[tiles, 3, side, side]`
    ///
    /// # Errors
    /// As [`Self::pixels`].
    pub fn prepared_pixels(&self, images: &[&PreparedImage]) -> Result<Tensor<B, 4>, ModelError> {
        self.pixels(&tiles(images))
    }

    /// Pixels of normalised images, each channels first, to a tensor.
    /// `images` × `3 · side · side` → `[images, 3, side, side]`
    ///
    /// # Errors
    /// If there is no vision tower or a picture has another size.
    pub fn pixels(&self, images: &[&[f32]]) -> Result<Tensor<B, 4>, ModelError> {
        let side = match &self.config.vision {
            Some(vision) => vision.image_size,
            None => return Err(ModelError::NoVisionTower),
        };
        pixel_tensor(images, side, &self.device())
    }

    /// Embeddings of each sample, images in place. → `[sequence, hidden]` each
    ///
    /// # Errors
    /// If a sample has another number of images than of places for them, or an id is outside the
    /// vocabulary.
    pub fn embed(&self, samples: &[Sample<'_, B>]) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        let device = self.device();
        samples
            .iter()
            .enumerate()
            .map(|(index, sample)| {
                splice(
                    &self.language_model,
                    index,
                    sample.ids,
                    self.config.image_token_index,
                    &sample.images,
                    &device,
                )
            })
            .collect()
    }

    /// Logits of every position of one sequence, without a cache.
    /// `[sequence, hidden]` → `[sequence, vocabulary]`
    pub fn logits(&self, embeddings: Tensor<B, 2>) -> Tensor<B, 2> {
        let llama = &self.language_model;
        let hidden = llama.forward_layers(embeddings.unsqueeze::<3>(), &[0], None);
        llama.logits(hidden.squeeze_dim(0))
    }

    /// The linears of both towers that can be adapted, by path.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Linear<B>)> {
        let llm = self.language_model.linears();
        let llm = llm.map(|(path, linear)| (format!("language_model.{path}"), linear));
        let vision = self.vision_tower.iter().flat_map(VisionTower::linears);
        llm.chain(vision.map(|(path, linear)| (format!("vision_tower.{path}"), linear)))
    }

    /// [`Self::linears`], to change them, each with the number that its adapter has.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = Adaptable<'_, B>> {
        llm_linears(&mut self.language_model).chain(vision_linears(&mut self.vision_tower))
    }

    /// Adds fresh adapters to the LLM.
    #[must_use]
    pub fn with_llm_lora(mut self, lora: &LoraConfig) -> Self {
        adapt(llm_linears(&mut self.language_model), lora);
        self
    }

    /// Adds fresh adapters to the vision tower. Its linears may be named as here or as in the
    /// files of its family.
    #[must_use]
    pub fn with_vision_lora(mut self, lora: &LoraConfig) -> Self {
        let vision = self.config.vision.as_ref();
        let lora = vision.map_or_else(|| lora.clone(), |vision| vision.own_targets(lora));
        adapt(vision_linears(&mut self.vision_tower), &lora);
        self
    }

    /// Folds all adapters into the weights.
    #[must_use]
    pub fn merge_lora(mut self) -> Self {
        for Adaptable { linear, .. } in self.linears_mut() {
            *linear = linear.clone().merge_lora();
        }
        self
    }
}

/// The pixels of each tile of prepared images.
fn tiles<'a>(images: &[&'a PreparedImage]) -> Vec<&'a [f32]> {
    let each = |image: &&'a PreparedImage| {
        let size = image.data.len() / image.tiles.max(1);
        image.data.chunks_exact(size.max(1))
    };
    images.iter().flat_map(each).collect()
}

/// A linear that can be adapted.
pub(crate) struct Adaptable<'a, B: Backend> {
    /// Its path in the model.
    pub path: String,
    /// The number of its adapter.
    pub number: u64,
    pub linear: &'a mut Linear<B>,
}

fn llm_linears<B: Backend>(llama: &mut Llama<B>) -> impl Iterator<Item = Adaptable<'_, B>> {
    let numbered = llama.linears_mut().zip(1..);
    numbered.map(|((path, linear), number)| Adaptable {
        path: format!("language_model.{path}"),
        number,
        linear,
    })
}

fn vision_linears<B: Backend>(
    tower: &mut Option<VisionTower<B>>,
) -> impl Iterator<Item = Adaptable<'_, B>> {
    let linears = tower.iter_mut().flat_map(VisionTower::linears_mut);
    // Numbers far from those of the LLM's adapters.
    let numbered = linears.zip((1 << 32) + 1..);
    numbered.map(|((path, linear), number)| Adaptable {
        path: format!("vision_tower.{path}"),
        number,
        linear,
    })
}

fn adapt<'a, B: Backend>(linears: impl Iterator<Item = Adaptable<'a, B>>, lora: &LoraConfig) {
    for Adaptable {
        path,
        number,
        linear,
    } in linears
    {
        if lora.targets(&path) {
            *linear = linear.clone().with_lora(lora, number);
        }
    }
}
