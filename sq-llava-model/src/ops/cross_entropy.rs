//! Cross-entropy of tokens.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use crate::kernels::Kernels;
use crate::ops::cat::cat;

/// Cross-entropy of each row in nats, in f32. `logits [n, vocabulary]`, `ids [n]`, each inside the
/// vocabulary → `[n]`
pub fn token_losses<B: Backend>(logits: Tensor<B, 2>, ids: &[i64]) -> Tensor<B, 1> {
    #[cfg(feature = "gpu")]
    let logits = {
        use crate::kernels::gpu;
        let kernel = gpu::CrossEntropyKernel::new(ids);
        match gpu::run::<B, _, 1>(kernel, [gpu::float(logits)]) {
            Ok(losses) => return gpu::tensor(losses),
            Err([logits]) => gpu::tensor::<B, 2>(logits),
        }
    };
    let logits = logits.cast(DType::F32);
    #[cfg(feature = "cpu")]
    let logits = {
        use crate::kernels::cpu;
        let kernel = cpu::CrossEntropyKernel(places(ids));
        match cpu::run::<B, _, 1>(kernel, [cpu::float(logits)]) {
            Ok(losses) => return cpu::tensor(losses),
            Err([logits]) => cpu::tensor(logits),
        }
    };
    portable(logits, ids)
}

/// As [`token_losses`], where the logits `new [n, rows]` stand in place of the columns from `start`
/// on, or behind the last.
pub fn joined_token_losses<B: Backend>(
    base: Tensor<B, 2>,
    new: Tensor<B, 2>,
    start: usize,
    ids: &[i64],
) -> Tensor<B, 1> {
    if Kernels::of::<B>() == Kernels::Gpu {
        // Its kernel reads what is stored in 16 bits.
        let new = new.cast(base.dtype());
        return token_losses(joined(base, new, start), ids);
    }
    let (base, new) = (base.cast(DType::F32), new.cast(DType::F32));
    #[cfg(feature = "cpu")]
    let [base, new] = {
        use crate::kernels::cpu;
        let kernel = cpu::JoinedCrossEntropyKernel {
            ids: places(ids),
            start,
        };
        match cpu::run::<B, _, 2>(kernel, [cpu::float(base), cpu::float(new)]) {
            Ok(losses) => return cpu::tensor(losses),
            Err(inputs) => inputs.map(cpu::tensor),
        }
    };
    token_losses(joined(base, new, start), ids)
}

/// Logits with others in place of the columns from `start` on, or behind the last.
/// `[n, columns]`, `[n, rows]` → `[n, columns or more]`
pub(crate) fn joined<B: Backend>(
    base: Tensor<B, 2>,
    new: Tensor<B, 2>,
    start: usize,
) -> Tensor<B, 2> {
    let [n, width] = base.dims();
    let end = start + new.dims()[1];
    let mut parts = vec![base.clone().slice([0..n, 0..start.min(width)]), new];
    if end < width {
        parts.push(base.slice([0..n, end..width]));
    }
    cat(parts, 1)
}

/// A negative id is outside any vocabulary.
#[cfg(feature = "cpu")]
fn places(ids: &[i64]) -> std::sync::Arc<[usize]> {
    let place = |&id: &i64| usize::try_from(id).unwrap_or(usize::MAX);
    ids.iter().map(place).collect()
}

/// The operations that every backend has.
pub(crate) fn portable<B: Backend>(logits: Tensor<B, 2>, ids: &[i64]) -> Tensor<B, 1> {
    let device = logits.device();
    let index = Tensor::<B, 1, Int>::from_data(TensorData::from(ids), &device);
    log_softmax(logits, 1)
        .gather(1, index.unsqueeze_dim(1))
        .squeeze_dim::<1>(1)
        .neg()
}
