//! Whether a tensor's numbers are finite.

use burn::tensor::{Tensor, backend::Backend};

pub use crate::kernels::finite::all_finite;

/// Whether no element is NaN or infinite. They are looked at on the host: devices may take numbers
/// for finite.
pub fn is_finite<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> bool {
    let data = tensor.clone().into_data();
    match data.as_slice::<f32>() {
        Ok(values) => all_finite(values),
        Err(_) => data.iter::<f32>().all(f32::is_finite),
    }
}
