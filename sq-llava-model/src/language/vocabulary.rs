//! Whether a tokenizer's ids are rows of a model.

use sq_llava_data::{IMAGE_TOKEN, TextTokenizer};

use crate::error::ModelError;

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
