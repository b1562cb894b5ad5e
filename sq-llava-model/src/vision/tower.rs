//! A vision tower of any family: a picture to the features of its patches.

use std::collections::BTreeMap;

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::encoder::{Encoder, LayerSizes};
use super::head::PoolingHead;
use crate::config::{SelectFeature, VisionConfig};
use crate::error::ModelError;
use crate::ops::activation::Activation;
use crate::ops::cat::cat;
use crate::ops::embedding::Embedding;
use crate::ops::hidden;
use crate::ops::linear::{Linear, product};
use crate::ops::norm::LayerNorm;

/// The vision tower; keys as under `vision_model.` of CLIP and SigLIP.
#[derive(Module, Debug)]
pub struct VisionTower<B: Backend> {
    /// Patches, positions, and the class token if there is one.
    pub embeddings: VisionEmbeddings<B>,
    /// Norm before the first layer (spelled so in checkpoints).
    pub pre_layrnorm: Option<LayerNorm<B>>,
    /// Layers.
    pub encoder: Encoder<B>,
    /// Norm after the last layer; no image feature of LLaVA passes through it.
    pub post_layernorm: Option<LayerNorm<B>>,
    /// SigLIP's pooling; no image feature of LLaVA passes through it either.
    pub head: Option<PoolingHead<B>>,
}

/// Patches, positions, and the class token if there is one.
#[derive(Module, Debug)]
pub struct VisionEmbeddings<B: Backend> {
    /// `[hidden]`; comes before the patches.
    pub class_embedding: Option<Param<Tensor<B, 1>>>,
    /// Patches to tokens.
    pub patch_embedding: PatchEmbedding<B>,
    /// `[tokens, hidden]`, the class token among them.
    pub position_embedding: Embedding<B>,
}

/// A convolution whose stride is its size, as a matrix product.
#[derive(Module, Debug)]
pub struct PatchEmbedding<B: Backend> {
    /// `[hidden, 3, patch, patch]`.
    pub weight: Param<Tensor<B, 4>>,
    /// `[hidden]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl VisionConfig {
    /// A tower with lazily drawn weights.
    pub fn init<B: Backend>(&self, device: &B::Device) -> VisionTower<B> {
        let (h, p) = (self.hidden_size, self.patch_size);
        let norm = || LayerNorm::init(h, self.layer_norm_eps, device);
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        let zeros = Initializer::Zeros;
        let sizes = self.layer_sizes();
        VisionTower {
            embeddings: VisionEmbeddings {
                class_embedding: self.class_token.then(|| normal.init([h], device)),
                patch_embedding: PatchEmbedding {
                    weight: normal.init([h, 3, p, p], device),
                    bias: self.patch_bias.then(|| zeros.init([h], device)),
                },
                position_embedding: Embedding::init(self.tokens(), h, device),
            },
            pre_layrnorm: self.pre_layernorm.then(norm),
            encoder: sizes.init(self.num_hidden_layers, device),
            post_layernorm: self.post_layernorm.then(norm),
            head: self.pooling_head.then(|| PoolingHead::init(&sizes, device)),
        }
    }

    fn layer_sizes(&self) -> LayerSizes {
        LayerSizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            act: match self.gated_mlp {
                true => Activation::Silu,
                false => self.hidden_act,
            },
            eps: self.layer_norm_eps,
            causal: false,
            qkv_bias: self.qkv_bias,
            layer_scale: self.layer_scale,
            gated: self.gated_mlp,
        }
    }
}

