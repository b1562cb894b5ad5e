//! Lookup table in checkpoint layout.

use burn::module::{Initializer, Module};
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use crate::ops::linear::product;
use crate::ops::weight::Weight;

/// Rows by index.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[rows, hidden]`.
    pub weight: Weight<B>,
}

impl<B: Backend> Embedding<B> {
    /// Rows from `N(0, 0.02²)`, as in CLIP and LLaMA.
    pub fn init(rows: usize, hidden: usize, device: &B::Device) -> Self {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        Self {
            weight: Weight::Dense(normal.init([rows, hidden], device)),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.weight.shape()[0]
    }

    /// `[n]` → `[n, hidden]`, in the table's dtype (f32 if it is in blocks).
    pub fn forward(&self, indices: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        match self.weight.blocks() {
            Some(matrix) => matrix.select(indices),
            None => self.weight.val().select(0, indices),
        }
    }

    /// The rows as an output head. `[n, hidden]` → `[n, rows]`, in the input's dtype
    pub fn scores(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.weight.blocks() {
            Some(matrix) => matrix.product(hidden),
            None => product(hidden, self.weight.val()),
        }
    }

    /// All rows, f32 if they are in blocks. `[rows, hidden]`
    pub fn table(&self) -> Tensor<B, 2> {
        match self.weight.blocks() {
            Some(matrix) => {
                let device = self.weight.device();
                Tensor::from_data(matrix.dequantize(), (&device, DType::F32))
            }
            None => self.weight.val(),
        }
    }
}
