//! From samples to batches: read, decoded, encoded, in order.

pub mod bad_images;
pub(crate) mod bad_share;
pub mod batch;
pub(crate) mod dataset;
pub mod deltas;
pub mod features;
pub(crate) mod loader;
pub(crate) mod masks;
pub(crate) mod packs;
pub(crate) mod padding;
pub(crate) mod stall;
