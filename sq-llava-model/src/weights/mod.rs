//! Weights: reading the checkpoint directories that people have, and writing them.
//!
//! [`load_model`] reads original LLaVA, llava-hf, a language model with a CLIP tower beside it,
//! and run directories (adapters and projector on a base); from safetensors and PyTorch files,
//! whole or in shards. Files are mapped and converted tensor by tensor, so the memory taken is the
//! model's own in its target dtype and little more.

mod adapter;
mod fill;
mod layout;
mod load;
mod pickle;
mod pytorch;
mod report;
mod run;
mod source;
mod tensor;
mod vision;

pub use layout::Layout;
pub use load::{CheckpointKind, FreshParts, LoadOptions, Loaded, ModelFiles, Progress, load_model};
pub use report::{LoadReport, Mismatch};
