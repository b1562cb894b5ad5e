//! Reading flex tensors and making new ones.

use burn::tensor::{Bytes, DType, Element, Shape};
use burn_flex::{FlexTensor, Layout};

/// A tensor whose elements stand in order; copied only if they do not.
pub(super) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The tensor if its elements in order are all that its storage holds, else such a copy.
pub(super) fn whole(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    let all = layout.num_elements() * size_of::<f32>() == tensor.bytes().len();
    if all && layout.start_offset() == 0 {
        contiguous(tensor)
    } else {
        tensor.to_contiguous()
    }
}

/// Whether the tensor's elements may be written over: nothing else holds them, and they are all
/// that its storage holds, in order.
pub(super) fn is_free(tensor: &FlexTensor) -> bool {
    let layout = tensor.layout();
    let all = layout.num_elements() * size_of::<f32>() == tensor.bytes().len();
    tensor.dtype() == DType::F32 && tensor.is_unique() && all && tensor.is_contiguous()
}

/// The elements of a tensor from [`contiguous`].
pub(super) fn elements(tensor: &FlexTensor) -> &[f32] {
    let layout = tensor.layout();
    let start = layout.start_offset();
    &tensor.storage::<f32>()[start..start + layout.num_elements()]
}

/// A tensor of these elements.
pub(super) fn filled(elements: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(elements),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// Last dimension of a tensor.
pub(super) fn width(tensor: &FlexTensor) -> usize {
    let shape = tensor.layout().shape();
    match shape.num_dims() {
        0 => 1,
        rank => shape[rank - 1],
    }
}

/// A tensor `[batch, heads, tokens, dim]` whose rows of `dim` elements stand together.
pub(super) struct Heads<'a, T = f32> {
    data: &'a [T],
    start: usize,
    strides: [usize; 3],
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) tokens: usize,
    pub(super) dim: usize,
}

/// The tensor if [`Heads`] can read it, else a copy that it can.
pub(super) fn head_rows(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    if strides[3] == 1 && strides.iter().all(|&stride| stride >= 0) {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

impl<'a, T: Element + bytemuck::Pod> Heads<'a, T> {
    /// Reads a tensor from [`head_rows`].
    pub(super) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [batch, heads, tokens, dim] = layout.shape().dims::<4>();
        let strides = layout.strides();
        Self {
            data: tensor.storage::<T>(),
            start: layout.start_offset(),
            strides: [
                strides[0] as usize,
                strides[1] as usize,
                strides[2] as usize,
            ],
            batch,
            heads,
            tokens,
            dim,
        }
    }

    /// Rows in order, of which each head has room for `capacity`.
    pub(super) fn of(
        data: &'a [T],
        [batch, heads, tokens, dim]: [usize; 4],
        capacity: usize,
    ) -> Self {
        Self {
            data,
            start: 0,
            strides: [heads * capacity * dim, capacity * dim, dim],
            batch,
            heads,
            tokens,
            dim,
        }
    }

    /// One head's rows from `token` on; they are [`Self::row_stride`] apart.
    pub(super) fn head(&self, batch: usize, head: usize, token: usize) -> &'a [T] {
        let [b, h, t] = self.strides;
        let start = self.start + batch * b + head * h + token * t;
        let rows = self.tokens - token;
        match rows {
            0 => &[],
            _ => &self.data[start..start + (rows - 1) * t + self.dim],
        }
    }

    /// Elements between two tokens.
    pub(super) fn row_stride(&self) -> usize {
        self.strides[2]
    }

    /// One row.
    pub(super) fn row(&self, batch: usize, head: usize, token: usize) -> &'a [T] {
        let [b, h, t] = self.strides;
        let start = self.start + batch * b + head * h + token * t;
        &self.data[start..start + self.dim]
    }
}

/// Elements that stand `[batch, tokens, heads, dim]` as a tensor `[batch, heads, tokens, dim]`:
/// what joins or splits the heads next to it costs nothing then.
pub(super) fn token_major(
    elements: Vec<f32>,
    [batch, heads, tokens, dim]: [usize; 4],
) -> FlexTensor {
    let shape = Shape::from(vec![batch, tokens, heads, dim]);
    let tensor = filled(elements, shape);
    let layout = tensor.layout().transpose(1, 2);
    tensor.with_layout(layout)
}
