//! What a backend is too slow at: knows tensors and plain numbers, no layer and no model.

pub mod activation;
pub mod adamw;
pub mod blocks;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
pub(crate) mod dropout;
pub(crate) mod finite;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
pub(crate) mod key_span;
#[cfg(any(feature = "cpu", feature = "gpu"))]
pub(crate) mod primitive;
