//! A run: its stages, its directory, checkpoints and resuming.

pub(crate) mod adaptive;
pub(crate) mod base;
pub mod devices;
pub(crate) mod later;
pub(crate) mod manifest;
pub(crate) mod nodes;
pub(crate) mod precision;
pub(crate) mod reporting;
pub(crate) mod resume;
pub(crate) mod run_dir;
pub(crate) mod sampling;
mod seen;
pub mod stage;
pub mod state;
pub(crate) mod stop;
pub(crate) mod strategy;
pub(crate) mod trainer;
pub(crate) mod validation;
