//! Kernels for the CPU backend, burn-flex, where its own operations use one thread, no vector
//! exponential, or keep what could be recomputed.
//!
//! Model code stays generic over `B: Backend`: it hands its tensors to [`run`] and computes the
//! portable form with what comes back when they are not flex's. Under `Autodiff<Flex>` a kernel
//! is one node of the graph with its own backward pass; the checkpointing strategy makes no
//! difference, because a kernel saves what it needs itself.
//!
//! Results depend on the inputs alone: work is cut into pieces of a fixed size and every sum has
//! a fixed order, whatever the number of threads.

mod activation;
mod adamw;
mod append;
mod attention;
mod bf16;
mod blocks;
mod cross_entropy;
mod dropout;
mod gemm;
mod huge_pages;
mod level;
mod linear;
mod math;
mod matmul;
mod norm;
mod normalize;
pub mod peak;
mod pieces;
pub mod processor;
mod rope;
mod rows;
mod softmax;
pub(crate) mod step;
mod sum;
mod team;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tracked_tests;
mod view;
mod weight;

pub(crate) use activation::{Gated, Pointwise};
pub(crate) use adamw::{adamw, square_sum};
pub(crate) use append::append;
pub(crate) use attention::{Attention, Hidden};
pub(crate) use cross_entropy::{CrossEntropyKernel, JoinedCrossEntropyKernel};
pub(crate) use dropout::Dropout;
pub(crate) use huge_pages::place;
pub(crate) use linear::LinearKernel;
pub(crate) use matmul::Matmul;
pub(crate) use norm::{LayerNormKernel, RmsNormKernel};
pub(crate) use normalize::NormalizeKernel;
pub(crate) use rope::Rotate;
pub(crate) use softmax::SoftmaxKernel;
pub(crate) use sum::{ScaledSum, Sum};

use std::any::TypeId;
use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, DType, Shape, Tensor};
use burn_flex::{Flex, FlexTensor};

use crate::kernels::blocks::BlockMatrix;
pub(crate) use crate::kernels::primitive::{float, same, tensor};

type Tracked = FloatTensor<Autodiff<Flex>>;

/// An operation on `N` tensors with its derivative.
pub(crate) trait Kernel<const N: usize>: Debug + Send + Sized + 'static {
    /// What the backward pass needs.
    type Saved: Clone + Debug + Send + 'static;

    /// Whether the kernel knows these inputs; if not, the portable form computes them.
    fn accepts(&self, inputs: &[&FlexTensor; N]) -> bool {
        inputs.iter().all(|input| input.dtype() == DType::F32)
    }

    /// The result alone.
    fn forward(&self, inputs: [FlexTensor; N]) -> FlexTensor;

    /// The result and what its backward pass needs for the gradients that are `wanted`.
    fn forward_saving(
        &self,
        inputs: [FlexTensor; N],
        wanted: [bool; N],
    ) -> (FlexTensor, Self::Saved);

    /// Gradients of the inputs that are `wanted`, from the result's.
    fn backward(
        &self,
        saved: Self::Saved,
        grad: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N];

    /// As [`Kernel::backward`], added to what is `known` of the inputs' gradients from elsewhere in
    /// the graph.
    fn backward_onto(
        &self,
        saved: Self::Saved,
        grad: FlexTensor,
        wanted: [bool; N],
        known: [Option<FlexTensor>; N],
    ) -> [Option<FlexTensor>; N] {
        let mut known = known.into_iter();
        let found = self.backward(saved, grad, wanted);
        found.map(|found| sum::onto(known.next().flatten(), found))
    }
}

/// Runs a kernel, or gives the inputs back when they are not the CPU backend's or the kernel does
/// not know them.
pub(crate) fn run<B: Backend, K: Kernel<N>, const N: usize>(
    kernel: K,
    inputs: [FloatTensor<B>; N],
) -> Result<FloatTensor<B>, [FloatTensor<B>; N]> {
    let inputs = match same::<_, [FlexTensor; N]>(inputs) {
        Ok(inputs) => {
            let result = match kernel.accepts(&inputs.each_ref()) {
                true => Ok(kernel.forward(inputs)),
                false => Err(inputs),
            };
            return back(result);
        }
        Err(inputs) => inputs,
    };
    match same::<_, [Tracked; N]>(inputs) {
        Ok(inputs) => back(run_tracked(kernel, inputs)),
        Err(inputs) => Err(inputs),
    }
}

