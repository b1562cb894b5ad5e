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
    let layout = buffer.layout();
    if !(layout.is_contiguous() && layout.start_offset() == 0) {
        buffer = buffer.to_contiguous();
    }
    let rows = head_rows(rows);
    match buffer.dtype() {
        DType::F16 => write::<f16>(&mut buffer, start, &rows),
        DType::BF16 => write::<bf16>(&mut buffer, start, &rows),
        _ => write::<f32>(&mut buffer, start, &rows),
    }
    match same(buffer) {
        Ok(primitive) => Ok(tensor(primitive)),
        Err(_) => unreachable!("the types were found equal on the way in"),
    }
}

fn write<T: Stored + Element + bytemuck::Pod>(
    buffer: &mut FlexTensor,
    start: usize,
    rows: &FlexTensor,
) {
    let [_, _, capacity, _] = buffer.layout().shape().dims::<4>();
    let rows = Heads::<f32>::new(rows);
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
