//! Cross-entropy of tokens.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// Cross-entropy of each row in nats, in f32. `logits [n, vocabulary]`, `ids [n]`, each inside the
/// vocabulary → `[n]`
pub fn token_losses<B: Backend>(logits: Tensor<B, 2>, ids: &[i64]) -> Tensor<B, 1> {
    let logits = logits.cast(DType::F32);
    #[cfg(feature = "cpu")]
    let logits = {
        use crate::kernels::cpu;
        // A negative id is outside any vocabulary.
        let places = ids
            .iter()
            .map(|&id| usize::try_from(id).unwrap_or(usize::MAX));
        let kernel = cpu::CrossEntropyKernel(places.collect());
        match cpu::run::<B, _, 1>(kernel, [cpu::float(logits)]) {
            Ok(losses) => return cpu::tensor(losses),
            Err([logits]) => cpu::tensor(logits),
        }
    };
    portable(logits, ids)
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
