//! Rows of a template's role tokens, which train although the base is frozen.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::Llama;

/// Rows of embedding and head that train although the base is frozen. They replace the rows from
/// id `start` on, where the base has such rows.
#[derive(Module, Debug)]
pub struct NewTokens<B: Backend> {
    /// `[rows, hidden]`.
    pub embed: Param<Tensor<B, 2>>,
    /// `[rows, hidden]`; `None` when the head is tied to the embedding.
    pub lm_head: Option<Param<Tensor<B, 2>>>,
    /// Id of the first row.
    #[module(skip)]
    pub start: usize,
}

impl<B: Backend> NewTokens<B> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.embed.lazy_shape()[0]
    }

    /// Rows drawn with the mean and the deviation of the old ones: as long as any word's, so that
    /// they are learnt as fast. Where words are long, rows near the mean alone take hundreds of
    /// steps to be said at all.
    pub fn init(llama: &Llama<B>, start: usize, rows: usize, seed: u64) -> Self {
        let draw = |table: Tensor<B, 2>, seed: u64| {
            // The last row that counts is the one before `start`: padding rows say nothing.
            let [all, width] = table.dims();
            let old = table
                .slice([0..start.min(all), 0..width])
                .detach()
                .cast(DType::F32);
            let (variance, mean) = old.var_mean(0); // [1, width]
            let noise = crate::ops::draws::normal::<B>(rows, width, seed, &mean.device());
            let rows = mean + noise * variance.sqrt();
            Param::from_tensor(rows)
        };
        let embed = draw(llama.model.embed_tokens.table(), seed);
        let lm_head = llama
            .lm_head
            .as_ref()
            .map(|head| draw(head.clone().dequantize().weight.val(), seed ^ 1));
        Self {
            embed,
            lm_head,
            start,
        }
    }

    /// The model's own rows of tokens that it already learnt; `None` where it has none.
    pub fn learnt(llama: &Llama<B>, start: usize, rows: usize) -> Option<Self> {
        let own = |table: Tensor<B, 2>| {
            let [all, width] = table.dims();
            let rows = (start + rows <= all).then(|| table.slice([start..start + rows, 0..width]));
            rows.map(|rows| Param::from_tensor(rows.detach().cast(DType::F32)))
        };
        let embed = own(llama.model.embed_tokens.table())?;
        let lm_head = match &llama.lm_head {
            Some(head) => Some(own(head.clone().dequantize().weight.val())?),
            None => None,
        };
        Some(Self {
            embed,
            lm_head,
            start,
        })
    }

    /// Rows to be overwritten by a checkpoint's.
    pub fn zeros(rows: usize, hidden: usize, tied: bool, start: usize, device: &B::Device) -> Self {
        let zeros = || Initializer::Zeros.init([rows, hidden], device);
        Self {
            embed: zeros(),
            lm_head: (!tied).then(zeros),
            start,
        }
    }
}
