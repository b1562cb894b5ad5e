//! What a run tells: metrics, its lines and dashboard, logs and curves.

pub(crate) mod announce;
pub(crate) mod curves;
pub mod loss_log;
pub mod metrics;
pub mod renderer;
pub mod resident;
