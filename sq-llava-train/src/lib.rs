//! SQ-LLaVA on [Burn](https://burn.dev): two-stage training with the joint loss of asking and
//! answering.

mod announce;
pub mod bad_images;
mod base;
pub mod batch;
pub mod counts;
mod curves;
pub mod dataset;
pub mod devices;
mod error;
pub mod failure;
pub mod features;
pub mod groups;
pub mod loader;
pub mod loss;
pub mod loss_log;
mod manifest;
pub mod memory;
pub mod metrics;
mod moments;
pub mod nodes;
pub mod optimizer;
pub mod recipe;
mod recompute;
pub mod renderer;
pub mod resident;
mod resume;
mod run_dir;
pub mod schedule;
pub mod stage;
pub mod state;
pub mod step;
mod stop;
pub mod strategy;
mod trainer;
mod validation;

pub use base::{Base, TrainPaths};
pub use error::TrainError;
pub use nodes::{NodeConfig, Orchestrator};
pub use recipe::{Flavour, Recipe};
pub use recompute::GradientCheckpointing;
pub use resume::Resume;
pub use run_dir::{RunDirectory, RunFiles};
pub use state::StageOutcome;
pub use stop::StopSignal;
pub use trainer::{TrainOptions, TrainOutcome, Ui, train};
