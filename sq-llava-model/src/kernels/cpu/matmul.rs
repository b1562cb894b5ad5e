//! Products of the matrices of two tensors, sample by sample, as one operation: an operand is read
//! where it lies, transposed or not, and its gradient lies like it.

use std::mem::MaybeUninit;

use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;

use super::Kernel;
use super::gemm::{Matrix, Onto, Threads, is_shared, product_at};
use super::team::share_chunks;
use super::view::filled;

/// `factor · a b`, `a [batch, m, k]` and `b [batch, k, n]`.
#[derive(Debug, Clone)]
pub(crate) struct Matmul {
    pub(crate) factor: f32,
}

/// An operand, for the gradient of the other one, and how its own is to lie.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    tensor: Option<FlexTensor>,
    turned: bool,
}

/// The matrices of a tensor `[batch, rows, columns]`.
#[derive(Clone, Copy)]
struct Matrices<'a> {
    data: &'a [f32],
    batch: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrices<'a> {
    /// Reads a tensor from [`operand`].
    fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let stride = |dim: usize| layout.strides()[dim] as usize;
        Self {
            data: &tensor.storage::<f32>()[layout.start_offset()..],
            batch: stride(0),
            row: stride(1),
            column: stride(2),
        }
    }

    fn transposed(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn of(&self, sample: usize) -> Matrix<'a> {
        Matrix::strided(&self.data[sample * self.batch..], self.row, self.column)
    }
}

/// The tensor if [`Matrices`] can read it fast, rows or columns in one piece, else such a copy.
fn operand(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    let in_one_piece = strides[1] == 1 || strides[2] == 1;
    if in_one_piece && strides.iter().all(|&stride| stride >= 0) {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// Whether columns stand in one piece, and not rows.
fn is_turned(tensor: &FlexTensor) -> bool {
    let strides = tensor.layout().strides();
    strides[1] == 1 && strides[2] != 1
}

fn dims(tensor: &FlexTensor) -> [usize; 3] {
    tensor.layout().shape().dims::<3>()
}

/// A product of `[m, k]` and `[k, n]` for every sample.
#[derive(Clone, Copy)]
struct Products<'a> {
    batch: usize,
    sizes: [usize; 3],
    factor: f32,
    a: Matrices<'a>,
    b: Matrices<'a>,
}

impl Products<'_> {
    /// In new memory.
    fn compute(&self) -> FlexTensor {
        let [m, n, _] = self.sizes;
        let len = self.batch * m * n;
        let mut out = Vec::<f32>::with_capacity(len);
        let room = &mut out.spare_capacity_mut()[..len];
        let write = |sample: usize, out: &mut [MaybeUninit<f32>], threads| {
            let (a, b) = (self.a.of(sample), self.b.of(sample));
            let (at, onto) = (out.as_mut_ptr().cast(), Onto::Nothing);
            // SAFETY: the memory is that of a sample's result.
            unsafe { product_at(self.sizes, self.factor, a, b, at, n, onto, threads) };
        };
        if is_shared(self.sizes) {
            for (sample, out) in room.chunks_exact_mut((m * n).max(1)).enumerate() {
                write(sample, out, Threads::Pool);
            }
        } else {
            share_chunks(room, m * n, |sample, out| write(sample, out, Threads::One));
        }
        // SAFETY: the samples are all of it, and a product onto nothing writes all of its result.
        unsafe { out.set_len(len) };
        filled(out, Shape::from(vec![self.batch, m, n]))
    }

    /// As [`Products::compute`], the columns of the result in one piece if it is `turned`.
    fn laid(&self, turned: bool) -> FlexTensor {
        if !turned {
            return self.compute();
        }
        let [m, n, k] = self.sizes;
        let turned = Products {
            sizes: [n, m, k],
            a: self.b.transposed(),
            b: self.a.transposed(),
            ..*self
        };
        let tensor = turned.compute();
        let layout = tensor.layout().transpose(1, 2);
        tensor.with_layout(layout)
    }
}

impl Matmul {
    fn products<'a>(
        &self,
        batch: usize,
        sizes: [usize; 3],
        [a, b]: [Matrices<'a>; 2],
    ) -> Products<'a> {
        Products {
            batch,
            sizes,
            factor: self.factor,
            a,
            b,
        }
    }
}

impl Kernel<2> for Matmul {
    type Saved = [Operand; 2];

    fn accepts(&self, inputs: &[&FlexTensor; 2]) -> bool {
        let [[batch, _, k], [samples, depth, _]] = inputs.map(dims);
        let f32s = inputs.iter().all(|input| input.dtype() == DType::F32);
        f32s && batch == samples && k == depth
    }

    fn forward(&self, inputs: [FlexTensor; 2]) -> FlexTensor {
        let inputs = inputs.map(operand);
        let [[batch, m, k], [_, _, n]] = inputs.each_ref().map(dims);
        let matrices = inputs.each_ref().map(Matrices::new);
        self.products(batch, [m, n, k], matrices).compute()
    }

    fn forward_saving(
        &self,
        inputs: [FlexTensor; 2],
        [wanted_a, wanted_b]: [bool; 2],
    ) -> (FlexTensor, [Operand; 2]) {
        let [a, b] = inputs.map(operand);
        let saved = [(&a, wanted_b), (&b, wanted_a)].map(|(tensor, needed)| Operand {
            tensor: needed.then(|| tensor.clone()),
            turned: is_turned(tensor),
        });
        (self.forward([a, b]), saved)
    }

    fn backward(
        &self,
        [a, b]: [Operand; 2],
        grad: FlexTensor,
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let grad = operand(grad);
        let ([batch, m, n], g) = (dims(&grad), Matrices::new(&grad));
        // g bᵀ and aᵀ g.
        let d_a = b.tensor.map(|other| {
            let b = Matrices::new(&other).transposed();
            let sizes = [m, dims(&other)[1], n];
            self.products(batch, sizes, [g, b]).laid(a.turned)
        });
        let d_b = a.tensor.map(|other| {
            let a = Matrices::new(&other).transposed();
            let sizes = [dims(&other)[2], n, m];
            self.products(batch, sizes, [a, g]).laid(b.turned)
        });
        [d_a, d_b]
    }
}
