//! Where the CPU backend computes.

use burn::tensor::backend::Backend;

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
