//! CLIP vision transformer (`modeling_clip.py` in transformers).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::config::{SelectFeature, VisionConfig};
use crate::error::ModelError;
use crate::ops::activation::Activation;
use crate::ops::attention::{AttentionMask, attention, join_heads, split_heads};
use crate::ops::cat::cat;
use crate::ops::embedding::Embedding;
use crate::ops::linear::{Linear, product};
use crate::ops::norm::LayerNorm;

/// The vision tower; keys as under `vision_model.`.
#[derive(Module, Debug)]
pub struct VisionTower<B: Backend> {
    /// Class token, patches and positions.
    pub embeddings: VisionEmbeddings<B>,
    /// Norm before the first layer (spelled so in checkpoints).
    pub pre_layrnorm: Option<LayerNorm<B>>,
    /// Layers.
    pub encoder: Encoder<B>,
    /// Norm of the pooled output; no image feature of LLaVA passes through it.
    pub post_layernorm: Option<LayerNorm<B>>,
}

/// Class token, patches and positions.
#[derive(Module, Debug)]
pub struct VisionEmbeddings<B: Backend> {
    /// `[hidden]`.
    pub class_embedding: Param<Tensor<B, 1>>,
    /// Patches to tokens.
    pub patch_embedding: PatchEmbedding<B>,
    /// `[patches + 1, hidden]`.
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

/// The layers of a tower.
#[derive(Module, Debug)]
pub struct Encoder<B: Backend> {
    /// Layers in order.
    pub layers: Vec<EncoderLayer<B>>,
}

/// One encoder layer.
#[derive(Module, Debug)]
pub struct EncoderLayer<B: Backend> {
    /// Norm before the attention.
    pub layer_norm1: LayerNorm<B>,
    /// Attention.
    pub self_attn: EncoderAttention<B>,
    /// Norm before the MLP.
    pub layer_norm2: LayerNorm<B>,
    /// MLP.
    pub mlp: EncoderMlp<B>,
}

/// Multi-head attention with biases.
#[derive(Module, Debug)]
pub struct EncoderAttention<B: Backend> {
    /// Queries.
    pub q_proj: Linear<B>,
    /// Keys.
    pub k_proj: Linear<B>,
    /// Values.
    pub v_proj: Linear<B>,
    /// Output.
    pub out_proj: Linear<B>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    causal: bool,
}

/// `fc2(act(fc1(x)))`.
#[derive(Module, Debug)]
pub struct EncoderMlp<B: Backend> {
    /// Up.
    pub fc1: Linear<B>,
    /// Down.
    pub fc2: Linear<B>,
    #[module(skip)]
    act: Activation,
}

/// Paths of a layer's linears in the layer.
const LINEARS: [&str; 6] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
];

/// Sizes of the layers of a tower, of images or of text.
pub struct LayerSizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Attention heads.
    pub heads: usize,
    /// Non-linearity of the MLP.
    pub act: Activation,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Whether a token sees only those before it.
    pub causal: bool,
}

impl LayerSizes {
    /// Layers with lazily drawn weights.
    pub fn init<B: Backend>(&self, layers: usize, device: &B::Device) -> Encoder<B> {
        let (h, i) = (self.hidden, self.intermediate);
        let norm = || LayerNorm::init(h, self.eps, device);
        let linear = |d_in, d_out| Linear::init(d_in, d_out, true, device);
        let layer = |_| EncoderLayer {
            layer_norm1: norm(),
            self_attn: EncoderAttention {
                q_proj: linear(h, h),
                k_proj: linear(h, h),
                v_proj: linear(h, h),
                out_proj: linear(h, h),
                heads: self.heads,
                causal: self.causal,
            },
            layer_norm2: norm(),
            mlp: EncoderMlp {
                fc1: linear(h, i),
                fc2: linear(i, h),
                act: self.act,
            },
        };
        Encoder {
            layers: (0..layers).map(layer).collect(),
        }
    }
}

