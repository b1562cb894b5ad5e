//! One optimizer step: the joint loss, its gradients with or without recompute, and AdamW over the
//! parameters that train.

pub mod adaptive;
pub(crate) mod bits;
pub(crate) mod counts;
pub mod groups;
pub mod loss;
pub mod masks;
pub mod memory;
pub(crate) mod moments;
pub mod optimizer;
pub(crate) mod pictures;
pub(crate) mod recompute;
pub mod report;
pub(crate) mod schedule;
pub mod source_sums;
pub(crate) mod tower;
pub mod whole;
pub mod words;
pub(crate) mod work;
