//! What a backend is too slow at: knows tensors and plain numbers, no layer and no model.

pub mod activation;
pub mod adamw;
pub mod blocks;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
pub(crate) mod finite;
pub(crate) mod key_span;
#[cfg(feature = "cpu")]
pub(crate) mod primitive;
