//! The operations that layers are made of: one portable form each, and a kernel where there is one.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cat;
pub mod cross_entropy;
pub mod draws;
pub mod embedding;
#[cfg(feature = "gpu")]
pub(crate) mod few_rows;
pub mod finite;
pub mod hidden;
pub(crate) mod likeliest;
pub mod linear;
pub mod lora;
pub mod norm;
pub mod on_device;
#[cfg(feature = "gpu")]
pub(crate) mod one_token;
pub mod params;
pub(crate) mod product;
pub mod residual;
pub mod rope;
pub mod settle;
pub(crate) mod softmax;
pub mod square_sums;
pub mod weight;
