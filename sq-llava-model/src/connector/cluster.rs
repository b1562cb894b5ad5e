//! The prototype extractor of the released checkpoints, with its own MLP
//! (`mm_projector_type: cluster`).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Int, Tensor, TensorData, activation, backend::Backend};

use crate::config::ClusterConfig;
use crate::ops::activation::Activation;
use crate::ops::linear::Linear;
use crate::ops::matmul::matmul;
use crate::ops::norm::{LayerNorm, normalize};
use crate::ops::residual;
use crate::ops::softmax::softmax;

/// Clusters of image tokens, given back to the tokens, and an MLP to the LLM's width.
#[derive(Module, Debug)]
pub struct ClusterProjector<B: Backend> {
    /// α, `[1, 1, 1]`.
    pub sim_alpha: Param<Tensor<B, 3>>,
    /// β, `[1, 1, 1]`.
    pub sim_beta: Param<Tensor<B, 3>>,
    /// Centres to queries.
    pub c: Linear<B>,
    /// Tokens to the values that are compared.
    pub v: Linear<B>,
    /// Tokens to the features that are gathered.
    pub f: Linear<B>,
    /// In the checkpoints but unused by the released forward pass.
    pub ln_1: LayerNorm<B>,
    /// `mlp.0` and `mlp.2`.
    pub mlp: Vec<Linear<B>>,
    #[module(skip)]
    num_latents: usize,
    #[module(skip)]
    num_iterations: usize,
}

impl ClusterConfig {
    /// A projector between two widths.
    pub fn init<B: Backend>(
        &self,
        d_in: usize,
        d_out: usize,
        device: &B::Device,
    ) -> ClusterProjector<B> {
        let linear = |i, o| Linear::init(i, o, true, device);
        ClusterProjector {
            sim_alpha: Initializer::Ones.init([1, 1, 1], device),
            sim_beta: Initializer::Zeros.init([1, 1, 1], device),
            c: linear(d_in, d_in),
            v: linear(d_in, d_in),
            f: linear(d_in, d_in),
            ln_1: LayerNorm::init(d_in, 1e-5, device),
            mlp: vec![linear(d_in, d_out), linear(d_out, d_out)],
            num_latents: self.num_latents,
            num_iterations: self.num_iterations,
        }
    }
}

impl<B: Backend> ClusterProjector<B> {
    /// `[batch, tokens, d_in]` → `[batch, tokens, d_out]`
    pub fn forward(&self, tokens: Tensor<B, 3>) -> Tensor<B, 3> {
        self.project(tokens, None).0
    }

    /// The forward pass with a given assignment of tokens to centres, `[batch, tokens]`, or, with
    /// `None`, the nearest centre's; and the soft assignment of its last step, `[batch, K, tokens]`,
    /// `None` if it takes none.
    pub fn project(
        &self,
        tokens: Tensor<B, 3>,
        assignment: Option<Tensor<B, 2, Int>>,
    ) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
        let features = self.f.forward(tokens.clone()); // F, [batch, tokens, d]
        let (centers, soft) = self.centers_of(tokens.clone(), features.clone());

        // S[k, l] = σ(β + α cos(C_k, x_l)), kept for the token's best centre only.
        let directions = normalize(tokens.clone(), 2).swap_dims(1, 2);
        let cosine = matmul(normalize(centers, 2), directions, 1.0);
        let similarity = activation::sigmoid(cosine * self.sim_alpha.val() + self.sim_beta.val());
        let assignment =
            assignment.unwrap_or_else(|| similarity.clone().detach().argmax(1).squeeze_dim(1));
        let latents = Tensor::<B, 1, Int>::arange(0..self.num_latents as i64, &tokens.device());
        let chosen = latents
            .reshape([1, self.num_latents as i32, 1])
            .equal(assignment.unsqueeze_dim::<3>(1))
            .float()
            .cast(tokens.dtype()); // [batch, K, tokens]
        let counts = chosen.clone().sum_dim(2); // n_k, [batch, K, 1]
        let similarity = similarity * chosen;

        // A_k = (Σ_l S F_l + P_k) / (n_k + 1); out_l = x_l + Σ_k S A_k.
        let pooled = self.pool(features.clone());
        let gathered = matmul(similarity.clone(), features, 1.0) + pooled;
        let gathered = gathered / counts.add_scalar(1.0);
        let given = matmul(similarity.swap_dims(1, 2), gathered, 1.0);
        let mut hidden = residual::add(tokens, given);

        for (index, linear) in self.mlp.iter().enumerate() {
            if index > 0 {
                hidden = Activation::QuickGelu.forward(hidden);
            }
            hidden = linear.forward(hidden);
        }
        (hidden, soft)
    }

    /// Centres after T steps. `[batch, tokens, d]` → `[batch, K, d]`
    pub fn centers(&self, tokens: Tensor<B, 3>) -> Tensor<B, 3> {
        let features = self.f.forward(tokens.clone());
        self.centers_of(tokens, features).0
    }

    /// Centres after T steps, and M of the last one.
    fn centers_of(
        &self,
        tokens: Tensor<B, 3>,
        features: Tensor<B, 3>,
    ) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
        // The value path is normalised over the tokens, not over its width.
        let values = normalize(self.v.forward(tokens.clone()), 1);
        let mut centers = self.pool(tokens);
        let mut last = None;
        for _ in 0..self.num_iterations {
            let queries = normalize(self.c.forward(centers), 2);
            // Scores stand so that the softmax over the centres runs along rows.
            let scores = matmul(values.clone(), queries.swap_dims(1, 2), 1.0);
            let assignment = softmax(scores).swap_dims(1, 2); // [batch, K, tokens]
            centers = matmul(assignment.clone(), features.clone(), 1.0);
            last = Some(assignment);
        }
        (centers, last)
    }

    /// Adaptive average pooling over tokens as one product. `[batch, tokens, d]` → `[batch, K, d]`
    fn pool(&self, tokens: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, length, _] = tokens.dims();
        let k = self.num_latents;
        let mut weights = vec![0.0f32; k * length];
        for (row, bin) in weights.chunks_exact_mut(length).enumerate() {
            let (start, end) = (row * length / k, ((row + 1) * length).div_ceil(k));
            bin[start..end].fill(1.0 / (end - start) as f32);
        }
        let pool =
            Tensor::<B, 2>::from_data(TensorData::new(weights, [k, length]), &tokens.device());
        let pool = pool.cast(tokens.dtype()).unsqueeze::<3>();
        matmul(pool.expand([batch, k, length]), tokens, 1.0)
    }
}
