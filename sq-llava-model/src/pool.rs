//! Where the CPU backend computes, and where it keeps weights.

use burn::tensor::{TensorData, backend::Backend};

/// Runs work on a thread of the CPU backend's pool; on other backends it runs where it is.
///
/// Kernels that share their work with the pool then start at once: called from outside they each
/// wake a thread and wait for it, a hundred times for a decoded token. What a thread holds for
/// itself ([`with_keys`](crate::draws::with_keys)) is not seen inside, so enter first.
pub fn on_pool<B: Backend, R: Send>(work: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "cpu")]
    if crate::quant::is_native::<B>() {
        return rayon::scope(|_| work());
    }
    work()
}

/// Moves a weight's numbers to where the CPU backend reads them fastest (large pages of memory);
/// on other backends they stay as they are.
pub fn settle<B: Backend>(data: TensorData) -> TensorData {
    #[cfg(feature = "cpu")]
    if crate::quant::is_native::<B>() {
        return TensorData {
            bytes: crate::cpu::place(data.bytes),
            ..data
        };
    }
    data
}
