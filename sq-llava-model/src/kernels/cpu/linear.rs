//! `x Wᵀ + b` with its adapter as one operation: nothing is transposed or copied, all parts of the
//! result and of the input's gradient are added in place, and a frozen weight gets no gradient.

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, Shape};
use burn_flex::{Flex, FlexTensor};

use super::gemm::{Matrix, Threads, new_product, product};
use super::level::vectorised;
use super::pieces;
use super::view::{contiguous, elements, filled};
use super::weight::{FEW, Weight, few, readable, turned, weight_rows};
use super::{Factor, Kernel};
use crate::kernels::blocks::BlockMatrix;

/// Which inputs there are, in this order: `x [rows, in]`, weight `[out, in]` unless it is in
/// blocks, bias `[out]`, the adapter's A `[r, in]` and B `[out, r]`, and its own input `[rows, in]`
/// if that is not x.
#[derive(Debug, Clone)]
pub(crate) struct LinearKernel {
    /// The weight if it is in blocks, which take no gradient.
    pub(crate) blocks: Option<BlockMatrix>,
    /// Whether there is a bias.
    pub(crate) bias: bool,
    /// Scaling of the adapter, if there is one.
    pub(crate) adapter: Option<f64>,
    /// Whether the adapter has an input of its own (some elements are dropped).
    pub(crate) dropped: bool,
}

/// Places of the inputs.
struct Places {
    weight: Option<usize>,
    bias: Option<usize>,
    /// A and B.
    adapter: Option<(usize, usize)>,
    /// The adapter's input.
    low_input: usize,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub(crate) struct Saved<const N: usize> {
    /// The inputs; those that no gradient needs are gone.
    inputs: [Option<FlexTensor>; N],
    /// `x Aᵀ`, `[rows, r]`.
    low: Option<FlexTensor>,
    /// Shapes of the inputs, and so of their gradients.
    shapes: [Shape; N],
    /// Of the weight, if it is an input.
    weight_dtype: Option<DType>,
}

impl LinearKernel {
    /// `x Wᵀ` alone.
    pub(crate) fn plain() -> Self {
        Self {
            blocks: None,
            bias: false,
            adapter: None,
            dropped: false,
        }
    }

    fn places(&self) -> Places {
        let bias = 1 + usize::from(self.blocks.is_none());
        let first = bias + usize::from(self.bias);
        Places {
            weight: self.blocks.is_none().then_some(1),
            bias: self.bias.then_some(bias),
            adapter: self.adapter.map(|_| (first, first + 1)),
            low_input: if self.dropped { first + 2 } else { 0 },
        }
    }

    /// The weight; `given` is the input in its place.
    fn weight<'a>(&'a self, given: Option<&'a FlexTensor>) -> Option<Weight<'a>> {
        match &self.blocks {
            Some(matrix) => Some(Weight::in_blocks(matrix.blocks())),
            None => given.map(Weight::new),
        }
    }

    fn scaling(&self) -> f32 {
        self.adapter.unwrap_or(0.0) as f32
    }

    fn of<const N: usize>(&self, inputs: &[FlexTensor; N]) -> (FlexTensor, Option<FlexTensor>) {
        let places = self.places();
        let Some(weight) = self.weight(inputs.get(1)) else {
            unreachable!("a weight is in blocks or the second input")
        };
        let [rows, _] = inputs[0].layout().shape().dims::<2>();
        let n = weight.d_out;
        let bias = places.bias.map(|bias| elements(&inputs[bias]));
        let mut out = weight.forward(rows, elements(&inputs[0]), bias);
        let low = places.adapter.map(|(a, b)| {
            let (a, b) = (Weight::new(&inputs[a]), elements(&inputs[b]));
            let r = a.d_out;
            let low = a.forward(rows, elements(&inputs[places.low_input]), None);
            let left = Matrix::rows(&low, r);
            let right = Matrix::rows(b, r).transposed();
            let (sizes, factor) = ([rows, n, r], self.scaling());
            product(sizes, factor, left, right, &mut out, n, true, Threads::Pool);
            filled(low, Shape::from(vec![rows, r]))
        });
        (filled(out, Shape::from(vec![rows, n])), low)
    }

    /// Gradients of the adapter's factors, and what reaches the input through them. `g` is the
    /// output's gradient.
    #[inline]
    fn adapter_back<const N: usize>(
        &self,
        saved: &Saved<N>,
        g: &[f32],
        [rows, n]: [usize; 2],
        wanted: [bool; N],
        found: &mut [Option<Vec<f32>>; N],
    ) {
        let places = self.places();
        let Some((at_a, at_b)) = places.adapter else {
            return;
        };
        let scaling = self.scaling();
        if let (true, Some(low)) = (wanted[at_b], &saved.low) {
            let r = super::view::width(low);
            let left = Matrix::rows(g, n).transposed();
            let right = Matrix::rows(elements(low), r);
            let sizes = [n, r, rows];
            found[at_b] = Some(new_product(sizes, scaling, left, right, Threads::Pool));
        }
        if let (Some(a), Some(b)) = (&saved.inputs[at_a], &saved.inputs[at_b]) {
            let [r, k] = a.layout().shape().dims::<2>();
            let (a, b) = (elements(a), elements(b));
            // Gradient of x Aᵀ: g B.
            let (left, right) = (Matrix::rows(g, n), Matrix::rows(b, r));
            let d_low = new_product([rows, r, n], scaling, left, right, Threads::Pool);
            if wanted[places.low_input] {
                let (left, right) = (Matrix::rows(&d_low, r), Matrix::rows(a, k));
                let sizes = [rows, k, r];
                let slot = &mut found[places.low_input];
                match slot {
                    Some(d_x) => product(sizes, 1.0, left, right, d_x, k, true, Threads::Pool),
                    None => *slot = Some(new_product(sizes, 1.0, left, right, Threads::Pool)),
                }
            }
            if let (true, Some(x)) = (wanted[at_a], &saved.inputs[places.low_input]) {
                let left = Matrix::rows(&d_low, r).transposed();
                let right = Matrix::rows(elements(x), k);
                let d_a = new_product([r, k, rows], 1.0, left, right, Threads::Pool);
                found[at_a] = Some(d_a);
            }
        }
    }
}

impl<const N: usize> Kernel<N> for LinearKernel {
    type Saved = Saved<N>;

