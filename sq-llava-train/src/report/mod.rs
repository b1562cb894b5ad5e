//! What a run tells: metrics, its lines and dashboard, logs and curves.

pub(crate) mod announce;
pub(crate) mod curves;
pub(crate) mod delta_panel;
pub(crate) mod loss_log;
pub(crate) mod metrics;
pub(crate) mod notes;
pub(crate) mod page;
pub(crate) mod renderer;
pub mod resident;
pub(crate) mod samples;
pub(crate) mod tensorboard;
pub(crate) mod time_left;
