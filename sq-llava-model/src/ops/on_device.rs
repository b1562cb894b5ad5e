//! Quantised linears on devices whose kernels are Burn's: CUDA, Vulkan and the like.
//!
//! There a weight is one of Burn's own quantised tensors, [`BLOCK`] elements along a row with one
//! f32 scale: `q8` is d·q with q from −127 to 127 (9 bits a weight), `q4` is d·q with q from −7 to
//! 7 (5 bits; Burn has no minimum beside the scale). Embedding and head stay dense, since Burn
//! gathers no rows from such tensors.
//!
//! A product makes its weight dense and multiplies then, so memory is saved rather than time.
//! Burn's own product with a quantised tensor would spare that, but in 0.21 which of its kernels
//! runs is a matter of timing, and not all are right: fused behind one row they misread a transposed
//! weight, the ones that load through tensor maps leave the scales out (cubek-matmul 0.2,
//! `TensorMapInputs::create`), and burn-fusion takes the result for the backend's default float,
//! whatever the input is.

use burn::tensor::quantization::{QuantLevel, QuantScheme, QuantStore, QuantValue};
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend};

use crate::kernels::blocks::{BLOCK, QuantFormat};
use crate::ops::product::portable_product;

/// What a linear knows of its weight, where that is a quantised tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDevice {
    /// Format of the blocks.
    pub format: QuantFormat,
    /// Input width; the tensor's is rounded up to whole blocks.
    pub columns: usize,
    /// What products are computed in.
    pub dtype: DType,
}

impl OnDevice {
    /// Values `[out, in]` as a quantised tensor on their device; products are computed in `dtype`.
    pub(crate) fn quantize<B: Backend>(
        values: Tensor<B, 2>,
        format: QuantFormat,
        dtype: DType,
    ) -> (Tensor<B, 2>, Self) {
        let [rows, columns] = values.dims();
        let mut values = values.cast(DType::F32);
        let spare = columns.next_multiple_of(BLOCK) - columns;
        if spare > 0 {
            let zeros = Tensor::zeros([rows, spare], (&values.device(), DType::F32));
            values = Tensor::cat(vec![values, zeros], 1);
        }
        let held = Self {
            format,
            columns,
            dtype,
        };
        (values.quantize_dynamic(&scheme(format)), held)
    }

    /// Bytes of a weight with that many rows.
    pub(crate) fn bytes(&self, rows: usize) -> usize {
        let blocks = rows * self.columns.div_ceil(BLOCK);
        blocks * (self.format.block_bytes() + size_of::<f32>())
    }

    /// The weight in floats. `[out, in]`
    pub(crate) fn dense<B: Backend>(&self, weight: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, width] = weight.dims();
        let dense = match weight.into_primitive() {
            TensorPrimitive::QFloat(weight) => B::dequantize(weight, self.dtype.into()),
            TensorPrimitive::Float(weight) => weight,
        };
        let dense = Tensor::from_primitive(TensorPrimitive::Float(dense));
        match width == self.columns {
            true => dense,
            false => dense.slice([0..rows, 0..self.columns]),
        }
    }

    /// `x Wᵀ` in the input's dtype. `[n, in]`, quantised `[out, in]` → `[n, out]`
    pub(crate) fn product<B: Backend>(
        &self,
        input: Tensor<B, 2>,
        weight: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        portable_product(input, self.dense(weight))
    }
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
