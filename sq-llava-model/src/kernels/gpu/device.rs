//! Launches on a GPU's backend, with burn-fusion and without.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::cubecl::prelude::{CubeCount, CubeDim};
use burn_cubecl::fusion::FusionCubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::Fusion;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_ir::{BackendIr, CustomOpIr, HandleContainer, OperationIr, TensorIr};

use super::fixed;

/// Shape and dtype of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plain {
    /// Its shape.
    pub shape: Shape,
    /// Its dtype.
    pub dtype: DType,
}

impl Plain {
    /// Of a tensor.
    pub fn of(tensor: &impl TensorMetadata) -> Self {
        Self {
            shape: tensor.shape(),
            dtype: tensor.dtype(),
        }
    }

    /// Of a new tensor.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        Self {
            shape: shape.into(),
            dtype,
        }
    }

    /// Whether kernels read and write it as floats.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Length of the last dimension.
    pub fn width(&self) -> usize {
        self.shape.iter().last().copied().unwrap_or(1)
    }

    /// Number of vectors along the last dimension.
    pub fn rows(&self) -> usize {
        self.shape.num_elements() / self.width().max(1)
    }
}

/// Work on the device: one launch, or several that belong together.
pub(crate) trait Launch: Debug + Clone + Send + Sync + 'static {
    /// Its name in burn-fusion's streams.
    const NAME: &'static str;

    /// Whether it knows these inputs. What only kernels launch need not ask.
    fn accepts(&self, inputs: &[Plain]) -> bool {
        !inputs.is_empty()
    }

    /// Shapes and dtypes of what comes out.
    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain>;

    /// Does it. Inputs come in any layout.
    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>>;
}

/// A backend that kernels run on.
pub(crate) trait Device: Backend {
    /// Launches it, now or when its results are asked for.
    fn launch<L: Launch>(launch: &L, inputs: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>>;

    /// Whether the device has units that multiply small matrices.
    fn has_matrix_units(device: &Self::Device) -> bool;

    /// [`Self::launch`] where there is one result.
    fn launch_one<L: Launch>(launch: &L, inputs: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        let mut outputs = Self::launch(launch, inputs);
        match (outputs.pop(), outputs.pop()) {
            (Some(output), None) => output,
            _ => unreachable!("the launch has one output"),
        }
    }
}

impl<R, F, I, BT> Device for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn launch<L: Launch>(launch: &L, inputs: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>> {
        launch.launch(inputs)
    }

    fn has_matrix_units(device: &Self::Device) -> bool {
        let client = R::client(device);
        let matmul = &client.properties().features.matmul;
        !(matmul.cmma.is_empty() && matmul.mma.is_empty())
    }
}

impl<R, F, I, BT> Device for Fusion<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn launch<L: Launch>(launch: &L, inputs: Vec<FloatTensor<Self>>) -> Vec<FloatTensor<Self>> {
        let client = inputs[0].client.clone();
        let mut streams = OperationStreams::default();
        for input in &inputs {
            streams.tensor(input);
        }
        let plain: Vec<Plain> = inputs.iter().map(Plain::of).collect();
        let outputs = launch.outputs(&plain).into_iter();
        let outputs: Vec<TensorIr> = outputs
            .map(|output| {
                TensorIr::uninit(client.create_empty_handle(), output.shape, output.dtype)
            })
            .collect();
        let inputs: Vec<TensorIr> = inputs.into_iter().map(|input| input.into_ir()).collect();
        let described = CustomOpIr::new(L::NAME, &inputs, &outputs);
        let operation = Queued::<CubeBackend<R, F, I, BT>, L> {
            launch: launch.clone(),
            described: described.clone(),
            backend: PhantomData,
        };
        client.register(streams, OperationIr::Custom(described), operation)
    }

    fn has_matrix_units(device: &Self::Device) -> bool {
        <CubeBackend<R, F, I, BT> as Device>::has_matrix_units(device)
    }
}

/// A launch in a stream of burn-fusion's.
#[derive(Debug)]
struct Queued<B, L> {
    launch: L,
    described: CustomOpIr,
    backend: PhantomData<B>,
}

impl<R, F, I, BT, L> Operation<FusionCubeRuntime<R>> for Queued<CubeBackend<R, F, I, BT>, L>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    L: Launch,
{
    fn execute(
        &self,
        handles: &mut HandleContainer<<CubeBackend<R, F, I, BT> as BackendIr>::Handle>,
    ) {
        let inputs = self.described.inputs.iter();
        let inputs = inputs
            .map(|input| handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(input))
            .collect();
        let outputs = self.launch.launch(inputs);
        for (described, output) in self.described.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<CubeBackend<R, F, I, BT>>(&described.id, output);
        }
    }
}

/// A new tensor beside another, one element behind the other.
pub(super) fn empty<R: CubeRuntime>(beside: &CubeTensor<R>, plain: Plain) -> CubeTensor<R> {
    let (client, device) = (beside.client.clone(), beside.device.clone());
    empty_device_contiguous_dtype(client, device, plain.shape, plain.dtype)
}

/// Inputs with one element behind the other.
pub(super) fn contiguous<R: CubeRuntime, const N: usize>(
    inputs: Vec<CubeTensor<R>>,
) -> [CubeTensor<R>; N] {
    fixed::<_, N>(inputs).map(into_contiguous)
}

/// A tensor that nothing else holds, one element behind the other.
pub(super) fn writable<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    // A view of something else is copied by the first of these.
    let tensor = into_contiguous(tensor);
    match tensor.can_mut() && tensor.is_contiguous_buffer() {
        true => tensor,
        false => tensor.copy(),
    }
}

/// Largest number of cubes in one direction that every interface takes.
const DIRECTION: usize = 65_535;

/// At least `count` cubes; those behind have nothing to do.
pub(super) fn cubes(count: usize) -> CubeCount {
    let deep = count.div_ceil(DIRECTION).max(1);
    let wide = count.div_ceil(deep).max(1);
    CubeCount::Static(wide as u32, deep as u32, 1)
}

/// Units of a cube that goes over a row, or over single elements.
pub(super) const UNITS: u32 = 256;

/// [`UNITS`] in a line.
pub(super) fn line() -> CubeDim {
    CubeDim::new_1d(UNITS)
}
