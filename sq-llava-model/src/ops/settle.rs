//! Where weights are kept.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

/// A weight that stays as it is, where its backend reads and keeps it best: on the CPU in large
/// pages of memory, on devices with pools of memory apart from what comes and goes, which would
/// else be divided around it.
pub fn settle<B: Backend, const D: usize>(
    data: TensorData,
    device: &B::Device,
    dtype: DType,
) -> Tensor<B, D> {
    #[cfg(feature = "cpu")]
    if crate::kernels::blocks::is_native::<B>() {
        let bytes = crate::kernels::cpu::place(data.bytes);
        return Tensor::from_data(TensorData { bytes, ..data }, (device, dtype));
    }
    B::memory_persistent_allocations(device, data, |data| {
        Tensor::from_data(data, (device, dtype))
    })
}
