//! Where a model's numbers stop being finite: looked for only once they have.

use burn::tensor::{Tensor, backend::Backend};

use crate::error::ModelError;
use crate::language::cache::KvCache;
use crate::ops::finite::is_finite;
use crate::origin::Origin;
use crate::sq_llava::{Sample, SqLlava};

impl<B: Backend> SqLlava<B> {
    /// The error of a sample whose numbers are not finite from `origin` on.
    pub fn not_finite(&self, sample: usize, origin: Origin) -> ModelError {
        let dtype = self.language_model.model.embed_tokens.weight.dtype();
        ModelError::NotFinite {
            sample,
            origin,
            dtype,
        }
    }

    /// Where the numbers of pictures stop being finite; `None` if their image tokens are finite.
    /// Runs the tower layer by layer. `[images, 3, side, side]`
    ///
    /// # Errors
    /// As [`Self::vision_features`].
    pub fn image_origin(&self, pixels: Tensor<B, 4>) -> Result<Option<Origin>, ModelError> {
        let (Some(tower), Some(layers)) = (&self.vision_tower, self.config.feature_layers()) else {
            return Err(ModelError::NoVisionTower);
        };
        if !is_finite(&pixels) {
            return Ok(Some(Origin::Pixels));
        }
        let last = layers.iter().copied().max().unwrap_or(0);
        let mut states = vec![tower.embed(pixels)];
        if !is_finite(&states[0]) {
            return Ok(Some(Origin::VisionEmbedding));
        }
        for (index, block) in tower.encoder.layers[..last].iter().enumerate() {
            let hidden = block.forward(states[index].clone());
            if !is_finite(&hidden) {
                return Ok(Some(Origin::VisionLayer(index)));
            }
            states.push(hidden);
        }
        let states = layers.iter().map(|&layer| states[layer].clone()).collect();
        let mut features = self.config.select_feature.of(states);
        if let Some(prototype) = &self.prototype {
            features = prototype.forward(features);
            if !is_finite(&features) {
                return Ok(Some(Origin::Prototype));
            }
        }
        let projected = self.mm_projector.forward(features);
        Ok((!is_finite(&projected)).then_some(Origin::Projector))
    }

    /// Where the numbers of one sequence stop being finite. Runs the language model layer by layer
    /// over what the cache holds, which is used up. Padding is not looked at.
    /// `[1, tokens, hidden]`
    pub(crate) fn text_origin(
        &self,
        embeddings: Tensor<B, 3>,
        padding: usize,
        cache: &mut KvCache<B>,
    ) -> Origin {
        let (llama, past) = (&self.language_model, cache.len());
        let [_, tokens, width] = embeddings.dims();
        let seen = padding.saturating_sub(past).min(tokens);
        let finite = |hidden: &Tensor<B, 3>| {
            is_finite(&hidden.clone().slice([0..1, seen..tokens, 0..width]))
        };
        if !finite(&embeddings) {
            return Origin::Embedding;
        }
        let context = llama.context(&[padding], past, tokens, &embeddings.device());
        let mut hidden = embeddings;
        for (index, layer) in llama.model.layers.iter().enumerate() {
            hidden = layer.forward(hidden, &context, Some(cache.layer(index)));
            if !finite(&hidden) {
                return Origin::Layer(index);
            }
        }
        Origin::Head
    }

    /// The error of a sequence whose logits, computed without a cache, are not finite.
    /// `[tokens, hidden]`
    pub fn not_finite_text(&self, embeddings: Tensor<B, 2>) -> ModelError {
        let mut cache = KvCache::new(self.language_model.model.layers.len(), vec![0]);
        let origin = self.text_origin(embeddings.unsqueeze(), 0, &mut cache);
        self.not_finite(0, origin)
    }
}

impl ModelError {
    /// Tells image tokens that were not finite from embeddings of text that were not.
    pub(crate) fn within<B: Backend>(self, samples: &[Sample<'_, B>]) -> Self {
        match self {
            Self::NotFinite {
                sample,
                origin: Origin::Embedding,
                dtype,
            } if samples
                .get(sample)
                .is_some_and(|sample| !sample.images.iter().all(is_finite)) =>
            {
                Self::NotFinite {
                    sample,
                    origin: Origin::ImageTokens,
                    dtype,
                }
            }
            other => other,
        }
    }

    /// The same error, where `samples` tells the sample of each row of a batch.
    pub(crate) fn of_sample(mut self, samples: &[usize]) -> Self {
        if let Self::NotFinite { sample, .. } = &mut self {
            *sample = samples.get(*sample).copied().unwrap_or(*sample);
        }
        self
    }
}