fn run_tracked<K: Kernel<N>, const N: usize>(
    kernel: K,
    inputs: [Tracked; N],
) -> Result<Tracked, [Tracked; N]> {
    if !kernel.accepts(&inputs.each_ref().map(|input| &input.primitive)) {
        return Err(inputs);
    }
    let wanted = inputs
        .each_ref()
        .map(|input| !input.node.requirement.is_none());
    if !wanted.contains(&true) {
        // Nothing of it is in the graph.
        let output = kernel.forward(inputs.map(|input| input.primitive));
        return Ok(<Autodiff<Flex> as burn::tensor::backend::AutodiffBackend>::from_inner(output));
    }
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    // Until the result holds them, nothing else does: the end of another thread's backward pass
    // takes nodes that nothing refers to out of every graph.
    let _held = inputs.each_ref().map(|input| input.rc.clone());
    let (output, saved) = kernel.forward_saving(inputs.map(|input| input.primitive), wanted);
    let prepared = Step(kernel)
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound();
    Ok(match prepared.stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(saved, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    })
}

/// A kernel in the graph.
#[derive(Debug)]
struct Step<K>(K);

impl<K: Kernel<N>, const N: usize> Backward<Flex, N> for Step<K> {
    type State = K::Saved;

    fn backward(self, ops: Ops<K::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let known = ops.parents.each_ref().map(|parent| {
            let node = parent.clone()?;
            // Gradients are found by the node alone.
            grads.remove::<Flex>(&Tracked {
                primitive: grad.clone(),
                rc: Arc::new(node.id),
                node,
            })
        });
        let found = self.0.backward_onto(ops.state, grad, wanted, known);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// The way back from [`same`].
fn back<A: 'static, B: 'static, const N: usize>(result: Result<A, [A; N]>) -> Result<B, [B; N]> {
    let whole = |value| match same::<A, B>(value) {
        Ok(value) => value,
        Err(_) => unreachable!("the types were found equal on the way in"),
    };
    match result {
        Ok(value) => Ok(whole(value)),
        Err(values) => Err(values.map(whole)),
    }
}

/// A tensor as flex's plain one, if it is that.
pub(crate) fn plain<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Option<FlexTensor> {
    same(float(tensor)).ok()
}

/// The way back from [`plain`].
pub(crate) fn from_plain<B: Backend, const D: usize>(tensor: FlexTensor) -> Option<Tensor<B, D>> {
    same(tensor).ok().map(self::tensor)
}

/// A tensor of these elements, if the backend's are flex's.
pub(crate) fn from_rows<B: Backend, const D: usize>(
    rows: Vec<f32>,
    shape: [usize; D],
) -> Option<Tensor<B, D>> {
    from_plain(view::filled(rows, Shape::from(shape.to_vec())))
}

/// The elements of a plain tensor in f32.
pub(crate) fn to_rows<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Option<Vec<f32>> {
    let tensor = view::contiguous(plain(tensor)?);
    (tensor.dtype() == DType::F32).then(|| view::elements(&tensor).to_vec())
}

/// Whether a backend's tensors are flex's plain ones.
pub(crate) fn is_plain<B: Backend>() -> bool {
    TypeId::of::<FloatTensor<B>>() == TypeId::of::<FlexTensor>()
}

/// Whether [`LinearKernel`] multiplies these: flex's tensors, an input in f32 and a weight in
/// blocks or in a dtype that it reads.
pub(crate) fn multiplies<B: Backend, const D: usize>(
    input: &Tensor<B, D>,
    weight: Option<&Tensor<B, 2>>,
) -> bool {
    let primitive = TypeId::of::<FloatTensor<B>>();
    let ours = primitive == TypeId::of::<FlexTensor>() || primitive == TypeId::of::<Tracked>();
    let readable = weight.is_none_or(|weight| weight::readable(weight.dtype()));
    ours && input.dtype() == DType::F32 && readable
}

/// A weight `[out, in]`.
pub(crate) enum Factor<'a, T> {
    /// Floats.
    Tensor(T),
    /// Blocks of integers.
    Blocks(&'a BlockMatrix),
}

/// Products of one input with several weights, where the tensors are plain flex ones and the inputs
/// few. `[rows, in]`, `[out, in]` each → `[rows, out]` each
pub(crate) fn together<B: Backend>(
    input: &Tensor<B, 2>,
    weights: Vec<Factor<'_, Tensor<B, 2>>>,
) -> Option<Vec<Tensor<B, 2>>> {
    let input = same::<_, FlexTensor>(float(input.clone())).ok()?;
    let weights = weights.into_iter().map(|weight| match weight {
        Factor::Tensor(tensor) => same(float(tensor)).ok().map(Factor::Tensor),
        Factor::Blocks(matrix) => Some(Factor::Blocks(matrix)),
    });
    let outputs = linear::together(&input, &weights.collect::<Option<Vec<_>>>()?)?;
    let outputs = outputs
        .into_iter()
        .map(|output| same(output).ok().map(tensor));
    outputs.collect()
}

/// A boolean tensor as flex's, if it is one.
pub(crate) fn flex_bool<B: Backend, const D: usize>(
    tensor: &Tensor<B, D, Bool>,
) -> Option<FlexTensor> {
    same(tensor.clone().into_primitive()).ok()
}
