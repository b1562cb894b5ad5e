//! The model against the PyTorch reference.

#![allow(clippy::print_stderr)] // A path that is not tested is named.

mod checkpoints;
mod cpu_checkpoints;
mod cpu_extractors;
mod extractors;
mod tensors;
