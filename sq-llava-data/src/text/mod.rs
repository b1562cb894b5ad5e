//! Text: tokenizers, conversation templates, and what of a conversation is learnt.

pub mod chat_template;
pub mod choice;
pub mod conversation;
pub mod labels;
pub mod layout;
mod page;
mod pieces;
pub mod sample;
pub(crate) mod segments;
mod sentencepiece;
pub mod stream;
pub mod template;
pub mod tokenizer;
