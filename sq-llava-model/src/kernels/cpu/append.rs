//! Writing new rows into a preallocated buffer in place.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;

use super::view::{Heads, head_rows};
use super::{float, same, tensor};

/// Writes `rows [batch, heads, new, dim]` into `buffer [batch, heads, capacity, dim]` from token
/// `start` on. The buffer is copied only while another tensor shares it. `Err` gives both back
/// when they are not flex's or not f32.
pub(crate) fn append<B: Backend>(
    buffer: Tensor<B, 4>,
    start: usize,
    rows: Tensor<B, 4>,
) -> Result<Tensor<B, 4>, (Tensor<B, 4>, Tensor<B, 4>)> {
    if buffer.dtype() != DType::F32 || rows.dtype() != DType::F32 {
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
    let [_, _, capacity, _] = buffer.layout().shape().dims::<4>();
    let rows = head_rows(rows);
    let rows = Heads::new(&rows);
    let out: &mut [f32] = buffer.storage_mut();
    for batch in 0..rows.batch {
        for head in 0..rows.heads {
            for token in 0..rows.tokens {
                let row = (batch * rows.heads + head) * capacity + start + token;
                out[row * rows.dim..][..rows.dim].copy_from_slice(rows.row(batch, head, token));
            }
        }
    }
    match same(buffer) {
        Ok(primitive) => Ok(tensor(primitive)),
        Err(_) => unreachable!("the types were found equal on the way in"),
    }
}
