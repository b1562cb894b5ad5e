//! SQ-LLaVA on Burn: images, tokenizers, conversation templates, labels and batches; the files of
//! benchmarks and their scores.
//!
//! Pure data: nothing here knows a model or a tensor library.

pub mod benchmark;
mod clip_tokenizer;
pub mod conversation;
mod error;
pub mod gguf;
pub mod image;

pub mod labels;
pub mod manifest;
mod pieces;
pub mod score;
mod segments;
mod sentencepiece;
pub mod stream;
pub mod template;
pub mod tokenizer;

pub use clip_tokenizer::{ClipTokenizer, ClipTokens};
pub use conversation::{Conversation, Ending, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, Speaker, Turn};
pub use error::DataError;
pub use labels::{
    AskingPolicy, Cut, EncodedSample, IGNORE_INDEX, LabelOptions, conversation_of, encode_sample,
};
pub use manifest::{Author, LlavaSample, Manifest, Message};
pub use segments::{TokenRole, encode_with_images};
pub use stream::{StopMatcher, StreamDecoder};
pub use template::{SQ_TOKENS, Template};
pub use tokenizer::{TextTokenizer, TokenSpan};
