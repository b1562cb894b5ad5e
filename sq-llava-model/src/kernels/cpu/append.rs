//! Writing new rows into a preallocated buffer in place.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element, Tensor, bf16, f16};
use burn_flex::FlexTensor;

use super::rows::Stored;
use super::view::{Heads, head_rows};
use super::weight::readable;
use super::{float, same, tensor};

/// Writes `rows [batch, heads, new, dim]` into `buffer [batch, heads, capacity, dim]` from token
/// `start` on, rounded to the buffer's dtype. The buffer is copied only while another tensor shares
/// it. `Err` gives both back when they are not flex's, the rows are not f32 or the buffer is in
/// another dtype than f32, f16 and bf16.
pub(crate) fn append<B: Backend>(
    buffer: Tensor<B, 4>,
    start: usize,
    rows: Tensor<B, 4>,
) -> Result<Tensor<B, 4>, (Tensor<B, 4>, Tensor<B, 4>)> {
    if !readable(buffer.dtype()) || rows.dtype() != DType::F32 {
        return Err((buffer, rows));
    }
    let pair = same::<_, [FlexTensor; 2]>([float(buffer), float(rows)]);
    let [mut buffer, rows] = match pair {
        Ok(pair) => pair,
        Err([buffer, rows]) => return Err((tensor(buffer), tensor(rows))),
    };
    buffer = in_order(buffer);
    let rows = head_rows(rows);
    put(&mut buffer, start, &Heads::new(&rows));
    match same(buffer) {
        Ok(primitive) => Ok(tensor(primitive)),
        Err(_) => unreachable!("the types were found equal on the way in"),
    }
}

/// The buffer with its elements in order from the first of its storage on, else such a copy.
pub(super) fn in_order(buffer: FlexTensor) -> FlexTensor {
    let layout = buffer.layout();
    match layout.is_contiguous() && layout.start_offset() == 0 {
        true => buffer,
        false => buffer.to_contiguous(),
    }
}

/// Writes rows into a buffer from [`in_order`] as tokens from `start` on, in its dtype: f16, bf16 or
/// f32.
pub(super) fn put(buffer: &mut FlexTensor, start: usize, rows: &Heads<'_>) {
    match buffer.dtype() {
        DType::F16 => write::<f16>(buffer, start, rows),
        DType::BF16 => write::<bf16>(buffer, start, rows),
        _ => write::<f32>(buffer, start, rows),
    }
}

fn write<T: Stored + Element + bytemuck::Pod>(
    buffer: &mut FlexTensor,
    start: usize,
    rows: &Heads<'_>,
) {
    let [_, _, capacity, _] = buffer.layout().shape().dims::<4>();
    let out: &mut [T] = buffer.storage_mut();
    for batch in 0..rows.batch {
        for head in 0..rows.heads {
            for token in 0..rows.tokens {
                let row = (batch * rows.heads + head) * capacity + start + token;
                T::from_full(
                    rows.row(batch, head, token),
                    &mut out[row * rows.dim..][..rows.dim],
                );
            }
        }
    }
}
