//! Weights that are stored in 16 bits and stay so in memory.

use burn::tensor::{DType, backend::Backend};

use super::options::Narrow;
use super::tensor::StoredType;
use crate::kernels::blocks::is_native;

/// What weights that are stored in 16 bits are in memory; `None` where that is not to be told from
/// how they are stored.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Narrowed {
    f16: Option<DType>,
    bf16: Option<DType>,
}

impl Narrowed {
    /// As asked, where the device computes in it.
    pub(super) fn new<B: Backend>(narrow: Narrow, device: &B::Device) -> Self {
        let kept = |dtype: DType| B::supports_dtype(device, dtype).then_some(dtype);
        let (f16, bf16) = (kept(DType::F16), kept(DType::BF16));
        match narrow {
            Narrow::Never => Self::default(),
            Narrow::Fastest if is_native::<B>() && multiplies_bf16() => Self { f16: bf16, bf16 },
            Narrow::Stored | Narrow::Fastest => Self { f16, bf16 },
        }
    }

    /// The dtype in memory of a weight that is `wanted` otherwise.
    pub(super) fn dtype(self, stored: StoredType, wanted: DType) -> DType {
        let kept = match stored {
            StoredType::F16 => self.f16,
            StoredType::BF16 => self.bf16,
            _ => None,
        };
        kept.unwrap_or(wanted)
    }
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
