//! How the towers learn: the layers' matrices by Muon, all else by AdamW. With AdamW alone the
//! language model takes four to five times as many steps until it finds a phrase of the table.

use burn::grad_clipping::GradientClippingConfig;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param, ParamId};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamW, AdamWConfig, AdjustLrFn, GradientsParams, Muon, MuonConfig, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// Part of a parameter that its learning rate takes away at each step.
const WEIGHT_DECAY: f32 = 0.01;

/// Peak learning rates.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Of the layers' matrices.
    pub matrices: f64,
    /// Of embeddings, norms and heads.
    pub others: f64,
}

/// The two optimizers of a module.
pub struct Optimizers<B: AutodiffBackend, M: AutodiffModule<B>> {
    rates: Rates,
    matrices: Vec<ParamId>,
    muon: OptimizerAdaptor<Muon<B::InnerBackend>, M, B>,
    adamw: OptimizerAdaptor<AdamW, M, B>,
}

impl<B: AutodiffBackend, M: AutodiffModule<B>> Optimizers<B, M> {
    /// For a module with these layers.
    pub fn new<L: Module<B>>(rates: Rates, layers: &L) -> Self {
        let mut matrices = Matrices(Vec::new());
        layers.visit(&mut matrices);
        let clipping = Some(GradientClippingConfig::Norm(1.0));
        Self {
            rates,
            matrices: matrices.0,
            muon: MuonConfig::new()
                .with_weight_decay(Some(WeightDecayConfig::new(WEIGHT_DECAY)))
                .with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW)
                .init(),
            adamw: AdamWConfig::new()
                .with_weight_decay(WEIGHT_DECAY)
                .with_epsilon(1e-8)
                .with_beta_2(0.98)
                .with_grad_clipping(clipping)
                .init(),
        }
    }

    /// One step at this part of the peak rates.
    pub fn step(&mut self, part: f64, module: M, mut grads: B::Gradients) -> M {
        let matrices = GradientsParams::from_params(&mut grads, &module, &self.matrices);
        let others = GradientsParams::from_module(&mut grads, &module);
        let module = self.muon.step(part * self.rates.matrices, module, matrices);
        self.adamw.step(part * self.rates.others, module, others)
    }
}

/// Collects the parameters that are matrices.
struct Matrices(Vec<ParamId>);

impl<B: Backend> ModuleVisitor<B> for Matrices {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if D == 2 {
            self.0.push(param.id);
        }
    }
}

/// Part of the peak learning rate at a step: a short rise, then a cosine to a tenth.
pub fn rate(step: usize, steps: usize) -> f64 {
    let warmup = (steps / 20).max(1);
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let part = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
    0.1 + 0.45 * (1.0 + (std::f64::consts::PI * part).cos())
}
