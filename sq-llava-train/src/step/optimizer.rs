//! AdamW over three groups of parameters with a learning rate each, and clipping by the norm of
//! all gradients together.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::record::AdaptorRecord;
use burn::optim::{
    AdamW, AdamWState, AdaptiveMomentumState, GradientsParams, MultiGradientsParams, Optimizer,
};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use sq_llava_model::ops::adamw::{AdamWStep, AdamWSteps, Stepped};
use sq_llava_model::ops::square_sums::SquareSums;

use crate::error::TrainError;
use crate::recipe::StageRecipe;
use crate::step::groups::{ParamGroup, ParamGroups};
use crate::step::moments::{self, Moments};

/// What the last step did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepNorms {
    /// Norm of the gradients of each group, before clipping.
    pub groups: [f64; 3],
    /// Norm of all of them together.
    pub total: f64,
}

impl StepNorms {
    /// Whether the step was taken: with a gradient that is not a number it is not.
    pub fn is_finite(&self) -> bool {
        self.total.is_finite()
    }
}

/// The optimizer. The Learner keeps it for itself, so what others must see (moments, norms) is
/// behind a handle that clones share.
#[derive(Clone)]
pub struct GroupedAdamW<B: AutodiffBackend> {
    /// What all steps have in common.
    step: AdamWStep,
    groups: Arc<ParamGroups>,
    /// Peak learning rate of each group.
    rates: [f64; 3],
    clip_norm: f64,
    state: Arc<Mutex<State<B>>>,
}

struct State<B: AutodiffBackend> {
    moments: HashMap<ParamId, Moments<B>>,
    norms: StepNorms,
}

impl<B: AutodiffBackend> GroupedAdamW<B> {
    /// AdamW with a stage's settings over the parameters of `groups`.
    pub fn new(stage: &StageRecipe, groups: Arc<ParamGroups>) -> Self {
        let step = AdamWStep {
            rate: 0.0,
            beta_1: stage.betas[0] as f32,
            beta_2: stage.betas[1] as f32,
            epsilon: stage.eps as f32,
            weight_decay: stage.weight_decay,
            time: 0,
            grad_scale: 1.0,
        };
        Self {
            step,
            groups,
            rates: [stage.lr_llm, stage.lr_projector, stage.lr_vision],
            clip_norm: stage.clip_norm,
            state: Arc::new(Mutex::new(State {
                moments: HashMap::new(),
                norms: StepNorms::default(),
            })),
        }
    }

    /// Norms of the last step.
    pub fn norms(&self) -> StepNorms {
        self.lock().norms
    }

    /// Writes the moments of a model's parameters into a checkpoint.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn save<M: Module<B>>(&self, directory: &Path, model: &M) -> Result<(), TrainError> {
        moments::write(directory, model, &self.groups, &self.lock().moments)
    }

    /// Goes on with the moments of a checkpoint, for the same parameters in this process.
    ///
    /// # Errors
    /// If the file is damaged or of another model.
    pub(crate) fn restore<M: Module<B>>(
        &self,
        directory: &Path,
        model: &M,
    ) -> Result<(), TrainError> {
        self.lock().moments = moments::read(directory, model, &self.groups)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        // A panic elsewhere leaves whole moments behind: they are replaced, never edited.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply<M: AutodiffModule<B>>(&self, factor: f64, module: M, grads: GradientsParams) -> M {
        let mut norm = NormVisitor::<B> {
            grads: &grads,
            groups: &self.groups,
            squares: SquareSums::new(),
        };
        module.visit(&mut norm);
        let squares = norm.squares.finish();
        let total = squares.iter().sum::<f64>().sqrt();
        let mut state = self.lock();
        state.norms = StepNorms {
            groups: squares.map(f64::sqrt),
            total,
        };
        if !total.is_finite() {
            return module;
        }
        // As torch.nn.utils.clip_grad_norm_.
        let clip = (self.clip_norm > 0.0 && total > self.clip_norm)
            .then(|| self.clip_norm / (total + 1e-6));
        let mut step = Step {
            optimizer: self,
            moments: &mut state.moments,
            grads,
            factor,
            clip,
            together: AdamWSteps::new(),
            waiting: HashMap::new(),
        };
        let module = module.map(&mut step);
        let Step {
            together, waiting, ..
        } = step;
        module.map(&mut PutBack {
            moments: &mut state.moments,
            stepped: together.apply(),
            waiting,
        })
    }
}

impl<M: AutodiffModule<B>, B: AutodiffBackend> Optimizer<M, B> for GroupedAdamW<B> {
    type Record = <OptimizerAdaptor<AdamW, M, B> as Optimizer<M, B>>::Record;

