//! Whether a tokenizer's ids are rows of a model, and giving a model more of them.

use burn::tensor::{DType, backend::Backend};
use sq_llava_data::{IMAGE_TOKEN, TextTokenizer};

use crate::error::ModelError;
use crate::language::llama::Llama;
use crate::ops::cat::cat;
use crate::ops::weight::Weight;

/// Checks that every token of a tokenizer has one of a model's `rows`. Only the image placeholder
/// may lack its own: no text holds it and no answer may.
///
/// # Errors
/// [`ModelError::Argument`] with the tokens that have none.
pub fn check_vocabulary(tokenizer: &TextTokenizer, rows: usize) -> Result<(), ModelError> {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let placeholder = tokenizer.id(IMAGE_TOKEN);
    let mut without = tokenizer
        .ids()
        .filter(|&id| id >= rows && placeholder != Some(id))
        .filter_map(|id| Some((id, tokenizer.token(id)?)));
    let Some((id, token)) = without.next() else {
        return Ok(());
    };
    let more = match without.count() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Err(ModelError::Argument(format!(
        "wrong vocabulary: the tokenizer has the token {token:?} with the id {id}{more}, but the model has {rows} rows; is this the model's own tokenizer? Leave added tokens out of it, or give the model a row for each (transformers: model.resize_token_embeddings({}))",
        tokenizer.id_end()
    )))
}

impl<B: Backend> Llama<B> {
    /// Gives embedding and head rows for the ids below `rows`: each new one is the mean of the old.
    /// A token of such a row never wins, as a mean is never above the largest.
    ///
    /// # Errors
    /// If the weights are quantised.
    pub(crate) fn grow_vocabulary(&mut self, rows: usize) -> Result<(), ModelError> {
        let head = self.lm_head.as_ref().map(|head| &head.weight);
        let dense = self.model.embed_tokens.weight.is_dense() && head.is_none_or(Weight::is_dense);
        if !dense {
            return match self.vocabulary() < rows {
                false => Ok(()),
                true => Err(ModelError::Argument(
                    "quantised weights take no new rows; load the model without --quantize".into(),
                )),
            };
        }
        let grown = |weight: Weight<B>| match rows.saturating_sub(weight.shape()[0]) {
            0 => weight,
            missing => weight.map(|table| {
                let dtype = table.dtype();
                let mean = table.clone().cast(DType::F32).mean_dim(0).cast(dtype);
                cat(vec![table, mean.repeat_dim(0, missing)], 0)
            }),
        };
        let embedding = &mut self.model.embed_tokens;
        embedding.weight = grown(embedding.weight.clone());
        if let Some(head) = &mut self.lm_head {
            head.weight = grown(head.weight.clone());
        }
        Ok(())
    }
}