impl<B: Backend> VisionTower<B> {
    /// The layers' linears by their paths in the tower.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Linear<B>)> {
        let layers = self.encoder.layers.iter().enumerate();
        layers.flat_map(|(index, layer)| {
            let named = move |(path, linear)| (format!("encoder.layers.{index}.{path}"), linear);
            layer.linears().map(named)
        })
    }

    /// [`Self::linears`], to change them.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear<B>)> {
        let layers = self.encoder.layers.iter_mut().enumerate();
        layers.flat_map(|(index, layer)| {
            let named = move |(path, linear)| (format!("encoder.layers.{index}.{path}"), linear);
            layer.linears_mut().map(named)
        })
    }

    /// Output of hidden layer `layer` (0 = before the first layer); layers above it do not run.
    /// `[images, 3, side, side]` → `[images, tokens, hidden]`, in [`hidden::dtype`]
    pub fn hidden_state(&self, pixels: Tensor<B, 4>, layer: usize) -> Tensor<B, 3> {
        let layers = self.encoder.layers[..layer].iter();
        layers.fold(self.embed(pixels), |hidden, layer| layer.forward(hidden))
    }

    /// Output of every hidden layer (0 = before the first layer), as `output_hidden_states` gives
    /// them. `[images, 3, side, side]` → `[images, tokens, hidden]` each, in [`hidden::dtype`]
    pub fn hidden_states(&self, pixels: Tensor<B, 4>) -> Vec<Tensor<B, 3>> {
        let all: Vec<usize> = (0..=self.encoder.layers.len()).collect();
        self.states_of(pixels, &all)
    }

    /// Outputs of some hidden layers, in their order; layers above the highest do not run.
    /// `[images, 3, side, side]` → `[images, tokens, hidden]` each, in [`hidden::dtype`]
    fn states_of(&self, pixels: Tensor<B, 4>, layers: &[usize]) -> Vec<Tensor<B, 3>> {
        let last = layers.iter().copied().max().unwrap_or(0);
        let mut kept = BTreeMap::new();
        let mut hidden = self.embed(pixels);
        for index in 0..=last {
            if let Some(before) = index.checked_sub(1) {
                hidden = self.encoder.layers[before].forward(hidden);
            }
            if layers.contains(&index) {
                kept.insert(index, hidden.clone());
            }
        }
        let state = |layer| kept.get(layer).cloned();
        layers.iter().filter_map(state).collect()
    }

    /// Image features of some layers, joined along the channels.
    /// `[images, 3, side, side]` → `[images, features, layers · hidden]`, f32
    pub fn features(
        &self,
        pixels: Tensor<B, 4>,
        layers: &[usize],
        select: SelectFeature,
    ) -> Tensor<B, 3> {
        select.of(self.states_of(pixels, layers))
    }

    /// The last layer, normalised. `[images, 3, side, side]` → `[images, tokens, hidden]`, f32
    pub fn last_normed(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let hidden = self.hidden_state(pixels, self.encoder.layers.len());
        let hidden = hidden.cast(DType::F32);
        match &self.post_layernorm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }

    /// One vector for each picture, after the last norm: the pooling head's, else the class token
    /// (what CLIP compares with texts); `None` for a tower with neither.
    /// `[images, 3, side, side]` → `[images, hidden]`
    pub fn pooled(&self, pixels: Tensor<B, 4>) -> Option<Tensor<B, 2>> {
        if let Some(head) = &self.head {
            return Some(head.forward(self.last_normed(pixels)));
        }
        self.embeddings.class_embedding.as_ref()?;
        let hidden = self.last_normed(pixels);
        let [images, _, width] = hidden.dims();
        let class = hidden.slice([0..images, 0..1, 0..width]);
        Some(class.reshape([images, width]))
    }

    /// What the first layer sees. `[images, 3, side, side]` → `[images, tokens, hidden]`, in
    /// [`hidden::dtype`]
    pub fn embed(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let embeddings = &self.embeddings;
        let mut tokens = embeddings.patch_embedding.forward(pixels);
        let [images, _, width] = tokens.dims();
        if let Some(class) = &embeddings.class_embedding {
            let class = class.val().cast(DType::F32).reshape([1, 1, width]);
            tokens = cat(vec![class.expand([images, 1, width]), tokens], 1);
        }
        let positions = embeddings.position_embedding.weight.val().cast(DType::F32);
        let hidden = tokens + positions.unsqueeze();
        let hidden = match &self.pre_layrnorm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        };
        hidden.cast(hidden::dtype::<B>(
            embeddings.patch_embedding.weight.dtype(),
        ))
    }
}

impl SelectFeature {
    /// The tokens of hidden layers that are features, joined along the channels.
    /// `layers` × `[images, tokens, hidden]` → `[images, features, layers · hidden]`, f32
    pub fn of<B: Backend>(self, states: Vec<Tensor<B, 3>>) -> Tensor<B, 3> {
        let chosen = states.into_iter().map(|hidden| {
            let tokens = hidden.dims()[1];
            match self {
                Self::ClsPatch => hidden,
                Self::Patch => hidden.narrow(1, 1, tokens - 1),
            }
        });
        let mut chosen: Vec<Tensor<B, 3>> = chosen.collect();
        let features = match chosen.len() {
            1 => chosen.remove(0),
            _ => cat(chosen, 2),
        };
        features.cast(DType::F32)
    }
}

/// Prepared pictures as the tower's input. `[3 · side · side]` each → `[images, 3, side, side]`
///
/// # Errors
/// If a picture has another size.
pub fn pixel_tensor<B: Backend>(
    images: &[&[f32]],
    side: usize,
    device: &B::Device,
) -> Result<Tensor<B, 4>, ModelError> {
    if let Some(wrong) = images.iter().find(|image| image.len() != 3 * side * side) {
        return Err(ModelError::Argument(format!(
            "an image of {} values was given; the vision tower takes 3 × {side} × {side}",
            wrong.len()
        )));
    }
    let data = TensorData::new(images.concat(), [images.len(), 3, side, side]);
    Ok(Tensor::from_data(data, (device, DType::F32)))
}

impl<B: Backend> PatchEmbedding<B> {
    /// `[images, 3, side, side]` → `[images, patches, hidden]`; pixels beyond the last whole
    /// patch are not seen.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let weight = self.weight.val();
        let [hidden, channels, p, _] = weight.dims();
        let [images, _, height, width] = pixels.dims();
        let (rows, columns) = (height / p, width / p);
        let patches = pixels
            .slice([0..images, 0..channels, 0..rows * p, 0..columns * p])
            .reshape([images, channels, rows, p, columns, p])
            .permute([0, 2, 4, 1, 3, 5]) // [images, rows, columns, channels, p, p]
            .reshape([images * rows * columns, channels * p * p]);
        let mut tokens = product(patches, weight.reshape([hidden, channels * p * p]));
        if let Some(bias) = &self.bias {
            tokens = tokens + bias.val().cast(DType::F32).unsqueeze();
        }
        tokens.reshape([images, rows * columns, hidden])
    }
}
