//! Where the CPU backend computes, and where it keeps weights.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

/// Runs work over `rows` of input on a thread of the CPU backend's pool; on other backends it runs
/// where it is.
///
/// Kernels that share their work with the pool then start at once: called from outside they each
/// wake a thread and wait for it. With a few rows they do not go through the pool, and entering it
/// would cost what it saves. What a thread holds for itself
/// ([`with_keys`](crate::ops::draws::with_keys)) is not seen inside, so enter first.
pub fn on_pool<B: Backend, R: Send>(rows: usize, work: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "cpu")]
    if rows > crate::kernels::cpu::step::SAMPLES && crate::kernels::blocks::is_native::<B>() {
        return rayon::scope(|_| work());
    }
    let _ = rows;
    work()
}

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
