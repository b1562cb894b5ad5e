//! The parts of a decoder layer on rows of numbers, for one new token of each of a few samples: what
//! they cost beside reading the weights is then not that of tensors.

use burn::tensor::{DType, Element, bf16, f16};
use burn_flex::FlexTensor;

use super::activation::gated;
use super::append::{in_order, put};
use super::attention::Attention;
use super::norm::rms_rows;
use super::rope::turn;
use super::rows::Stored;
use super::view::{Heads, elements};
use super::weight::{FEW, Weight, few, readable, turned};
use crate::kernels::activation::Activation;
use crate::kernels::blocks::BlockMatrix;

/// Samples that go this way at most.
pub(crate) const SAMPLES: usize = FEW;

/// A weight `[out, in]`.
pub(crate) enum StepWeight {
    /// In order, in a dtype that kernels read.
    Tensor(FlexTensor),
    /// Blocks of integers.
    Blocks(BlockMatrix),
}

impl StepWeight {
    /// A tensor that kernels read where it lies.
    pub(crate) fn tensor(tensor: FlexTensor) -> Option<Self> {
        let fits = tensor.is_contiguous() && readable(tensor.dtype());
        fits.then_some(Self::Tensor(tensor))
    }

    fn read(&self) -> Weight<'_> {
        match self {
            Self::Tensor(tensor) => Weight::new(tensor),
            Self::Blocks(matrix) => Weight::in_blocks(matrix.blocks()),
        }
    }
}

/// A linear map without adapter.
pub(crate) struct StepLinear {
    pub(crate) weight: StepWeight,
    /// `[out]`, f32 and in order.
    pub(crate) bias: Option<FlexTensor>,
}

/// Maps of the same rows `[rows, in]`, all weights read at once: `[rows, out]` each.
pub(crate) fn products(linears: &[&StepLinear], rows: usize, x: &[f32]) -> Vec<Vec<f32>> {
    let weights: Vec<Weight<'_>> = linears.iter().map(|linear| linear.weight.read()).collect();
    let columns = few(&weights, rows, x).into_iter();
    let outs = columns.zip(&weights).zip(linears);
    outs.map(|((columns, weight), linear)| {
        let bias = linear.bias.as_ref().map(elements);
        turned(columns, rows, weight.d_out, bias)
    })
    .collect()
}

/// Root-mean-square norm of rows as wide as its weight, f32 and in order.
pub(crate) fn rms_norm(x: &[f32], weight: &FlexTensor, eps: f64) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    rms_rows(x, elements(weight), eps as f32, &mut out);
    out
}

/// Turns heads `[rows, heads, dim]` by the angles `[rows or 1, 1, 1, rotated]` of their rows.
pub(crate) fn rotate(x: &mut [f32], [rows, dim]: [usize; 2], cos: &FlexTensor, sin: &FlexTensor) {
    let rotated = cos.layout().shape()[3];
    let (cos, sin) = (elements(cos), elements(sin));
    let mut head = vec![0.0; dim];
    let width = x.len() / rows;
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        let at = if cos.len() == rotated {
            0
        } else {
            row * rotated
        };
        let angles = (&cos[at..at + rotated], &sin[at..at + rotated]);
        for x in x.chunks_exact_mut(dim) {
            turn(x, angles.0, angles.1, 1.0, &mut head);
            x.copy_from_slice(&head);
        }
    }
}

/// `f(gate) · up`.
pub(crate) fn gate(which: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    gated(which, gate, up, &mut out);
    out
}

/// Keys and values of one layer: `[samples, heads, capacity, dim]` each, from the first element on.
pub(crate) struct StepCache {
    pub(crate) keys: FlexTensor,
    pub(crate) values: FlexTensor,
}

impl StepCache {
    /// A cache of buffers in order, in a dtype that kernels read.
    pub(crate) fn new(keys: FlexTensor, values: FlexTensor) -> Self {
        let [keys, values] = [keys, values].map(in_order);
        Self { keys, values }
    }

    /// Writes keys and values `[samples, heads, dim]` of a token as number `at`.
    pub(crate) fn write(&mut self, at: usize, keys: &[f32], values: &[f32]) {
        for (buffer, rows) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let [samples, heads, _, dim] = buffer.layout().shape().dims::<4>();
            put(buffer, at, &Heads::of(rows, [samples, heads, 1, dim], 1));
        }
    }

    /// What queries `[samples, heads, dim]` attend to among the first `tokens`; the mask is none
    /// or a span. `[samples, heads, dim]`
    pub(crate) fn attend(&self, attention: &Attention, queries: &[f32], tokens: usize) -> Vec<f32> {
        match self.keys.dtype() {
            DType::F16 => self.read::<f16>(attention, queries, tokens),
            DType::BF16 => self.read::<bf16>(attention, queries, tokens),
            _ => self.read::<f32>(attention, queries, tokens),
        }
    }

    fn read<T: Stored + Element + bytemuck::Pod>(
        &self,
        attention: &Attention,
        queries: &[f32],
        tokens: usize,
    ) -> Vec<f32> {
        let [samples, heads, capacity, dim] = self.keys.layout().shape().dims::<4>();
        let [keys, values] = [&self.keys, &self.values].map(|buffer| {
            Heads::of(
                buffer.storage::<T>(),
                [samples, heads, tokens, dim],
                capacity,
            )
        });
        let query_heads = queries.len() / (samples * dim);
        let queries = Heads::of(queries, [samples, query_heads, 1, dim], 1);
        attention.step(&queries, &keys, &values)
    }
}
