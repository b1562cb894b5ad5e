//! SQ-LLaVA on [Burn](https://burn.dev): two-stage training with the joint loss of asking and
//! answering.

pub mod batch;
pub mod dataset;
mod error;
pub mod failure;
pub mod features;
pub mod groups;
pub mod loader;
pub mod loss;
pub mod loss_log;
pub mod metrics;
pub mod optimizer;
pub mod recipe;
pub mod renderer;
pub mod schedule;
pub mod step;
pub mod strategy;

pub use error::TrainError;
pub use recipe::{Flavour, Recipe};
