//! CLIP (Radford et al. 2021): pictures and texts as vectors whose cosine says how well they go
//! together.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use crate::clip::{ClipVisionTower, pixel_tensor};
use crate::clip_text::ClipTextTower;
use crate::config::ClipConfig;
use crate::error::ModelError;
use crate::linear::{Linear, product};

/// Both towers; keys as in `CLIPModel`. [`load_clip`](crate::weights::load_clip) reads one.
#[derive(Module, Debug)]
pub struct ClipModel<B: Backend> {
    /// Texts.
    pub text_model: ClipTextTower<B>,
    /// Pictures.
    pub vision_model: ClipVisionTower<B>,
    /// From the vision tower's width to the embeddings', without bias.
    pub visual_projection: Linear<B>,
    /// From the text tower's width to the embeddings', without bias.
    pub text_projection: Linear<B>,
    /// Logarithm of the factor between cosines and logits, `[1]`.
    pub logit_scale: Param<Tensor<B, 1>>,
    #[module(skip)]
    config: ClipConfig,
}

impl ClipConfig {
    /// A model with lazily drawn weights.
    pub fn init<B: Backend>(&self, device: &B::Device) -> ClipModel<B> {
        let projection = |width| Linear::init(width, self.projection_dim, false, device);
        // CLIP's own start, ln(1 / 0.07).
        let scale = Initializer::Constant { value: 2.6592 };
        ClipModel {
            text_model: self.text.init(device),
            vision_model: self.vision.init(device),
            visual_projection: projection(self.vision.hidden_size),
            text_projection: projection(self.text.hidden_size),
            logit_scale: scale.init([1], device),
            config: self.clone(),
        }
    }
}

impl<B: Backend> ClipModel<B> {
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
    pub fn image_embeds(&self, pixels: Tensor<B, 4>) -> Tensor<B, 2> {
        let pooled = self.vision_model.pooled(pixels);
        unit(self.visual_projection.forward(pooled))
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
