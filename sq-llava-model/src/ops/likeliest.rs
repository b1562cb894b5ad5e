//! The likeliest token, chosen where the logits are: on a GPU one number a row comes to the host.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// What is chosen from one row of logits.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))] // Nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The id of the largest logit, the first of equals.
    Token(i64),
    /// No token may be chosen.
    NoneLeft,
    /// A logit is NaN or infinite.
    NotFinite,
}

/// Chooses among the tokens of a vocabulary, on a GPU.
#[derive(Debug)]
pub(crate) struct Likeliest<B: Backend> {
    /// 1 for tokens that are never chosen, 0 for others. `[vocabulary]`
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))] // Never made.
    barred: Tensor<B, 1>,
}

impl<B: Backend> Likeliest<B> {
    /// Among `vocabulary` ids but those whose scores `bar` changes; `None` where the host chooses, as
    /// it does on other backends than those of GPUs.
    pub fn on_gpu(
        vocabulary: usize,
        bar: impl FnOnce(&mut [f32]),
        device: &B::Device,
    ) -> Option<Self> {
        #[cfg(feature = "gpu")]
        let is_gpu = crate::kernels::gpu::is_gpu::<B>();
        #[cfg(not(feature = "gpu"))]
        let is_gpu = false;
        is_gpu.then(|| {
            let mut barred = vec![0.0f32; vocabulary];
            bar(&mut barred);
            for score in &mut barred {
                *score = if *score == 0.0 { 0.0 } else { 1.0 };
            }
            Self {
                barred: Tensor::from_data(TensorData::from(&barred[..]), device),
            }
        })
    }

    /// The choice of each row, and the ids on the device, which mean nothing where there is none.
    /// `[n, vocabulary]` → `[n]`; `None` where the host chooses.
    #[cfg(feature = "gpu")]
    pub fn choose(&self, logits: Tensor<B, 2>) -> Option<(Tensor<B, 1, Int>, Vec<Choice>)> {
        use crate::kernels::{gpu, primitive::same};
        let inputs = vec![gpu::float(logits), gpu::float(self.barred.clone())];
        let chosen = gpu::launch::<B, _>(&gpu::Likeliest, inputs).ok()?.pop()?;
        // A GPU's tensors of floats and of integers are of one type.
        let ids = Tensor::<B, 1, Int>::from_primitive(same(chosen).ok()?);
        let choices = ids.to_data();
        let choices = choices.iter::<i64>().map(|id| match id {
            gpu::likeliest::NONE_LEFT => Choice::NoneLeft,
            gpu::likeliest::NOT_FINITE => Choice::NotFinite,
            id => Choice::Token(id),
        });
        let choices = choices.collect();
        Some((ids, choices))
    }

    /// The host chooses.
    #[cfg(not(feature = "gpu"))]
    pub fn choose(&self, _: Tensor<B, 2>) -> Option<(Tensor<B, 1, Int>, Vec<Choice>)> {
        None
    }
}
