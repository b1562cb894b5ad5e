//! What the states between a tower's layers are stored in.

use burn::tensor::{DType, backend::Backend};

use crate::kernels::Kernels;

/// Of weights stored in a dtype: f32, but bf16 on a GPU where the weights are bf16, as transformers
/// computes with such a checkpoint; products need no casts then, and half as much is read and kept.
///
/// Weights in f16 keep states in f32: some families' states (Gemma's) are larger than f16's largest
/// number.
pub fn dtype<B: Backend>(weights: DType) -> DType {
    match (Kernels::of::<B>(), weights) {
        (Kernels::Gpu, DType::BF16) => DType::BF16,
        _ => DType::F32,
    }
}
