//! Metrics on plain texts; they know no benchmark.

pub mod caption;
mod normalise;
mod vqa;

pub use normalise::normalise;
pub use vqa::soft_accuracy;
