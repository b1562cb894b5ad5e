//! The paper's prototype extractor φ (section 3.2): image tokens are enriched with K cluster
//! centres found by T steps of expectation maximisation.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::config::{AssignmentSoftmax, PrototypeConfig};
use crate::ops::draws::normal;
use crate::ops::draws::shared_key;
use crate::ops::linear::Linear;
use crate::ops::matmul::matmul;
use crate::ops::norm::normalize;
use crate::ops::residual;
use crate::ops::softmax::softmax;

/// φ.
#[derive(Module, Debug)]
pub struct PrototypeExtractor<B: Backend> {
    /// Centres to queries.
    pub q: Linear<B>,
    /// Tokens to keys.
    pub k: Linear<B>,
    /// Tokens to values.
    pub v: Linear<B>,
    /// Mixed centres back to tokens.
    pub z: Linear<B>,
    /// Initial centres `[K, hidden]`; a buffer that does not train.
    pub centers: Param<Tensor<B, 2>>,
    #[module(skip)]
    num_iterations: usize,
    #[module(skip)]
    softmax: AssignmentSoftmax,
    #[module(skip)]
    scaled: bool,
    #[module(skip)]
    redraw_centers: bool,
}

/// Everything that the extractor computes.
#[derive(Debug, Clone)]
pub struct Prototypes<B: Backend> {
    /// Enriched tokens `[batch, tokens, hidden]`.
    pub tokens: Tensor<B, 3>,
    /// Centres after the last step `[batch, K, hidden]`.
    pub centers: Tensor<B, 3>,
    /// Soft assignment of the last step `[batch, K, tokens]`; the similarity if there is no step.
    pub assignment: Tensor<B, 3>,
    /// `cos(Z, C)`, `[batch, tokens, K]`.
    pub similarity: Tensor<B, 3>,
}

impl PrototypeConfig {
    /// An extractor whose initial centres are a seeded normal draw.
    pub fn init<B: Backend>(&self, device: &B::Device) -> PrototypeExtractor<B> {
        let d = self.hidden_size;
        let linear = || Linear::init(d, d, true, device);
        let centers = normal::<B>(self.num_centers, d, self.seed, device);
        PrototypeExtractor {
            q: linear(),
            k: linear(),
            v: linear(),
            z: linear(),
            centers: Param::from_tensor(centers).set_require_grad(false),
            num_iterations: self.num_iterations,
            softmax: self.softmax,
            scaled: self.scaled,
            redraw_centers: self.redraw_centers,
        }
    }
}

impl<B: Backend> PrototypeExtractor<B> {
    /// `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    pub fn forward(&self, tokens: Tensor<B, 3>) -> Tensor<B, 3> {
        self.extract(tokens).tokens
    }

    /// Whether it takes a step, and so assigns tokens to centres.
    pub fn assigns(&self) -> bool {
        self.num_iterations > 0
    }

    /// The forward pass with its intermediate results. `[batch, tokens, hidden]`
    pub fn extract(&self, tokens: Tensor<B, 3>) -> Prototypes<B> {
        let [batch, _, hidden] = tokens.dims();
        let num_centers = self.centers.lazy_shape()[0];
        let keys = self.k.forward(tokens.clone()); // [batch, tokens, hidden]
        let values = self.v.forward(tokens.clone()); // [batch, tokens, hidden]
        let each = [batch, num_centers, hidden];
        let initial = self.initial_centers(&tokens);
        let mut centers = initial.clone().unsqueeze::<3>().expand(each);
        let mut assignment = None;
        let scale = match self.scaled {
            true => 1.0 / (hidden as f64).sqrt(),
            false => 1.0,
        };
        for step in 0..self.num_iterations {
            let queries = match step {
                // The same for every sample.
                0 => self
                    .q
                    .forward(initial.clone())
                    .unsqueeze::<3>()
                    .expand(each),
                _ => self.q.forward(centers),
            };
            // E: how much each token belongs to each centre. Scores stand so that the softmax runs
            // along rows; m is [batch, K, tokens].
            let m = match self.softmax {
                AssignmentSoftmax::Clusters => {
                    let scores = matmul(keys.clone(), queries.swap_dims(1, 2), scale);
                    softmax(scores).swap_dims(1, 2)
                }
                AssignmentSoftmax::Tokens => {
                    let scores = matmul(queries, keys.clone().swap_dims(1, 2), scale);
                    softmax(scores)
                }
            };
            // M: centres are the tokens' values, weighted.
            centers = matmul(m.clone(), values.clone(), 1.0);
            assignment = Some(m);
        }

        // Z ← Z + z(1/K Σ_j cos(C_j, Z) C_j)
        let directions = normalize(centers.clone(), 2).swap_dims(1, 2);
        let similarity = matmul(normalize(tokens.clone(), 2), directions, 1.0);
        let mixed = matmul(
            similarity.clone(),
            centers.clone(),
            1.0 / num_centers as f64,
        );
        let assignment = assignment.unwrap_or_else(|| similarity.clone().swap_dims(1, 2));
        Prototypes {
            tokens: residual::add(tokens, self.z.forward(mixed)),
            centers,
            assignment,
            similarity,
        }
    }

    fn initial_centers(&self, tokens: &Tensor<B, 3>) -> Tensor<B, 2> {
        let centers = match shared_key().filter(|_| self.redraw_centers) {
            // A training step: one draw for all of it.
            Some(key) => {
                let [rows, width] = self.centers.lazy_shape().dims();
                normal::<B>(rows, width, key, &tokens.device())
            }
            None => self.centers.val(),
        };
        centers.cast(tokens.dtype())
    }
}
