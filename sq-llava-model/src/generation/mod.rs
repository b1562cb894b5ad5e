//! From a model to text: decoding, answers to a user, and questions of the model's own.

pub mod assistant;
pub mod generate;
pub mod questioner;
pub mod sampling;
