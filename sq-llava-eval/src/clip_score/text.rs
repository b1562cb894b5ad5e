//! CLIP text transformer (`modeling_clip.py` in transformers).

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use sq_llava_model::ModelError;
use sq_llava_model::config::ClipTextConfig;
use sq_llava_model::ops::embedding::Embedding;
use sq_llava_model::ops::norm::LayerNorm;
use sq_llava_model::vision::encoder::{Encoder, LayerSizes};

/// The text tower; keys as under `text_model.`.
#[derive(Module, Debug)]
pub struct ClipTextTower<B: Backend> {
    /// Tokens and positions.
    pub embeddings: ClipTextEmbeddings<B>,
    /// Layers, in which a token sees only those before it.
    pub encoder: Encoder<B>,
    /// Norm behind the last layer.
    pub final_layer_norm: LayerNorm<B>,
    #[module(skip)]
    config: ClipTextConfig,
}

/// Tokens and positions.
#[derive(Module, Debug)]
pub struct ClipTextEmbeddings<B: Backend> {
    /// `[vocabulary, hidden]`.
    pub token_embedding: Embedding<B>,
    /// `[context, hidden]`.
    pub position_embedding: Embedding<B>,
}

impl<B: Backend> ClipTextTower<B> {
    /// A tower with lazily drawn weights.
    pub fn init(config: &ClipTextConfig, device: &B::Device) -> Self {
        let h = config.hidden_size;
        let layers = LayerSizes {
            hidden: h,
            intermediate: config.intermediate_size,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
            causal: true,
            qkv_bias: true,
            layer_scale: false,
            gated: false,
        };
        Self {
            embeddings: ClipTextEmbeddings {
                token_embedding: Embedding::init(config.vocab_size, h, device),
                position_embedding: Embedding::init(config.max_position_embeddings, h, device),
            },
            encoder: layers.init(config.num_hidden_layers, device),
            final_layer_norm: LayerNorm::init(h, config.layer_norm_eps, device),
            config: config.clone(),
        }
    }

    /// Sizes of the tower.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Hidden states behind the final norm, f32. Padding is at the right, where no other
    /// token sees it. `[texts, tokens]` → `[texts, tokens, hidden]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [texts, tokens] = ids.dims();
        let width = self.config.hidden_size;
        let flat = ids.reshape([texts * tokens]);
        let rows = self.embeddings.token_embedding.forward(flat);
        let positions = self.embeddings.position_embedding.weight.val();
        let positions = positions.slice([0..tokens, 0..width]).cast(DType::F32);
        let rows = rows.cast(DType::F32).reshape([texts, tokens, width]);
        let mut hidden = rows + positions.unsqueeze();
        for layer in &self.encoder.layers {
            hidden = layer.forward(hidden);
        }
        self.final_layer_norm.forward(hidden)
    }

    /// The feature of each text; texts of different lengths run as one batch.
    /// `texts × ids` → `[texts, hidden]`
    ///
    /// # Errors
    /// If there is no text, one is empty or longer than the context, or an id is outside of the
    /// vocabulary.
    pub fn pooled(&self, texts: &[Vec<i64>]) -> Result<Tensor<B, 2>, ModelError> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        if texts.iter().any(Vec::is_empty) || longest == 0 {
            return Err(ModelError::Argument(
                "CLIP's text tower was given no tokens".into(),
            ));
        }
        let limit = self.config.max_position_embeddings;
        if longest > limit {
            return Err(ModelError::ContextOverflow {
                tokens: longest,
                limit,
            });
        }
        let vocabulary = self.config.vocab_size;
        let known = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
        if let Some(&id) = texts.iter().flatten().find(|id| !known(id)) {
            return Err(ModelError::Vocabulary { id, vocabulary });
        }
        let device = self.embeddings.token_embedding.weight.val().device();
        // Any token will do as padding: it is behind the position that is read.
        let padded = texts.iter().flat_map(|ids| {
            let padding = longest - ids.len();
            ids.iter().copied().chain(std::iter::repeat_n(0, padding))
        });
        let ids = TensorData::new(padded.collect::<Vec<i64>>(), [texts.len(), longest]);
        let hidden = self.forward(Tensor::from_data(ids, &device));
        let places = texts.iter().enumerate().map(|(row, ids)| {
            // Far below i64's limit: the hidden states are in memory.
            (row * longest + feature_position(&self.config, ids)) as i64
        });
        let places = TensorData::new(places.collect::<Vec<i64>>(), [texts.len()]);
        let rows = hidden.reshape([texts.len() * longest, self.config.hidden_size]);
        Ok(rows.select(0, Tensor::from_data(places, &device)))
    }
}

/// Position of a text's feature: at the first end token, or at the first of the highest ids
/// ([`ClipTextConfig::pools_at_highest`]). At the begin token if there is no end token.
fn feature_position(config: &ClipTextConfig, ids: &[i64]) -> usize {
    let wanted = match ids.iter().max() {
        Some(&highest) if config.pools_at_highest() => highest,
        _ => config.eos_token_id,
    };
    ids.iter().position(|&id| id == wanted).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_stand_at_the_first_end_token() {
        let config = ClipTextConfig::new().with_eos_token_id(7);
        assert_eq!(feature_position(&config, &[6, 9, 7, 7]), 2);
        assert_eq!(feature_position(&config, &[6, 9]), 0);
        let old = ClipTextConfig::new().with_eos_token_id(2);
        assert_eq!(feature_position(&old, &[6, 2, 9, 7, 9]), 2);
    }
}
