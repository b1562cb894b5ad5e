//! SQ-LLaVA on [Burn](https://burn.dev): two-stage training with the joint loss of asking and
//! answering.

pub mod bad_images;
mod base;
pub mod batch;
pub mod dataset;
mod error;
pub mod failure;
pub mod features;
pub mod groups;
pub mod loader;
pub mod loss;
pub mod loss_log;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod recipe;
mod recompute;
pub mod renderer;
mod run_dir;
pub mod schedule;
pub mod stage;
pub mod step;
pub mod strategy;
mod trainer;

pub use base::{Base, TrainPaths};
pub use error::TrainError;
pub use recipe::{Flavour, Recipe};
pub use recompute::GradientCheckpointing;
pub use run_dir::{RunDirectory, RunFiles};
pub use trainer::{StageOutcome, TrainOutcome, Ui, train};
