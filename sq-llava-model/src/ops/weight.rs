//! A matrix of weights in the form that products are computed from.

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay,
    ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param, ParamId,
};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};

use crate::kernels::blocks::{BlockMatrix, QuantFormat};
use crate::ops::on_device::OnDevice;

/// A matrix `[out, in]`, as checkpoints store it.
///
/// It implements [`Module`] itself: a derived enum would put the variant's name into the paths of
/// parameters, by which files and training states know them.
#[derive(Debug, Clone)]
pub enum Weight<B: Backend> {
    /// Floats, the only form that trains.
    Dense(Param<Tensor<B, 2>>),
    /// Blocks of integers, for the CPU's kernels. Visitors see no parameter.
    Blocks {
        /// The blocks.
        matrix: BlockMatrix,
        /// Id of the dense parameter.
        id: ParamId,
        /// What they are dequantised to.
        dtype: DType,
        /// Where the dense parameter would be.
        device: B::Device,
    },
    /// A quantised tensor, on the other devices. Visitors see no parameter.
    OnDevice(OnDevice<B>),
}

impl<B: Backend> Weight<B> {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(param) => param.lazy_shape().dims(),
            Self::Blocks { matrix, .. } => [matrix.rows(), matrix.columns()],
            Self::OnDevice(held) => held.shape(),
        }
    }

    /// Id of the parameter.
    pub fn id(&self) -> ParamId {
        match self {
            Self::Dense(param) => param.id,
            Self::Blocks { id, .. } => *id,
            Self::OnDevice(held) => held.tensor.id,
        }
    }

    /// Where it is.
    pub fn device(&self) -> B::Device {
        match self {
            Self::Dense(param) => param.lazy_device(),
            Self::Blocks { device, .. } => device.clone(),
            Self::OnDevice(held) => held.tensor.lazy_device(),
        }
    }

    /// Dtype of [`Self::val`].
    pub fn dtype(&self) -> DType {
        match self {
            Self::Dense(param) => param.val().dtype(),
            Self::Blocks { dtype, .. } => *dtype,
            Self::OnDevice(held) => held.dtype,
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(_) => self.shape().iter().product::<usize>() * self.dtype().size(),
            Self::Blocks { matrix, .. } => matrix.bytes(),
            Self::OnDevice(held) => held.bytes(),
        }
    }

    /// The blocks, if it is in blocks.
    pub fn blocks(&self) -> Option<&BlockMatrix> {
        match self {
            Self::Blocks { matrix, .. } => Some(matrix),
            Self::Dense(_) | Self::OnDevice(_) => None,
        }
    }

    /// Whether it is in floats.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// The values in floats. `[out, in]`
    pub fn val(&self) -> Tensor<B, 2> {
        match self {
            Self::Dense(param) => param.val(),
            Self::Blocks {
                matrix,
                dtype,
                device,
                ..
            } => Tensor::from_data(matrix.dequantize(), (device, *dtype)),
            Self::OnDevice(held) => held.dense(),
        }
    }

    /// The tensor that a GPU's kernels read: floats, or integers with their scales.
    #[cfg(feature = "gpu")]
    pub(crate) fn primitive(&self) -> Option<burn::tensor::ops::FloatTensor<B>> {
        match self {
            Self::Dense(param) => Some(crate::kernels::gpu::float(param.val())),
            Self::Blocks { .. } => None,
            Self::OnDevice(held) => held.primitive(),
        }
    }

    /// The same parameter with other values, in floats.
    #[must_use]
    pub fn map(self, f: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(param.map(f)),
            other => Self::Dense(Param::initialized(other.id(), f(other.val()))),
        }
    }

    /// The same in floats.
    #[must_use]
    pub fn dequantize(self) -> Self {
        match self {
            Self::Dense(_) => self,
            other => other.map(|values| values),
        }
    }

    /// Whether it takes a gradient; only floats can.
    #[must_use]
    pub fn set_require_grad(self, require_grad: bool) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(param.set_require_grad(require_grad)),
            other => other,
        }
    }

    /// The same parameter as these blocks, which are dequantised to `dtype`.
    #[must_use]
    pub fn in_blocks(&self, matrix: BlockMatrix, dtype: DType) -> Self {
        Self::Blocks {
            matrix,
            id: self.id(),
            dtype,
            device: self.device(),
        }
    }

    /// The same parameter as `values` quantised on their device; products are computed in `dtype`.
    pub(crate) fn on_device(
        &self,
        values: Tensor<B, 2>,
        format: QuantFormat,
        dtype: DType,
    ) -> Self {
        Self::OnDevice(OnDevice::quantize(self.id(), values, format, dtype))
    }
}

impl<B: Backend> From<Param<Tensor<B, 2>>> for Weight<B> {
    fn from(param: Param<Tensor<B, 2>>) -> Self {
        Self::Dense(param)
    }
}

impl<B: Backend> Module<B> for Weight<B> {
    /// The values in floats.
    type Record = Param<Tensor<B, 2>>;

