//! Text: tokenizers, conversation templates, and what of a conversation is learnt.

mod chat_template;
pub mod conversation;
pub mod labels;
mod pieces;
pub mod sample;
pub(crate) mod segments;
mod sentencepiece;
pub mod stream;
pub mod template;
pub mod tokenizer;
