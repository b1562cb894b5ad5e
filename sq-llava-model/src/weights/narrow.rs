//! Weights that are stored in 16 bits and stay so in memory.

use burn::tensor::{DType, backend::Backend};

use super::fill::WeightMap;
use super::layout::Section;
use super::options::{LoadOptions, Narrow};
use super::tensor::{StoredTensor, StoredType};
use super::write::file_dtype;
use crate::error::ModelError;
use crate::kernels::blocks::is_native;

/// The dtype of the weights in memory.
///
/// # Errors
/// If the options name one that checkpoints do not have.
pub(super) fn weight_dtype<B: Backend>(
    weights: &WeightMap,
    options: &LoadOptions,
    device: &B::Device,
) -> Result<DType, ModelError> {
    let given = file_dtype(options.dtype)?;
    let stored = match options.narrow {
        Narrow::Never => None,
        Narrow::Stored => narrow(weights),
        Narrow::Fastest => narrow(weights).map(|stored| match is_native::<B>() {
            true if multiplies_bf16() => DType::BF16,
            _ => stored,
        }),
    };
    let dtype = match stored {
        Some(stored) if B::supports_dtype(device, stored) => stored,
        _ => given,
    };
    if options.narrow != Narrow::Never {
        tracing::info!("weights in {}", dtype.name());
    }
    Ok(dtype)
}

/// The dtype of 16 bits that most of the language model's bytes are stored in.
fn narrow(weights: &WeightMap) -> Option<DType> {
    let stored = |wanted: fn(StoredType) -> bool| -> u64 {
        let all = weights.tensors(Section::Llm);
        let found = all.filter(|tensor| wanted(tensor.dtype));
        found.map(StoredTensor::stored_bytes).sum()
    };
    let f16 = stored(|dtype| dtype == StoredType::F16);
    let bf16 = stored(|dtype| dtype == StoredType::BF16);
    let most = if bf16 > f16 { DType::BF16 } else { DType::F16 };
    (f16.max(bf16) > stored(|_| true) / 2).then_some(most)
}

/// Whether the processor's kernels multiply weights in bf16 in bf16.
fn multiplies_bf16() -> bool {
    #[cfg(feature = "cpu")]
    {
        crate::processor::KernelPath::chosen().is_ok_and(|path| path.multiplies_bf16())
    }
    #[cfg(not(feature = "cpu"))]
    {
        false
    }
}
