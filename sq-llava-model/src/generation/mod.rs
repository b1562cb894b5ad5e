//! From a model to text: decoding, answers to a user, and questions of the model's own.

pub mod assistant;
pub mod generate;
mod not_finite;
pub mod questioner;
pub mod sampling;
