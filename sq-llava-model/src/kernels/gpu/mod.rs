//! Kernels for GPUs, written once in CubeCL for CUDA, Vulkan, Metal and WebGPU, where Burn's own
//! operations launch many kernels, keep what could be recomputed or make weights dense.
//!
//! Model code stays generic over `B: Backend`: it hands its tensors to [`run`] and computes the
//! portable form with what comes back when they are no GPU's. It makes no difference whether
//! burn-fusion stands between: there a kernel is a custom operation of its stream. Under
//! `Autodiff` a kernel is one node of the graph with its own backward pass.
//!
//! Tensors are stored in f32, f16 or bf16; every kernel computes in f32.
#![allow(clippy::too_many_arguments)] // A kernel takes each tensor and number by itself.
#![allow(clippy::collapsible_if)] // Conditions of the compiler's stand around those of the device.

mod activation;
mod adamw;
mod append;
mod attend;
mod attention;
mod cross_entropy;
mod device;
pub(crate) mod likeliest;
mod matmul;
mod norm;
mod product;
pub(crate) mod quantized;
mod rope;
mod square_sums;
mod sum;
#[cfg(all(test, feature = "wgpu"))]
mod tests;

pub(crate) use crate::kernels::primitive::{float, tensor};
pub(crate) use activation::{Gated, Pointwise};
pub(crate) use adamw::AdamW;
pub(crate) use append::Append;
pub(crate) use attend::Attend;
pub(crate) use attention::{Attention, Seen};
pub(crate) use cross_entropy::CrossEntropyKernel;
pub(crate) use device::{Device, Launch, Plain};
pub(crate) use likeliest::Likeliest;
pub(crate) use matmul::matmul;
pub(crate) use norm::RmsNormKernel;
pub(crate) use product::{Dense, MAX_ROWS, Normed, RowProduct};
pub(crate) use rope::Rotate;
pub(crate) use square_sums::SquareSums;

use std::any::Any;
use std::fmt::Debug;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn_cubecl::{CubeBackend, CubeRuntime};
use burn_fusion::Fusion;

use crate::kernels::DeviceMemory;
use crate::kernels::primitive::same;

/// An operation on `N` tensors with its derivative.
pub(crate) trait Kernel<const N: usize>:
    Debug + Clone + Send + Sync + Sized + 'static
{
    /// Whether the kernel knows these inputs; if not, the portable form computes them.
    fn accepts(&self, inputs: &[Plain; N]) -> bool;

    /// The result alone.
    fn forward<D: Device>(&self, inputs: [FloatTensor<D>; N]) -> FloatTensor<D>;

    /// The result and what its backward pass needs for the gradients that are `wanted`.
    fn forward_saving<D: Device>(
        &self,
        inputs: [FloatTensor<D>; N],
        wanted: [bool; N],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>);

    /// Gradients of the inputs that are `wanted`, from the result's.
    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<D>>; N];
}

/// Work that is the same on every GPU's backend, on tensors that may be tracked by a graph. `Err`
/// gives the inputs back where the task does not know them.
trait Task {
    /// Without a graph.
    fn plain<D: Device>(&self, inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>>;

    /// Inside a graph.
    fn tracked<D: Device>(&self, inputs: Vec<Tracked<D>>) -> Done<Tracked<D>>;
}

type Done<T> = Result<Vec<T>, Vec<T>>;
type Tracked<D> = FloatTensor<Autodiff<D>>;

/// Runs a kernel, or gives the inputs back when they are no GPU backend's or the kernel does not
/// know them.
pub(crate) fn run<B: Backend, K: Kernel<N>, const N: usize>(
    kernel: K,
    inputs: [FloatTensor<B>; N],
) -> Result<FloatTensor<B>, [FloatTensor<B>; N]> {
    match on_gpu(&Differentiable(kernel), inputs.into()) {
        Ok(mut outputs) => Ok(outputs.swap_remove(0)),
        Err(inputs) => Err(fixed(inputs)),
    }
}

/// Launches on tensors of a GPU's backend that no graph tracks, or gives the inputs back.
pub(crate) fn launch<B: Backend, L: Launch>(
    launch: &L,
    inputs: Vec<FloatTensor<B>>,
) -> Result<Vec<FloatTensor<B>>, Vec<FloatTensor<B>>> {
    on_gpu(&Untracked(launch), inputs)
}

/// Whether kernels run on this backend's tensors, and no graph tracks them.
pub(crate) fn is_gpu<B: Backend>() -> bool {
    on_gpu::<FloatTensor<B>, _>(&Nothing { tracked: false }, vec![]).is_ok()
}

/// Whether kernels run on this backend's tensors, in a graph or without one.
pub(crate) fn has_kernels<B: Backend>() -> bool {
    on_gpu::<FloatTensor<B>, _>(&Nothing { tracked: true }, vec![]).is_ok()
}

/// Finds out whether there is a GPU's backend.
struct Nothing {
    /// Whether one in a graph counts.
    tracked: bool,
}

impl Task for Nothing {
    fn plain<D: Device>(&self, inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>> {
        Ok(inputs)
    }

    fn tracked<D: Device>(&self, inputs: Vec<Tracked<D>>) -> Done<Tracked<D>> {
        match self.tracked {
            true => Ok(inputs),
            false => Err(inputs),
        }
    }
}

/// Does a task on whichever GPU's backend the inputs belong to. Concrete backends are named here
/// and in [`memory`] alone.
fn on_gpu<A: 'static, T: Task>(task: &T, inputs: Vec<A>) -> Done<A> {
    #[cfg(feature = "cuda")]
    let inputs = match on_runtime::<cubecl::cuda::CudaRuntime, u8, A, T>(task, inputs) {
        Ok(outputs) => return Ok(outputs),
        Err(inputs) => inputs,
    };
    #[cfg(feature = "wgpu")]
    let inputs = {
        use cubecl::wgpu::WgpuRuntime;
        // WebGPU's booleans are wider.
        let done = on_runtime::<WgpuRuntime, u8, A, T>(task, inputs)
            .or_else(|inputs| on_runtime::<WgpuRuntime, u32, A, T>(task, inputs));
        match done {
            Ok(outputs) => return Ok(outputs),
            Err(inputs) => inputs,
        }
    };
    Err(inputs)
}

/// Memory of the device, if it is a GPU's.
pub(crate) fn memory<B: Backend>(device: &B::Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    if let Some(memory) = memory_of::<cubecl::cuda::CudaRuntime>(device) {
        return Some(memory);
    }
    #[cfg(feature = "wgpu")]
    if let Some(memory) = memory_of::<cubecl::wgpu::WgpuRuntime>(device) {
        return Some(memory);
    }
    None
}

fn memory_of<R: CubeRuntime>(device: &dyn Any) -> Option<DeviceMemory> {
    let device = device.downcast_ref::<R::Device>()?;
    let usage = R::client(device).memory_usage().ok()?;
    Some(DeviceMemory {
        in_use: usage.bytes_in_use,
        reserved: usage.bytes_reserved,
    })
}

/// With burn-fusion and without.
fn on_runtime<R, BT, A, T>(task: &T, inputs: Vec<A>) -> Done<A>
where
    R: CubeRuntime,
    BT: burn_cubecl::BoolElement,
    A: 'static,
    T: Task,
{
    on_device::<Fusion<CubeBackend<R, f32, i32, BT>>, A, T>(task, inputs)
        .or_else(|inputs| on_device::<CubeBackend<R, f32, i32, BT>, A, T>(task, inputs))
}

fn on_device<D: Device, A: 'static, T: Task>(task: &T, inputs: Vec<A>) -> Done<A> {
    let inputs = match same::<_, Vec<FloatTensor<D>>>(inputs) {
        Ok(inputs) => return whole(task.plain::<D>(inputs)),
        Err(inputs) => inputs,
    };
    match same::<_, Vec<Tracked<D>>>(inputs) {
        Ok(inputs) => whole(task.tracked::<D>(inputs)),
        Err(inputs) => Err(inputs),
    }
}

