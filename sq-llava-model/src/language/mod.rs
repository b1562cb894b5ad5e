//! The language model and its key-value cache.

pub mod cache;
pub mod llama;
pub mod quantize;
pub(crate) mod vocabulary;