impl VisionConfig {
    /// A tower with lazily drawn weights.
    pub fn init<B: Backend>(&self, device: &B::Device) -> VisionTower<B> {
        let (h, p, eps) = (self.hidden_size, self.patch_size, self.layer_norm_eps);
        let norm = || LayerNorm::init(h, eps, device);
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        let layers = LayerSizes {
            hidden: h,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            act: self.hidden_act,
            eps,
            causal: false,
        };
        VisionTower {
            embeddings: VisionEmbeddings {
                class_embedding: normal.init([h], device),
                patch_embedding: PatchEmbedding {
                    weight: normal.init([h, 3, p, p], device),
                    bias: self
                        .patch_bias
                        .then(|| Initializer::Zeros.init([h], device)),
                },
                position_embedding: Embedding::init(
                    self.num_patches().saturating_add(1),
                    h,
                    device,
                ),
            },
            pre_layrnorm: self.pre_layernorm.then(norm),
            encoder: layers.init(self.num_hidden_layers, device),
            post_layernorm: self.post_layernorm.then(norm),
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
    /// `[images, 3, side, side]` → `[images, patches + 1, hidden]`, f32
    pub fn hidden_state(&self, pixels: Tensor<B, 4>, layer: usize) -> Tensor<B, 3> {
        let mut hidden = self.embed(pixels);
        for block in &self.encoder.layers[..layer] {
            hidden = block.forward(hidden);
        }
        hidden
    }

    /// Output of every hidden layer, as `output_hidden_states` gives them.
    pub fn hidden_states(&self, pixels: Tensor<B, 4>) -> Vec<Tensor<B, 3>> {
        let mut states = vec![self.embed(pixels)];
        for block in &self.encoder.layers {
            let last = states[states.len() - 1].clone();
            states.push(block.forward(last));
        }
        states
    }

    /// Image features of a layer. `[images, 3, side, side]` → `[images, features, hidden]`
    pub fn features(
        &self,
        pixels: Tensor<B, 4>,
        layer: usize,
        select: SelectFeature,
    ) -> Tensor<B, 3> {
        select.of(self.hidden_state(pixels, layer))
    }

    /// The class token behind the last layer and its norm; what CLIP compares with texts.
    /// `[images, 3, side, side]` → `[images, hidden]`
    pub fn pooled(&self, pixels: Tensor<B, 4>) -> Tensor<B, 2> {
        let hidden = self.hidden_state(pixels, self.encoder.layers.len());
        let [images, _, width] = hidden.dims();
        let class = hidden.slice([0..images, 0..1, 0..width]);
        let class = class.reshape([images, width]);
        match &self.post_layernorm {
            Some(norm) => norm.forward(class),
            None => class,
        }
    }

    /// What the first layer sees. `[images, 3, side, side]` → `[images, patches + 1, hidden]`, f32
    pub fn embed(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let embeddings = &self.embeddings;
        let patches = embeddings.patch_embedding.forward(pixels);
        let [images, _, width] = patches.dims();
        let class = embeddings.class_embedding.val().cast(DType::F32);
        let class = class.reshape([1, 1, width]).expand([images, 1, width]);
        let positions = embeddings.position_embedding.weight.val().cast(DType::F32);
        let hidden = cat(vec![class, patches], 1) + positions.unsqueeze();
        match &self.pre_layrnorm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }
}

impl SelectFeature {
    /// The tokens of a hidden layer that are features. `[images, patches + 1, hidden]` →
    /// `[images, features, hidden]`
    pub fn of<B: Backend>(self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [images, tokens, width] = hidden.dims();
        match self {
            Self::ClsPatch => hidden,
            Self::Patch => hidden.slice([0..images, 1..tokens, 0..width]),
        }
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

impl<B: Backend> EncoderLayer<B> {
    /// The linears that can be adapted, by their paths in the layer.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear<B>)> {
        let (a, m) = (&self.self_attn, &self.mlp);
        LINEARS
            .into_iter()
            .zip([&a.q_proj, &a.k_proj, &a.v_proj, &a.out_proj, &m.fc1, &m.fc2])
    }

    /// [`Self::linears`], to change them.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear<B>)> {
        let (a, m) = (&mut self.self_attn, &mut self.mlp);
        LINEARS.into_iter().zip([
            &mut a.q_proj,
            &mut a.k_proj,
            &mut a.v_proj,
            &mut a.out_proj,
            &mut m.fc1,
            &mut m.fc2,
        ])
    }

    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let normed = self.layer_norm1.forward(hidden.clone());
        let hidden = hidden + self.self_attn.forward(normed);
        let normed = self.layer_norm2.forward(hidden.clone());
        hidden + self.mlp.forward(normed)
    }
}

impl<B: Backend> EncoderAttention<B> {
    /// `[images, tokens, hidden]` → `[images, tokens, hidden]`
    pub fn forward(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let query = split_heads(self.q_proj.forward(hidden.clone()), self.heads);
        let key = split_heads(self.k_proj.forward(hidden.clone()), self.heads);
        let value = split_heads(self.v_proj.forward(hidden), self.heads);
        let mask = match self.causal {
            true => AttentionMask::Causal,
            false => AttentionMask::Full,
        };
        let output = attention(query, key, value, &mask);
        self.out_proj.forward(join_heads(output))
    }
}

impl<B: Backend> EncoderMlp<B> {
    /// `[images, tokens, hidden]` → `[images, tokens, hidden]`
    pub fn forward(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.fc2.forward(self.act.forward(self.fc1.forward(hidden)))
    }
}
