//! Measuring a vision-language model: benchmarks in their own formats, their scores, CLIPScore,
//! how varied questions are, and judges. Nothing here is needed to train or to answer.

pub mod benchmark;
pub mod clip_score;
pub mod diversity;
mod error;
pub mod judge;
pub mod questions;
pub mod reply;
pub mod run;
pub mod score;
pub mod summary;

pub use error::EvalError;