    fn collect_devices(&self, mut devices: Devices<B>) -> Devices<B> {
        let device = self.device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn fork(self, to: &B::Device) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(param.fork(to)),
            integers @ (Self::Blocks { .. } | Self::OnDevice(_)) => integers.to_device(to),
        }
    }

    fn to_device(self, to: &B::Device) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(param.to_device(to)),
            Self::OnDevice(held) => Self::OnDevice(held.moved_to(to)),
            Self::Blocks {
                matrix, id, dtype, ..
            } => Self::Blocks {
                matrix,
                id,
                dtype,
                device: to.clone(),
            },
        }
    }

    fn num_params(&self) -> usize {
        match self {
            Self::Dense(param) => Module::<B>::num_params(param),
            Self::Blocks { .. } | Self::OnDevice(_) => self.shape().iter().product(),
        }
    }

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        match self {
            Self::Dense(param) => param.visit(visitor),
            Self::Blocks { .. } | Self::OnDevice(_) => {}
        }
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(mapper.map_float(param)),
            integers @ (Self::Blocks { .. } | Self::OnDevice(_)) => integers,
        }
    }

    fn load_record(self, record: Self::Record) -> Self {
        match self.dequantize() {
            Self::Dense(param) => Self::Dense(param.load_record(record)),
            other => other,
        }
    }

    fn into_record(self) -> Self::Record {
        match self {
            Self::Dense(param) => param.into_record(),
            other => Param::initialized(other.id(), other.val()),
        }
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for Weight<B> {
    type InnerModule = Weight<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        match self {
            Self::Dense(param) => Weight::Dense(param.valid()),
            Self::Blocks {
                matrix,
                id,
                dtype,
                device,
            } => Weight::Blocks {
                matrix: matrix.clone(),
                id: *id,
                dtype: *dtype,
                device: device.clone(),
            },
            Self::OnDevice(held) => Weight::OnDevice(held.with(held.tensor.valid())),
        }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        match module {
            Weight::Dense(param) => Self::Dense(AutodiffModule::from_inner(param)),
            Weight::Blocks {
                matrix,
                id,
                dtype,
                device,
            } => Self::Blocks {
                matrix,
                id,
                dtype,
                device,
            },
            Weight::OnDevice(held) => {
                Self::OnDevice(held.with(AutodiffModule::from_inner(held.tensor.clone())))
            }
        }
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for Weight<B::InnerBackend> {
    type TrainModule = Weight<B>;
}

impl<B: Backend> ModuleDisplayDefault for Weight<B> {
    fn content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Dense(param) => param.content(content),
            Self::Blocks { matrix, .. } => content.add_formatted(&format!("{matrix:?}")).optional(),
            Self::OnDevice(held) => held.tensor.content(content),
        }
    }
}

impl<B: Backend> ModuleDisplay for Weight<B> {}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::Distribution;
    use burn_flex::Flex;

    use super::*;
    use crate::ops::linear::Linear;

    type Ad = Autodiff<Flex>;

    #[test]
    fn blocks_keep_the_parameter_that_they_stand_for() {
        let count_of = |linear: &Linear<Ad>| Module::<Ad>::num_params(linear);
        let device = Default::default();
        let mut linear = Linear::<Ad>::init(70, 5, true, &device);
        let values = Tensor::<Ad, 2>::random([5, 70], Distribution::Default, &device);
        let data: Vec<f32> = values.to_data().to_vec().unwrap();
        let matrix = BlockMatrix::quantize("a weight", QuantFormat::Q8, [5, 70], |row, out| {
            out.copy_from_slice(&data[row * 70..(row + 1) * 70]);
        });
        let matrix = matrix.unwrap();
        let (id, count) = (linear.weight.id(), count_of(&linear));
        linear.weight = linear.weight.in_blocks(matrix.clone(), DType::F16);

        // Through every way that a module goes, the id and the numbers stay.
        let there = linear.clone().valid().fork(&device).to_device(&device);
        let back = Linear::<Ad>::from_inner(there.no_grad());
        assert_eq!((back.d_in(), back.d_out()), (70, 5));
        assert_eq!((count_of(&back), back.weight.id()), (count, id));
        assert_eq!(back.weight.blocks().unwrap().parts(), matrix.parts());
        assert_eq!(back.devices(), [device]);

        let dense = back.clone().dequantize();
        assert_eq!((count_of(&dense), dense.weight.id()), (count, id));
        assert_eq!(dense.weight.dtype(), DType::F16);
        let expected = matrix.dequantize().convert::<half::f16>();
        assert_eq!(dense.weight.val().into_data(), expected);

        // A record holds the values in floats, whatever it is loaded over.
        let loaded = linear.load_record(back.into_record());
        assert!(loaded.weight.is_dense());
        assert_eq!((loaded.weight.id(), count_of(&loaded)), (id, count));
        assert_eq!(loaded.weight.val().into_data(), expected);
    }
}
