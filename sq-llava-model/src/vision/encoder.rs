//! The layers of a tower, of pictures or of texts (`modeling_clip.py`, `modeling_siglip.py` and
//! `modeling_dinov2.py` in transformers).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::ops::activation::Activation;
use crate::ops::attention::{AttentionMask, attention, join_heads, split_heads};
use crate::ops::linear::{Linear, together};
use crate::ops::norm::LayerNorm;
use crate::ops::residual::{add, add_scaled};

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
    /// Factors of the attention's output, in DINOv2.
    pub layer_scale1: Option<LayerScale<B>>,
    /// Norm before the MLP.
    pub layer_norm2: LayerNorm<B>,
    /// MLP.
    pub mlp: EncoderMlp<B>,
    /// Factors of the MLP's output, in DINOv2.
    pub layer_scale2: Option<LayerScale<B>>,
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

/// `fc2(act(fc1(x)))`; gated, `fc1` makes gate and value: `fc2(act(gate) · value)`.
#[derive(Module, Debug)]
pub struct EncoderMlp<B: Backend> {
    /// Widens to the intermediate size.
    pub fc1: Linear<B>,
    /// Narrows to the hidden size.
    pub fc2: Linear<B>,
    #[module(skip)]
    act: Activation,
    #[module(skip)]
    gated: bool,
}

/// A factor for each channel.
#[derive(Module, Debug)]
pub struct LayerScale<B: Backend> {
    /// `[hidden]`.
    pub lambda1: Param<Tensor<B, 1>>,
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
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the outputs of attention and MLP are scaled.
    pub layer_scale: bool,
    /// Whether the MLP is gated.
    pub gated: bool,
}

impl LayerSizes {
    /// Layers with lazily drawn weights.
    pub fn init<B: Backend>(&self, layers: usize, device: &B::Device) -> Encoder<B> {
        let h = self.hidden;
        let norm = || LayerNorm::init(h, self.eps, device);
        let linear = |bias| Linear::init(h, h, bias, device);
        let scale = || {
            let lambda1 = Initializer::Ones.init([h], device);
            self.layer_scale.then_some(LayerScale { lambda1 })
        };
        let layer = |_| EncoderLayer {
            layer_norm1: norm(),
            self_attn: EncoderAttention {
                q_proj: linear(self.qkv_bias),
                k_proj: linear(self.qkv_bias),
                v_proj: linear(self.qkv_bias),
                out_proj: linear(true),
                heads: self.heads,
                causal: self.causal,
            },
            layer_scale1: scale(),
            layer_norm2: norm(),
            mlp: self.mlp(device),
            layer_scale2: scale(),
        };
        Encoder {
            layers: (0..layers).map(layer).collect(),
        }
    }

    /// An MLP with lazily drawn weights.
    pub(super) fn mlp<B: Backend>(&self, device: &B::Device) -> EncoderMlp<B> {
        let (h, i) = (self.hidden, self.intermediate);
        let up = if self.gated { 2 * i } else { i };
        EncoderMlp {
            fc1: Linear::init(h, up, true, device),
            fc2: Linear::init(i, h, true, device),
            act: self.act,
            gated: self.gated,
        }
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

    /// [`Self::linears`], mutable.
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
        let hidden = added(
            hidden,
            self.self_attn.forward(normed),
            self.layer_scale1.as_ref(),
        );
        let normed = self.layer_norm2.forward(hidden.clone());
        added(hidden, self.mlp.forward(normed), self.layer_scale2.as_ref())
    }
}

/// A layer's input and what is added to it. `[batch, tokens, hidden]` each
fn added<B: Backend>(
    hidden: Tensor<B, 3>,
    output: Tensor<B, 3>,
    scale: Option<&LayerScale<B>>,
) -> Tensor<B, 3> {
    match scale {
        Some(scale) => {
            let factors = scale.lambda1.val().cast(hidden.dtype());
            add_scaled(hidden, output, factors)
        }
        None => add(hidden, output),
    }
}

impl<B: Backend> EncoderAttention<B> {
    /// `[images, tokens, hidden]` → `[images, tokens, hidden]`
    pub fn forward(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let projected = together([&self.q_proj, &self.k_proj, &self.v_proj], hidden);
        let [query, key, value] = projected.map(|joined| split_heads(joined, self.heads));
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
        let up = self.fc1.forward(hidden);
        let inner = match self.gated {
            false => self.act.forward(up),
            true => {
                let width = up.dims()[2] / 2;
                let [gate, value] = [0, width].map(|at| up.clone().narrow(2, at, width));
                self.act.gated(gate, value)
            }
        };
        self.fc2.forward(inner)
    }
}