    /// `factor` is the schedule's, by which each group's own rate is multiplied.
    fn step(&mut self, factor: f64, module: M, grads: GradientsParams) -> M {
        self.apply(factor, module, grads)
    }

    fn step_multi(&mut self, factor: f64, module: M, mut grads: MultiGradientsParams) -> M {
        let mut merge = Merge::<B> {
            from: &mut grads,
            into: GradientsParams::new(),
            backend: std::marker::PhantomData,
        };
        module.visit(&mut merge);
        let merged = merge.into;
        self.apply(factor, module, merged)
    }

    fn to_record(&self) -> Self::Record {
        let state = self.lock();
        state
            .moments
            .iter()
            .map(|(id, m)| (*id, m.clone()))
            .collect()
    }

    fn load_record(self, record: Self::Record) -> Self {
        self.lock().moments = record.into_iter().collect();
        self
    }
}

/// Sums of the squares of the gradients, by group.
struct NormVisitor<'a, B: AutodiffBackend> {
    grads: &'a GradientsParams,
    groups: &'a ParamGroups,
    squares: SquareSums<B::InnerBackend, 3>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for NormVisitor<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(group) = self.groups.group(param.id) else {
            return;
        };
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            self.squares.push(group.index(), grad);
        }
    }
}

struct Step<'a, B: AutodiffBackend> {
    optimizer: &'a GroupedAdamW<B>,
    moments: &'a mut HashMap<ParamId, Moments<B>>,
    grads: GradientsParams,
    factor: f64,
    clip: Option<f64>,
    /// Those that are made once all parameters are here.
    together: AdamWSteps<B::InnerBackend>,
    waiting: HashMap<ParamId, WaitingStep>,
}

/// A step among others.
#[derive(Clone, Copy)]
struct WaitingStep {
    /// What [`AdamWSteps::push`] calls it.
    number: usize,
    /// Steps with these moments, this one included.
    time: usize,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Step<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, grad) = (param.id, self.grads.remove::<B::InnerBackend, D>(param.id));
        let (Some(group), Some(grad)) = (self.optimizer.groups.group(id), grad) else {
            return param;
        };
        let state = self.moments.remove(&id).map(AdaptorRecord::into_state);
        let AdaptiveMomentumState {
            time,
            moment_1,
            moment_2,
            ..
        } = match state {
            Some(AdamWState { momentum }) => momentum,
            None => AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
        };
        let step = AdamWStep {
            rate: self.factor * self.optimizer.rates[group.index()],
            time: time + 1,
            grad_scale: self.clip.unwrap_or(1.0) as f32,
            ..self.optimizer.step
        };
        let (id, tensor, mapper) = param.consume();
        let device = tensor.device();
        let tensors = [tensor.inner(), moment_1, moment_2, grad];
        let (number, time) = (self.together.push(step, tensors), step.time);
        self.waiting.insert(id, WaitingStep { number, time });
        // Whatever held the parameter as well would make the step copy it.
        Param::from_mapped_value(id, Tensor::empty([1; D], &device), mapper)
    }
}

/// Gives the model its parameters back after their steps.
struct PutBack<'a, B: AutodiffBackend> {
    moments: &'a mut HashMap<ParamId, Moments<B>>,
    stepped: Stepped<B::InnerBackend>,
    waiting: HashMap<ParamId, WaitingStep>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for PutBack<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(WaitingStep { number, time }) = self.waiting.remove(&param.id) else {
            return param;
        };
        let Some([tensor, moment_1, moment_2]) = self.stepped.take(number) else {
            return param;
        };
        let (id, _, mapper) = param.consume();
        let momentum = AdaptiveMomentumState::new(time, moment_1, moment_2);
        let state = AdamWState::new(momentum);
        self.moments.insert(id, AdaptorRecord::from_state(state));
        Param::from_mapped_value(id, Tensor::from_inner(tensor).require_grad(), mapper)
    }
}

/// Gradients of several devices, summed.
struct Merge<'a, B: AutodiffBackend> {
    from: &'a mut MultiGradientsParams,
    into: GradientsParams,
    backend: std::marker::PhantomData<B>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Merge<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some((grad, _)) = self.from.remove::<B::InnerBackend, D>(param.id) {
            self.into.register(param.id, grad);
        }
    }
}

impl<B: AutodiffBackend> std::fmt::Debug for GroupedAdamW<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rates = ParamGroup::ALL.map(|g| (g.name(), self.rates[g.index()]));
        f.debug_struct("GroupedAdamW")
            .field("rates", &rates)
            .finish_non_exhaustive()
    }
}
