//! A tensor on its way into a GGUF file.

use std::rc::Rc;

use burn::tensor::TensorData;
use sq_llava_data::gguf::GgufOutput;

use super::encode::GgufType;
use crate::error::ModelError;
use crate::weights::save::floats;
use crate::weights::write::Entry;

/// What is done to a weight before it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    /// Heads whose rows are to alternate between the two halves of a head.
    pub interleaved_heads: Option<usize>,
    /// Whether one is added.
    pub one_more: bool,
    /// Factor, after that.
    pub factor: f32,
}

impl Change {
    /// None.
    pub const NONE: Self = Self {
        interleaved_heads: None,
        one_more: false,
        factor: 1.0,
    };

    fn apply(self, values: &mut Vec<f32>, rows: usize) {
        if self.one_more {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        if self.factor != 1.0 {
            values.iter_mut().for_each(|value| *value *= self.factor);
        }
        if let Some(heads) = self.interleaved_heads {
            *values = alternating(values, rows, heads);
        }
    }
}

/// Rows `0, d/2, 1, d/2 + 1 …` of each head.
fn alternating(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (row, head) = (values.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(values.len());
    for first in (0..rows).step_by(head) {
        for i in 0..head / 2 {
            for at in [first + i, first + head / 2 + i] {
                out.extend_from_slice(&values[at * row..(at + 1) * row]);
            }
        }
    }
    out
}

/// A tensor to be written; its values are fetched when its turn comes.
pub(in crate::weights) struct Tensor {
    name: String,
    shape: Vec<usize>,
    kind: GgufType,
    change: Change,
    values: Rc<dyn Fn() -> TensorData>,
}

impl Tensor {
    /// A weight under a name of the file. Vectors are written in f32, and a matrix in `kind` as far
    /// as its rows allow; `table` is embedding or head.
    pub(super) fn new(
        name: String,
        entry: Entry,
        change: Change,
        kind: GgufType,
        table: bool,
    ) -> Self {
        let columns = entry.shape.last().copied().unwrap_or(1);
        let kind = match entry.shape.len() {
            0 | 1 => GgufType::F32,
            2 => kind.of_rows(columns, table),
            // llama.cpp convolves with f32 or f16.
            _ if kind == GgufType::F32 => kind,
            _ => GgufType::F16,
        };
        Self {
            name,
            shape: entry.shape,
            kind,
            change,
            values: Rc::from(entry.values),
        }
    }

    /// A vector of f32.
    pub fn vector(name: &str, values: Vec<f32>) -> Self {
        let shape = [values.len()];
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            kind: GgufType::F32,
            change: Change::NONE,
            values: Rc::new(move || TensorData::new(values.clone(), shape)),
        }
    }

    /// The same weight under another name.
    pub fn renamed(&self, name: &str) -> Self {
        Self {
            name: name.into(),
            shape: self.shape.clone(),
            kind: self.kind,
            change: self.change,
            values: self.values.clone(),
        }
    }

    /// In f32, whatever its kind was.
    pub fn in_f32(mut self) -> Self {
        self.kind = GgufType::F32;
        self
    }

    /// Its type in the file.
    pub fn kind(&self) -> GgufType {
        self.kind
    }

    /// Its line in the file's list.
    pub fn line(&self) -> GgufOutput {
        GgufOutput {
            name: self.name.clone(),
            shape: self.shape.clone(),
            kind: self.kind.number(),
            bytes: self.kind.bytes(self.shape.iter().product()),
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// If a value is not finite in the type.
    pub fn bytes(&self) -> Result<Vec<u8>, ModelError> {
        let mut values = floats((self.values)());
        self.change
            .apply(&mut values, self.shape.first().copied().unwrap_or(1));
        let columns = self.shape.last().copied().unwrap_or(1);
        self.kind.encode(&self.name, &values, columns)
    }
}
