//! Quantised linears on devices whose kernels are Burn's: CUDA, Vulkan and the like.
//!
//! There a weight is one of Burn's own quantised tensors, [`BLOCK`] elements along a row with one
//! f32 scale: `q8` is d·q with q from −127 to 127 (9 bits a weight), `q4` is d·q with q from −7 to
//! 7 (5 bits; Burn has no minimum beside the scale). Embedding and head stay dense, since Burn
//! gathers no rows from such tensors.
//!
//! A product of many rows makes its weight dense and multiplies then, forward and back, so memory is
//! saved rather than time; up to eight rows are multiplied with the integers (`kernels/gpu/product.rs`).
//! Burn's own product with a quantised tensor would spare that, but in 0.21 which of its kernels
//! runs is a matter of timing, and not all are right: fused behind one row they misread a
//! transposed weight, the ones that load through tensor maps leave the scales out (cubek-matmul
//! 0.2, `TensorMapInputs::create`), and burn-fusion takes the result for the backend's default
//! float, whatever the input is.

use burn::module::{Param, ParamId};
use burn::tensor::ops::{FloatTensor, QuantizedTensor};
use burn::tensor::quantization::{QuantLevel, QuantScheme, QuantStore, QuantValue};
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend};

use crate::kernels::blocks::{BLOCK, QuantFormat};
#[cfg(feature = "gpu")]
use crate::kernels::gpu;
use crate::ops::product::portable_product;

/// A matrix `[out, in]` as a quantised tensor.
#[derive(Debug, Clone)]
pub struct OnDevice<B: Backend> {
    /// `[out, in]`, `in` rounded up to whole blocks.
    pub tensor: Param<Tensor<B, 2>>,
    /// Format of the blocks.
    pub format: QuantFormat,
    /// Input width.
    pub columns: usize,
    /// What products are computed in.
    pub dtype: DType,
}

impl<B: Backend> OnDevice<B> {
    /// Quantises values `[out, in]` on their device; products are computed in `dtype`.
    pub(crate) fn quantize(
        id: ParamId,
        values: Tensor<B, 2>,
        format: QuantFormat,
        dtype: DType,
    ) -> Self {
        let [rows, columns] = values.dims();
        let mut values = values.cast(DType::F32);
        let spare = columns.next_multiple_of(BLOCK) - columns;
        if spare > 0 {
            let zeros = Tensor::zeros([rows, spare], (&values.device(), DType::F32));
            values = Tensor::cat(vec![values, zeros], 1);
        }
        Self {
            tensor: Param::initialized(id, quantized(values.detach(), &scheme(format))),
            format,
            columns,
            dtype,
        }
    }

    /// The same matrix in a tensor of another backend.
    pub(crate) fn with<C: Backend>(&self, tensor: Param<Tensor<C, 2>>) -> OnDevice<C> {
        OnDevice {
            tensor,
            format: self.format,
            columns: self.columns,
            dtype: self.dtype,
        }
    }

    /// The same on another device.
    pub(crate) fn moved_to(self, to: &B::Device) -> Self {
        if self.tensor.lazy_device() == *to {
            return self;
        }
        let id = self.tensor.id;
        let moved = match self.tensor.val().into_primitive() {
            TensorPrimitive::QFloat(tensor) => TensorPrimitive::QFloat(moved::<B>(tensor, to)),
            TensorPrimitive::Float(tensor) => {
                TensorPrimitive::Float(B::float_to_device(tensor, to))
            }
        };
        Self {
            tensor: Param::initialized(id, Tensor::from_primitive(moved)),
            ..self
        }
    }

    /// `[out, in]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.tensor.lazy_shape()[0], self.columns]
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let [rows, columns] = self.shape();
        let blocks = rows * columns.div_ceil(BLOCK);
        blocks * (self.format.block_bytes() + size_of::<f32>())
    }

    /// The tensor as GPUs' backends know it: quantised ones are of the same type as floats.
    #[cfg(feature = "gpu")]
    pub(crate) fn primitive(&self) -> Option<FloatTensor<B>> {
        match self.tensor.val().into_primitive() {
            TensorPrimitive::QFloat(tensor) => crate::kernels::primitive::same(tensor).ok(),
            TensorPrimitive::Float(_) => None,
        }
    }

    /// The matrix in floats. `[out, in]`
    pub(crate) fn dense(&self) -> Tensor<B, 2> {
        let tensor = self.tensor.val();
        let [rows, width] = tensor.dims();
        let dense = match tensor.into_primitive() {
            TensorPrimitive::QFloat(tensor) => self.floats(tensor),
            TensorPrimitive::Float(tensor) => tensor,
        };
        let dense = Tensor::from_primitive(TensorPrimitive::Float(dense));
        match width == self.columns {
            true => dense,
            false => dense.slice([0..rows, 0..self.columns]),
        }
    }

    fn floats(&self, tensor: QuantizedTensor<B>) -> FloatTensor<B> {
        #[cfg(feature = "gpu")]
        if let Some(dense) = gpu::quantized::dense::<B>(tensor.clone(), self.dtype) {
            return dense;
        }
        B::dequantize(tensor, self.dtype.into())
    }

    /// `x Wᵀ`, in the dtype of `x`. `[rows, in]` → `[rows, out]`
    pub(crate) fn product(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        #[cfg(feature = "gpu")]
        let input = match self.tensor.val().into_primitive() {
            TensorPrimitive::QFloat(weight) => {
                let (columns, dtype) = (self.columns, self.dtype);
                match gpu::quantized::product::<B>(gpu::float(input), weight, columns, dtype) {
                    Ok(output) => return gpu::tensor(output),
                    Err(input) => gpu::tensor(input),
                }
            }
            TensorPrimitive::Float(_) => input,
        };
        portable_product(input, self.dense())
    }
}

/// Integers on another device, inside a graph too.
fn moved<B: Backend>(tensor: QuantizedTensor<B>, to: &B::Device) -> QuantizedTensor<B> {
    #[cfg(feature = "gpu")]
    if let Some(moved) = gpu::quantized::moved::<B>(tensor.clone(), to) {
        return moved;
    }
    B::q_to_device(tensor, to)
}

/// Values in integers, inside a graph too.
fn quantized<B: Backend>(values: Tensor<B, 2>, scheme: &QuantScheme) -> Tensor<B, 2> {
    #[cfg(feature = "gpu")]
    let values = match gpu::quantized::quantize::<B>(gpu::float(values), scheme) {
        Ok(made) => return Tensor::from_primitive(TensorPrimitive::QFloat(made)),
        Err(values) => gpu::tensor::<B, 2>(values),
    };
    values.quantize_dynamic(scheme)
}

fn scheme(format: QuantFormat) -> QuantScheme {
    let value = match format {
        QuantFormat::Q8 => QuantValue::Q8S,
        QuantFormat::Q4 => QuantValue::Q4S,
    };
    // Bytes of their own would need a device that stores i8, and fused kernels take those for u8.
    QuantScheme::default()
        .with_value(value)
        .with_level(QuantLevel::block([BLOCK as u8]))
        .with_store(QuantStore::PackedU32(0))
}
