//! A tower's layers in training, with or without recomputing their activations (Chen et al. 2016,
//! "Training deep nets with sublinear memory cost").
//!
//! With recompute the layers run on the backend without a graph and only the input of each is kept.
//! On the way back each layer, from the last to the first, runs again with a graph of its own,
//! which its backward pass frees. Gradients are the same; memory holds one layer's activations.
//!
//! Layers that no gradient has to reach never have a graph, in either way.

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use sq_llava_model::vision::encoder::EncoderLayer;

use crate::recipe::GradientCheckpointing;
use sq_llava_model::language::llama::{LayerContext, LlamaLayer};

/// A layer of a tower.
pub(crate) trait Block<B: AutodiffBackend>: AutodiffModule<B> {
    /// What all layers of a pass share.
    type Context;

    /// With a graph. `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    fn graphed(&self, hidden: Tensor<B, 3>, context: &Self::Context) -> Tensor<B, 3>;

    /// Without. `[batch, tokens, hidden]` → `[batch, tokens, hidden]`
    fn plain(
        &self,
        hidden: Tensor<B::InnerBackend, 3>,
        context: &Self::Context,
    ) -> Tensor<B::InnerBackend, 3>;
}

/// [`LayerContext`] for both ways to run.
pub(crate) struct LlamaContext<B: AutodiffBackend> {
    graphed: LayerContext<B>,
    plain: LayerContext<B::InnerBackend>,
}

impl<B: AutodiffBackend> LlamaContext<B> {
    pub(crate) fn new(graphed: LayerContext<B>) -> Self {
        let plain = graphed.inner();
        Self { graphed, plain }
    }
}

impl<B: AutodiffBackend> Block<B> for LlamaLayer<B> {
    type Context = LlamaContext<B>;

    fn graphed(&self, hidden: Tensor<B, 3>, context: &Self::Context) -> Tensor<B, 3> {
        self.forward(hidden, &context.graphed, None)
    }

    fn plain(
        &self,
        hidden: Tensor<B::InnerBackend, 3>,
        context: &Self::Context,
    ) -> Tensor<B::InnerBackend, 3> {
        self.valid().forward(hidden, &context.plain, None)
    }
}

impl<B: AutodiffBackend> Block<B> for EncoderLayer<B> {
    type Context = ();

    fn graphed(&self, hidden: Tensor<B, 3>, (): &()) -> Tensor<B, 3> {
        self.forward(hidden)
    }

    fn plain(&self, hidden: Tensor<B::InnerBackend, 3>, (): &()) -> Tensor<B::InnerBackend, 3> {
        self.valid().forward(hidden)
    }
}

/// Takes what it wants of the gradients collected so far, after each layer of a backward pass that
/// goes layer by layer; it is told how many layers are done, from the last one on. What belongs to
/// them is complete.
pub(crate) type LayersDone<'a> = dyn FnMut(usize, &mut GradientsParams) + 'a;

/// Layers, and from which of them on a gradient is needed.
pub(crate) struct Blocks<'a, L> {
    layers: &'a [L],
    /// Whether something below the first layer trains.
    below: bool,
    /// The first layer that a gradient has to reach.
    first: usize,
    checkpointing: GradientCheckpointing,
}

/// A pass through the layers.
pub(crate) struct Pass<B: AutodiffBackend> {
    /// States after the last layer. `[batch, tokens, hidden]`
    pub(crate) output: Tensor<B::InnerBackend, 3>,
    back: Back<B>,
    /// A loss of what lies below the layers, whose way back is that of the pass.
    below: Option<Tensor<B, 1>>,
}

/// How a gradient goes back.
enum Back<B: AutodiffBackend> {
    /// Through the graph of everything, which ends here. `[batch, tokens, hidden]`
    Graph(Tensor<B, 3>),
    /// Layer by layer from these inputs, then into the graph below, which ends at `below`.
    /// Each `[batch, tokens, hidden]`
    Kept {
        inputs: Vec<Tensor<B::InnerBackend, 3>>,
        below: Tensor<B, 3>,
    },
}

impl<B: AutodiffBackend> Pass<B> {
    /// The states as a graph above sees them: the graph's own end, or a leaf.
    /// `[batch, tokens, hidden]`
    pub(crate) fn states(&self) -> Tensor<B, 3> {
        match &self.back {
            Back::Graph(output) => output.clone(),
            Back::Kept { .. } => Tensor::from_inner(self.output.clone()).require_grad(),
        }
    }

    /// The pass with a loss of what lies below the layers, whose gradient joins theirs there. A graph
    /// can be gone back through only once.
    pub(crate) fn with_loss_below(self, below: Option<Tensor<B, 1>>) -> Self {
        Self { below, ..self }
    }

    /// Whether the way back is one of its own, not that of the graph above.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.back, Back::Kept { .. })
    }
}

