//! From a model to text: decoding, answers to a user, and questions of the model's own.

pub(crate) mod assistant;
pub mod generate;
mod layout;
mod not_finite;
pub mod prefix;
pub(crate) mod questioner;
pub mod sampling;
#[cfg(test)]
mod tests;
