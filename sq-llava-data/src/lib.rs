//! SQ-LLaVA on Burn: images, tokenizers, conversation templates, labels and batches; the files of
//! benchmarks and their scores.
//!
//! Pure data: nothing here knows a model or a tensor library.

pub mod asking;
pub mod benchmark;
pub mod check;
mod clip_tokenizer;
pub mod conversation;
pub mod diversity;
mod error;
pub mod gguf;
pub mod image;
pub mod judged;
pub mod labels;
pub mod lengths;
pub mod manifest;
pub mod mix;
mod parallel;
mod pieces;
pub mod questions;
pub mod sample;
pub mod sampler;
pub mod score;
mod segments;
mod sentencepiece;
mod shuffle;
pub mod stream;
pub mod summary;
pub mod template;
pub mod tokenizer;

pub use asking::{AskingPolicy, DeltaSchedule, DrawContext};
pub use clip_tokenizer::{ClipTokenizer, ClipTokens};
pub use conversation::{Conversation, Ending, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, Speaker, Turn};
pub use error::DataError;
pub use labels::{Cut, EncodedSample, IGNORE_INDEX, LabelOptions, encode_sample};
pub use lengths::LengthIndex;
pub use manifest::{Author, LlavaSample, Manifest, Message};
pub use parallel::machine_threads;
pub use sample::conversation_of;
pub use sampler::{Grouping, Sampler};
pub use segments::{TokenRole, encode_with_images};
pub use shuffle::shuffle_turns;
pub use stream::{StopMatcher, StreamDecoder};
pub use template::{SQ_TOKENS, Template};
pub use tokenizer::{TextTokenizer, TokenSpan};
