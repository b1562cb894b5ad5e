//! CLIPScore (Hessel et al. 2021): how well a text goes with a picture, by CLIP.

pub mod model;
pub mod text;
pub mod tokenizer;

use std::path::Path;

use crate::clip_score::tokenizer::ClipTokenizer;
use burn::tensor::{FloatDType, Tensor, backend::Backend};
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig, PixelValues};

use crate::EvalError;
use crate::clip_score::model::ClipModel;
use sq_llava_model::ModelError;
use sq_llava_model::ops::finite::all_finite;
use sq_llava_model::origin::Origin;
use sq_llava_model::weights::Progress;

/// CLIP with its tokenizer and image processor.
#[derive(Debug)]
pub struct ClipScorer<B: Backend> {
    model: ClipModel<B>,
    tokenizer: ClipTokenizer,
    processor: ImageProcessor,
}

/// The embedding of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEmbedding {
    /// `[projection]`, of length one.
    pub values: Vec<f32>,
    /// Whether the text was longer than CLIP's context, so that only its beginning counts.
    pub cut: bool,
}

/// CLIPScore with the published weight, `2.5 · max(cosine, 0)`.
pub fn clip_score(cosine: f64) -> f64 {
    2.5 * cosine.max(0.0)
}

/// Cosine of two vectors of length one.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

impl<B: Backend> ClipScorer<B> {
    /// Loads a `CLIPModel` directory: weights, tokenizer, `preprocessor_config.json`.
    ///
    /// # Errors
    /// If a part is missing or damaged, or they do not fit together.
    pub fn load(
        dir: &Path,
        dtype: FloatDType,
        allow_unused: bool,
        progress: Option<&Progress>,
        device: &B::Device,
    ) -> Result<Self, EvalError> {
        let tokenizer = ClipTokenizer::from_dir(dir)?;
        let processor = ImageProcessorConfig::read_dir(dir)?;
        let processor = ImageProcessor::new(processor)?;
        let (model, _) = ClipModel::<B>::load(dir, dtype, allow_unused, progress, device)?;
        let config = model.config();
        if tokenizer.id_end() > config.text.vocab_size {
            return Err(ModelError::config(
                dir,
                format!(
                    "the tokenizer has ids up to {}, the text tower {} rows; is this the model's own tokenizer?",
                    tokenizer.id_end() - 1,
                    config.text.vocab_size
                ),
            )
            .into());
        }
        let side = config.vision.image_size;
        let input = processor.input_size();
        if (input.0 as usize, input.1 as usize) != (side, side) {
            return Err(ModelError::config(
                dir.join("preprocessor_config.json"),
                format!("makes images of {input:?}, the vision tower takes {side}×{side}"),
            )
            .into());
        }
        Ok(Self {
            model,
            tokenizer,
            processor,
        })
    }

    /// Reads and prepares a picture; several threads may do so at once.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open_image(&self, path: &Path) -> Result<PixelValues, EvalError> {
        Ok(self.processor.preprocess_path(path)?)
    }

    /// Embeddings of pictures, as one batch; each `[projection]`, of length one.
    ///
    /// # Errors
    /// If a picture has another size than the tower's.
    pub fn image_embeds(&self, images: &[PixelValues]) -> Result<Vec<Vec<f32>>, EvalError> {
        if images.is_empty() {
            return Ok(vec![]);
        }
        let images: Vec<&[f32]> = images.iter().map(|image| image.data.as_slice()).collect();
        let embeds = self.model.image_embeds(self.model.pixels(&images)?)?;
        Ok(self.rows(embeds, Origin::ClipImage)?)
    }

    /// Embeddings of texts, in batches of at most `batch` texts of about equal length.
    ///
    /// # Errors
    /// If the vocabulary cannot write a text.
    pub fn text_embeds(
        &self,
        texts: &[&str],
        batch: usize,
    ) -> Result<Vec<TextEmbedding>, EvalError> {
        let context = self.model.config().text.max_position_embeddings;
        let mut tokens = texts
            .iter()
            .map(|text| self.tokenizer.encode(text, context))
            .enumerate()
            .map(|(index, tokens)| Ok((index, tokens?)))
            .collect::<Result<Vec<_>, EvalError>>()?;
        tokens.sort_by_key(|(_, tokens)| tokens.ids.len());
        let mut found = Vec::with_capacity(texts.len());
        for part in tokens.chunks(batch.max(1)) {
            let ids: Vec<Vec<i64>> = part.iter().map(|(_, t)| t.ids.clone()).collect();
            let values = self.rows(self.model.text_embeds(&ids)?, Origin::ClipText)?;
            for ((index, tokens), values) in part.iter().zip(values) {
                let cut = tokens.cut;
                found.push((*index, TextEmbedding { values, cut }));
            }
        }
        found.sort_by_key(|(index, _)| *index);
        Ok(found.into_iter().map(|(_, embedding)| embedding).collect())
    }

    /// `[n, width]` → n vectors.
    ///
    /// # Errors
    /// If a number is not finite.
    fn rows(&self, embeds: Tensor<B, 2>, origin: Origin) -> Result<Vec<Vec<f32>>, ModelError> {
        let width = embeds.dims()[1];
        let values: Vec<f32> = embeds
            .into_data()
            .convert::<f32>()
            .to_vec()
            .map_err(|e| ModelError::Argument(format!("embeddings cannot be read: {e:?}")))?;
        let rows: Vec<Vec<f32>> = values.chunks(width.max(1)).map(<[f32]>::to_vec).collect();
        match rows.iter().position(|row| !all_finite(row)) {
            Some(sample) => Err(ModelError::NotFinite {
                sample,
                origin,
                dtype: self.model.visual_projection.weight.val().dtype(),
            }),
            None => Ok(rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_never_negative() {
        assert_eq!(clip_score(-0.3), 0.0);
        assert!((clip_score(0.2) - 0.5).abs() < 1e-12);
        assert!((cosine(&[0.6, 0.8], &[1.0, 0.0]) - 0.6).abs() < 1e-7);
    }
}
