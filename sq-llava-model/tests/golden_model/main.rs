//! The model against the PyTorch reference.

mod checkpoints;
mod cpu_checkpoints;
mod cpu_extractors;
mod extractors;
mod tensors;
