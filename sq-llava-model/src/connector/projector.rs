//! The projector W from image tokens to the LLM's width, by its Hugging Face name.

use std::marker::PhantomData;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::config::ProjectorConfig;
use crate::connector::cluster::ClusterProjector;
use crate::ops::activation::Activation;
use crate::ops::linear::Linear;

/// `mm_projector`.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A model has one; Burn's modules cannot be boxed.
pub enum Projector<B: Backend> {
    /// Tokens as they are.
    Identity(PhantomData<B>),
    /// One linear.
    Linear(Linear<B>),
    /// Linears with a non-linearity between.
    Mlp(MlpProjector<B>),
    /// The released prototype extractor with its MLP.
    Cluster(ClusterProjector<B>),
}

/// `mlpNx_gelu`.
#[derive(Module, Debug)]
pub struct MlpProjector<B: Backend> {
    /// `mm_projector.0`, `.2`, `.4` … in checkpoints.
    pub layers: Vec<Linear<B>>,
    #[module(skip)]
    act: Activation,
}

impl ProjectorConfig {
    /// A projector between two widths.
    pub fn init<B: Backend>(&self, d_in: usize, d_out: usize, device: &B::Device) -> Projector<B> {
        match self {
            Self::Identity => Projector::Identity(PhantomData),
            Self::Linear { bias } => Projector::Linear(Linear::init(d_in, d_out, *bias, device)),
            Self::Mlp { depth, act, bias } => Projector::Mlp(MlpProjector {
                layers: (0..*depth)
                    .map(|i| {
                        let width = if i == 0 { d_in } else { d_out };
                        Linear::init(width, d_out, *bias, device)
                    })
                    .collect(),
                act: *act,
            }),
            Self::Cluster(config) => Projector::Cluster(config.init(d_in, d_out, device)),
        }
    }
}

impl<B: Backend> Projector<B> {
    /// `[batch, tokens, d_in]` → `[batch, tokens, d_out]`
    pub fn forward(&self, tokens: Tensor<B, 3>) -> Tensor<B, 3> {
        self.project(tokens).0
    }

    /// [`Self::forward`], and the soft assignment of tokens to prototypes, `[batch, K, tokens]`, of a
    /// projector that has prototypes.
    pub fn project(&self, tokens: Tensor<B, 3>) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
        match self {
            Self::Identity(_) => (tokens, None),
            Self::Linear(linear) => (linear.forward(tokens), None),
            Self::Mlp(mlp) => (mlp.forward(tokens), None),
            Self::Cluster(cluster) => cluster.project(tokens, None),
        }
    }
}

impl<B: Backend> MlpProjector<B> {
    /// `[batch, tokens, d_in]` → `[batch, tokens, d_out]`
    pub fn forward(&self, mut hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        for (index, linear) in self.layers.iter().enumerate() {
            if index > 0 {
                hidden = self.act.forward(hidden);
            }
            hidden = linear.forward(hidden);
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn a_projector_has_the_parameters_that_are_counted() {
        for name in ["identity", "linear", "mlp2x_gelu", "mlp4x_gelu", "cluster"] {
            let config = ProjectorConfig::from_name(name, None).unwrap();
            assert_eq!(config.name(), name);
            let projector = config.init::<Flex>(24, 40, &Default::default());
            let tokens = Tensor::zeros([2, 9, 24], &Default::default());
            if name != "identity" {
                assert_eq!(projector.forward(tokens).dims(), [2, 9, 40], "{name}");
            }
            assert_eq!(projector.num_params(), config.parameters(24, 40), "{name}");
        }
    }
}