/// The way back to the tensors that came.
fn whole<A: 'static, B: 'static>(done: Done<A>) -> Done<B> {
    let back = |values| match same::<Vec<A>, Vec<B>>(values) {
        Ok(values) => values,
        Err(_) => unreachable!("the types were found equal on the way in"),
    };
    done.map(back).map_err(back)
}

/// The tensors of a list whose length is known.
fn fixed<T, const N: usize>(values: Vec<T>) -> [T; N] {
    match values.try_into() {
        Ok(values) => values,
        Err(_) => {
            unreachable!("a launch gets the inputs that it was made for, and gives back as many")
        }
    }
}

struct Untracked<'a, L>(&'a L);

impl<L: Launch> Task for Untracked<'_, L> {
    fn plain<D: Device>(&self, inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>> {
        let plain: Vec<Plain> = inputs.iter().map(Plain::of).collect();
        match self.0.accepts(&plain) {
            true => Ok(D::launch(self.0, inputs)),
            false => Err(inputs),
        }
    }

    fn tracked<D: Device>(&self, inputs: Vec<Tracked<D>>) -> Done<Tracked<D>> {
        Err(inputs)
    }
}

struct Differentiable<K, const N: usize>(K);

impl<K: Kernel<N>, const N: usize> Task for Differentiable<K, N> {
    fn plain<D: Device>(&self, inputs: Vec<FloatTensor<D>>) -> Done<FloatTensor<D>> {
        let inputs: [_; N] = fixed(inputs);
        match self.0.accepts(&inputs.each_ref().map(Plain::of)) {
            true => Ok(vec![self.0.forward::<D>(inputs)]),
            false => Err(inputs.into()),
        }
    }

    fn tracked<D: Device>(&self, inputs: Vec<Tracked<D>>) -> Done<Tracked<D>> {
        let inputs: [_; N] = fixed(inputs);
        let plain = inputs.each_ref().map(|input| Plain::of(&input.primitive));
        if !self.0.accepts(&plain) {
            return Err(inputs.into());
        }
        let wanted = inputs
            .each_ref()
            .map(|input| !input.node.requirement.is_none());
        if !wanted.contains(&true) {
            // Nothing of it is in the graph.
            let output = self.0.forward::<D>(inputs.map(|input| input.primitive));
            return Ok(vec![<Autodiff<D> as AutodiffBackend>::from_inner(output)]);
        }
        let nodes = inputs.each_ref().map(|input| input.node.clone());
        // Until the result holds them, nothing else does: the end of another thread's backward
        // pass takes nodes that nothing refers to out of every graph.
        let _held = inputs.each_ref().map(|input| input.rc.clone());
        let plain = inputs.map(|input| input.primitive);
        let (output, saved) = self.0.forward_saving::<D>(plain, wanted);
        let prepared = Step(self.0.clone())
            .prepare::<NoCheckpointing>(nodes)
            .compute_bound();
        Ok(vec![match prepared.stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(saved, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }])
    }
}

/// A kernel in the graph.
#[derive(Debug)]
struct Step<K>(K);

impl<D: Device, K: Kernel<N>, const N: usize> Backward<D, N> for Step<K> {
    type State = Vec<FloatTensor<D>>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<D>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = self.0.backward::<D>(ops.state, grad, wanted);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<D>(parent.id, grad);
            }
        }
    }
}
