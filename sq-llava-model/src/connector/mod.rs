//! Between the vision tower and the language model: prototype extractors, projectors, and the place
//! of picture tokens among text.

pub mod anyres;
pub mod cluster;
pub mod projector;
pub mod prototype;
pub(crate) mod splice;
