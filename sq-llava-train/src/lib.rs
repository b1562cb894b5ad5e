//! SQ-LLaVA on [Burn](https://burn.dev): two-stage training with the joint loss of asking and
//! answering.

pub mod data;
mod error;
pub mod failure;
pub mod recipe;
pub mod report;
pub mod run;
pub mod step;

pub use error::TrainError;
pub use recipe::{Flavour, GradientCheckpointing, Recipe};
pub use run::base::{Base, TrainPaths};
pub use run::nodes::{Launcher, Nodes};
pub use run::resume::Resume;
pub use run::run_dir::{RunDirectory, RunFiles};
pub use run::state::StageOutcome;
pub use run::stop::StopSignal;
pub use run::trainer::{DryStage, TrainOptions, TrainOutcome, Ui, dry_run, train};
