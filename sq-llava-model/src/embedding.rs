//! Lookup table in checkpoint layout.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};

/// Rows by index.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[rows, hidden]`.
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Embedding<B> {
    /// Rows from `N(0, 0.02²)`, as in CLIP and LLaMA.
    pub fn init(rows: usize, hidden: usize, device: &B::Device) -> Self {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        Self {
            weight: normal.init([rows, hidden], device),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.weight.lazy_shape()[0]
    }

    /// `[n]` → `[n, hidden]`, in the table's dtype.
    pub fn forward(&self, indices: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.weight.val().select(0, indices)
    }
}
