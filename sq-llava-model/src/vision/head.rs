//! SigLIP's head: one learnt query pools the patches (`SiglipMultiheadAttentionPoolingHead`
//! in transformers).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::encoder::{EncoderMlp, LayerSizes};
use crate::ops::attention::{AttentionMask, attention, join_heads, split_heads};
use crate::ops::linear::{Linear, product};
use crate::ops::norm::LayerNorm;

/// The head; keys as under `vision_model.head.`.
#[derive(Module, Debug)]
pub struct PoolingHead<B: Backend> {
    /// The query, `[1, 1, hidden]`.
    pub probe: Param<Tensor<B, 3>>,
    /// Attention of the query over the patches.
    pub attention: ProbeAttention<B>,
    /// Norm before the MLP.
    pub layernorm: LayerNorm<B>,
    /// MLP.
    pub mlp: EncoderMlp<B>,
}

/// PyTorch's `MultiheadAttention`: the rows of one matrix make queries, keys and values.
#[derive(Module, Debug)]
pub struct ProbeAttention<B: Backend> {
    /// `[3 · hidden, hidden]`.
    pub in_proj_weight: Param<Tensor<B, 2>>,
    /// `[3 · hidden]`.
    pub in_proj_bias: Param<Tensor<B, 1>>,
    /// Output.
    pub out_proj: Linear<B>,
    #[module(skip)]
    heads: usize,
}

impl<B: Backend> PoolingHead<B> {
    /// A head with lazily drawn weights, for a tower of such layers.
    pub(super) fn init(sizes: &LayerSizes, device: &B::Device) -> Self {
        let h = sizes.hidden;
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        Self {
            probe: normal.init([1, 1, h], device),
            attention: ProbeAttention {
                in_proj_weight: normal.init([3 * h, h], device),
                in_proj_bias: Initializer::Zeros.init([3 * h], device),
                out_proj: Linear::init(h, h, true, device),
                heads: sizes.heads,
            },
            layernorm: LayerNorm::init(h, sizes.eps, device),
            mlp: sizes.mlp(device),
        }
    }

    /// `[images, patches, hidden]` → `[images, hidden]`
    pub fn forward(&self, patches: Tensor<B, 3>) -> Tensor<B, 2> {
        let [images, _, width] = patches.dims();
        let probe = self.probe.val().cast(DType::F32);
        let pooled = self
            .attention
            .forward(probe.expand([images, 1, width]), patches);
        let normed = self.layernorm.forward(pooled.clone());
        let pooled = pooled + self.mlp.forward(normed);
        pooled.reshape([images, width])
    }
}

impl<B: Backend> ProbeAttention<B> {
    /// `[images, queries, hidden]`, `[images, patches, hidden]` → `[images, queries, hidden]`
    fn forward(&self, queries: Tensor<B, 3>, patches: Tensor<B, 3>) -> Tensor<B, 3> {
        let query = split_heads(self.project(0, queries), self.heads);
        let key = split_heads(self.project(1, patches.clone()), self.heads);
        let value = split_heads(self.project(2, patches), self.heads);
        let output = attention(query, key, value, &AttentionMask::Full);
        self.out_proj.forward(join_heads(output))
    }

    /// The product with the `part`-th third of the matrix. `[images, tokens, hidden]` → the same
    fn project(&self, part: usize, input: Tensor<B, 3>) -> Tensor<B, 3> {
        let [images, tokens, width] = input.dims();
        let weight = self.in_proj_weight.val().narrow(0, part * width, width);
        let bias = self.in_proj_bias.val().narrow(0, part * width, width);
        let rows = product(input.reshape([images * tokens, width]), weight);
        let rows = rows + bias.cast(DType::F32).unsqueeze();
        rows.reshape([images, tokens, width])
    }
}