impl<'a, L> Blocks<'a, L> {
    /// `below`: whether something below the first layer trains.
    pub(crate) fn new<B: AutodiffBackend>(
        layers: &'a [L],
        below: bool,
        checkpointing: GradientCheckpointing,
    ) -> Self
    where
        L: Block<B>,
    {
        let first = match below {
            true => 0,
            false => layers
                .iter()
                .position(trains::<B, L>)
                .unwrap_or(layers.len()),
        };
        Self {
            layers,
            below,
            first,
            checkpointing,
        }
    }

    /// Runs the layers. `[batch, tokens, hidden]`
    pub(crate) fn forward<B: AutodiffBackend>(
        &self,
        hidden: Tensor<B, 3>,
        context: &L::Context,
    ) -> Pass<B>
    where
        L: Block<B>,
    {
        let (frozen, rest) = self.layers.split_at(self.first);
        let below = match frozen {
            [] => hidden,
            layers => {
                let states = hidden.inner();
                Tensor::from_inner(layers.iter().fold(states, |x, l| l.plain(x, context)))
            }
        };
        match self.checkpointing {
            GradientCheckpointing::None => {
                let output = rest.iter().fold(below, |x, l| l.graphed(x, context));
                Pass {
                    output: output.clone().inner(),
                    back: Back::Graph(output),
                    below: None,
                }
            }
            GradientCheckpointing::Blocks => {
                let mut inputs = Vec::with_capacity(rest.len());
                let output = rest.iter().fold(below.clone().inner(), |x, layer| {
                    inputs.push(x.clone());
                    layer.plain(x, context)
                });
                Pass {
                    output,
                    back: Back::Kept { inputs, below },
                    below: None,
                }
            }
        }
    }

    /// Whether a gradient has anywhere to go.
    pub(crate) fn trains(&self) -> bool {
        self.below || self.first < self.layers.len()
    }

    /// Carries the gradient of a pass's output back and collects those of the parameters that it
    /// meets: the layers' and all of `module`'s below them. Tells `done` as it goes from layer to
    /// layer. Returns what else was found below; `None` if there is no graph.
    pub(crate) fn backward<B: AutodiffBackend, M: Module<B>>(
        &self,
        pass: Pass<B>,
        mut gradient: Tensor<B::InnerBackend, 3>,
        context: &L::Context,
        module: &M,
        collected: &mut GradientsParams,
        done: &mut LayersDone<'_>,
    ) -> Option<B::Gradients>
    where
        L: Block<B>,
    {
        drop(pass.output);
        let root = match pass.back {
            Back::Graph(output) => self.trains().then_some(output)?,
            Back::Kept { inputs, below } => {
                let rest = self.layers[self.first..].iter().enumerate();
                for ((index, layer), input) in rest.zip(inputs).rev() {
                    let mut input = Tensor::<B, 3>::from_inner(input);
                    let goes_on = self.below || index > 0;
                    if goes_on {
                        input = input.require_grad();
                    }
                    let output = layer.graphed(input.clone(), context);
                    let mut found = seeded(output, gradient).backward();
                    collect(layer, &mut found, collected);
                    done(self.layers.len() - self.first - index, collected);
                    if !goes_on {
                        return None;
                    }
                    gradient = input.grad_remove(&mut found)?;
                }
                self.below.then_some(below)?
            }
        };
        let mut start = seeded(root, gradient);
        if let Some(loss) = pass.below {
            let dtype = start.dtype();
            start = start + loss.cast(dtype);
        }
        let mut found = start.backward();
        collect(module, &mut found, collected);
        Some(found)
    }
}

/// A scalar whose backward pass starts with `gradient` at `output`.
fn seeded<B: AutodiffBackend>(
    output: Tensor<B, 3>,
    gradient: Tensor<B::InnerBackend, 3>,
) -> Tensor<B, 1> {
    (output * Tensor::from_inner(gradient)).sum()
}

/// Whether any parameter of a module trains.
fn trains<B: Backend, M: Module<B>>(module: &M) -> bool {
    struct Find(bool);
    impl<B: Backend> ModuleVisitor<B> for Find {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0 |= param.is_require_grad();
        }
    }
    let mut find = Find(false);
    module.visit(&mut find);
    find.0
}

/// Takes the gradients of a module's parameters out of a backward pass, adding to those that are
/// collected already.
pub(crate) fn collect<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    found: &mut B::Gradients,
    collected: &mut GradientsParams,
) {
    struct Collect<'a, B: AutodiffBackend> {
        found: &'a mut B::Gradients,
        collected: &'a mut GradientsParams,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if !param.is_require_grad() {
                return;
            }
            let Some(mut gradient) = param.val().grad_remove(self.found) else {
                return;
            };
            if let Some(known) = self.collected.remove::<B::InnerBackend, D>(param.id) {
                gradient = known + gradient;
            }
            self.collected.register(param.id, gradient);
        }
    }
    module.visit(&mut Collect::<B> { found, collected });
}
