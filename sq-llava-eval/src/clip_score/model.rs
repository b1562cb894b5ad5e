//! CLIP (Radford et al. 2021): pictures and texts as vectors whose cosine says how well they go
//! together.

use std::path::Path;

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, FloatDType, Tensor, backend::Backend};

use crate::clip_score::text::ClipTextTower;
use sq_llava_model::ModelError;
use sq_llava_model::config::ClipConfig;
use sq_llava_model::ops::linear::{Linear, product};
use sq_llava_model::vision::tower::{VisionTower, pixel_tensor};
use sq_llava_model::weights::{LoadReport, Progress, load_module};

/// Both towers; keys as in `CLIPModel`. [`ClipModel::load`] reads one.
#[derive(Module, Debug)]
pub struct ClipModel<B: Backend> {
    /// Texts.
    pub text_model: ClipTextTower<B>,
    /// Pictures.
    pub vision_model: VisionTower<B>,
    /// From the vision tower's width to the embeddings', without bias.
    pub visual_projection: Linear<B>,
    /// From the text tower's width to the embeddings', without bias.
    pub text_projection: Linear<B>,
    /// Logarithm of the factor between cosines and logits, `[1]`.
    pub logit_scale: Param<Tensor<B, 1>>,
    #[module(skip)]
    config: ClipConfig,
}

impl<B: Backend> ClipModel<B> {
    /// Loads a `CLIPModel`: its config.json and its weights, from safetensors or PyTorch files.
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration is not CLIP's, weights are missing or
    /// have another shape, or (unless `allow_unused`) the files hold weights that are not CLIP's;
    /// the message names the keys.
    pub fn load(
        dir: &Path,
        dtype: FloatDType,
        allow_unused: bool,
        progress: Option<&Progress>,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), ModelError> {
        let config = ClipConfig::from_hf(&dir.join("config.json"), allow_unused)?;
        let stacks = [
            (
                "vision_model.encoder.layers.",
                config.vision.num_hidden_layers,
            ),
            ("text_model.encoder.layers.", config.text.num_hidden_layers),
        ];
        let mut one = config.clone();
        one.vision.num_hidden_layers = one.vision.num_hidden_layers.min(1);
        one.text.num_hidden_layers = one.text.num_hidden_layers.min(1);
        let one = Self::init(&one, device);
        let whole = || Self::init(&config, device);
        load_module(&one, &stacks, whole, dir, dtype, allow_unused, progress)
    }

    /// A model with lazily drawn weights.
    pub fn init(config: &ClipConfig, device: &B::Device) -> Self {
        let projection = |width| Linear::init(width, config.projection_dim, false, device);
        // CLIP's own start, ln(1 / 0.07).
        let scale = Initializer::Constant { value: 2.6592 };
        Self {
            text_model: ClipTextTower::init(&config.text, device),
            vision_model: config.vision.init(device),
            visual_projection: projection(config.vision.hidden_size),
            text_projection: projection(config.text.hidden_size),
            logit_scale: scale.init([1], device),
            config: config.clone(),
        }
    }

    /// Sizes of the model.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Embeddings of texts, of length one. `texts × ids` → `[texts, projection]`, f32
    ///
    /// # Errors
    /// As [`ClipTextTower::pooled`].
    pub fn text_embeds(&self, texts: &[Vec<i64>]) -> Result<Tensor<B, 2>, ModelError> {
        let pooled = self.text_model.pooled(texts)?;
        Ok(unit(self.text_projection.forward(pooled)))
    }

    /// Prepared pictures as the vision tower's input.
    /// `[3 · side · side]` each → `[images, 3, side, side]`, f32
    ///
    /// # Errors
    /// If a picture has another size.
    pub fn pixels(&self, images: &[&[f32]]) -> Result<Tensor<B, 4>, ModelError> {
        let device = self.logit_scale.val().device();
        pixel_tensor(images, self.config.vision.image_size, &device)
    }

    /// Embeddings of pictures, of length one.
    /// `[images, 3, side, side]` → `[images, projection]`, f32
    ///
    /// # Errors
    /// If the vision tower has no class token.
    pub fn image_embeds(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 2>, ModelError> {
        let pooled = self.vision_model.pooled(pixels).ok_or_else(|| {
            ModelError::Argument("CLIP's vision tower needs a class token".into())
        })?;
        Ok(unit(self.visual_projection.forward(pooled)))
    }

    /// Logits of each picture over the texts: cosines times the learnt factor.
    /// `[images, projection]`, `[texts, projection]` → `[images, texts]`
    pub fn logits_per_image(&self, images: Tensor<B, 2>, texts: Tensor<B, 2>) -> Tensor<B, 2> {
        let scale = self.logit_scale.val().cast(DType::F32).exp();
        product(images, texts) * scale.unsqueeze()
    }
}

/// Rows of length one. `[n, width]` → `[n, width]`
fn unit<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = rows.clone().square().sum_dim(1).sqrt();
    rows / length
}