    fn accepts(&self, inputs: &[&FlexTensor; N]) -> bool {
        let weight = self.places().weight;
        inputs.iter().enumerate().all(|(place, input)| {
            let dtype = input.dtype();
            dtype == DType::F32 || weight == Some(place) && readable(dtype)
        })
    }

    fn forward(&self, inputs: [FlexTensor; N]) -> FlexTensor {
        self.of(&inputs.map(weight_rows)).0
    }

    fn forward_saving(&self, inputs: [FlexTensor; N], wanted: [bool; N]) -> (FlexTensor, Saved<N>) {
        let inputs = inputs.map(weight_rows);
        let shapes = inputs
            .each_ref()
            .map(|input| input.layout().shape().clone());
        let (output, low) = self.of(&inputs);
        let places = self.places();
        let weight_dtype = places.weight.map(|weight| inputs[weight].dtype());
        let mut needed = [false; N];
        if let Some(weight) = places.weight {
            needed[0] = wanted[weight];
            needed[weight] = wanted[0];
        }
        if let Some((a, b)) = places.adapter {
            let to_input = wanted[places.low_input];
            needed[a] |= to_input || wanted[a];
            needed[b] |= to_input || wanted[a] || wanted[b];
            needed[places.low_input] |= wanted[a];
        }
        let keep_low = places.adapter.is_some_and(|(_, b)| wanted[b]);
        let mut needed = needed.into_iter();
        let inputs = inputs.map(|input| needed.next().unwrap_or(true).then_some(input));
        let low = low.filter(|_| keep_low);
        let saved = Saved {
            inputs,
            low,
            shapes,
            weight_dtype,
        };
        (output, saved)
    }

    fn backward(
        &self,
        saved: Saved<N>,
        grad: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let places = self.places();
        let grad = contiguous(grad);
        let [rows, n] = grad.layout().shape().dims::<2>();
        let g = elements(&grad);
        let mut found = [const { None }; N];

        let weight = self.weight(saved.inputs.get(1).and_then(Option::as_ref));
        if let (true, Some(weight)) = (wanted[0], weight) {
            found[0] = Some(weight.backward(rows, g));
        }
        self.adapter_back(&saved, g, [rows, n], wanted, &mut found);
        let weight = places.weight.filter(|&weight| wanted[weight]);
        if let (Some(weight), Some(x)) = (weight, &saved.inputs[0]) {
            let k = super::view::width(x);
            let left = Matrix::rows(g, n).transposed();
            let right = Matrix::rows(elements(x), k);
            found[weight] = Some(new_product([n, k, rows], 1.0, left, right, Threads::Pool));
        }
        if let Some(bias) = places.bias.filter(|&bias| wanted[bias]) {
            found[bias] = Some(pieces::sums(rows, n, n, |from, to, out| {
                add_rows(&g[from * n..to * n], out);
            }));
        }
        let stored = match saved.weight_dtype {
            Some(DType::F16) => Some(FloatDType::F16),
            Some(DType::BF16) => Some(FloatDType::BF16),
            _ => None,
        };
        std::array::from_fn(|place| {
            let tensor = filled(found[place].take()?, saved.shapes[place].clone());
            Some(match stored.filter(|_| places.weight == Some(place)) {
                Some(dtype) => Flex::float_cast(tensor, dtype),
                None => tensor,
            })
        })
    }
}

/// `x Wᵀ` for several weights without bias or adapter, the inputs few and nothing tracked: what a
/// decoded token is multiplied with, in one turn of the pool. `None` where that does not hold.
pub(crate) fn together(
    x: &FlexTensor,
    weights: &[Factor<'_, FlexTensor>],
) -> Option<Vec<FlexTensor>> {
    let [rows, width] = x.layout().shape().dims::<2>();
    let fit = weights.iter().all(|weight| match weight {
        Factor::Tensor(tensor) => tensor.is_contiguous() && readable(tensor.dtype()),
        Factor::Blocks(_) => true,
    });
    if rows == 0 || rows > FEW || x.dtype() != DType::F32 || !fit {
        return None;
    }
    let x = contiguous(x.clone());
    let weights: Vec<Weight<'_>> = weights
        .iter()
        .map(|weight| match weight {
            Factor::Tensor(tensor) => Weight::new(tensor),
            Factor::Blocks(matrix) => Weight::in_blocks(matrix.blocks()),
        })
        .collect();
    if weights.iter().any(|weight| weight.d_in != width) {
        return None;
    }
    let outs = few(&weights, rows, elements(&x)).into_iter();
    Some(
        outs.zip(&weights)
            .map(|(columns, weight)| {
                let out = turned(columns, rows, weight.d_out, None);
                filled(out, Shape::from(vec![rows, weight.d_out]))
            })
            .collect(),
    )
}

vectorised! {
    fn add_rows<L>(rows: &[f32], out: &mut [f32]) {
        for row in rows.chunks_exact(out.len()) {
            for (out, &value) in out.iter_mut().zip(row) {
                *out += value;
            }
        }
    }
}
