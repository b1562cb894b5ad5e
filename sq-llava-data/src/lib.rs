//! SQ-LLaVA on Burn: images and their masks, tokenizers, conversation templates, labels,
//! manifests and samplers.
//!
//! Pure data: nothing here knows a model or a tensor library.

pub mod asking;
pub mod atomic;
mod blob;
pub mod check;
mod error;
pub mod files;
pub mod foreign;
pub mod gguf;
pub mod image;
pub mod lengths;
pub mod manifest;
pub mod masks;
pub mod mix;
mod parallel;
pub mod sampler;
mod shuffle;
pub mod source;
pub mod text;

pub use asking::{AskingPolicy, DeltaSchedule, DrawContext, FollowedSources};
pub use error::DataError;
pub use lengths::LengthIndex;
pub use manifest::{Author, LlavaSample, Manifest, Message};
pub use parallel::machine_threads;
pub use sampler::{Draw, Grouping, Sampler};
pub use shuffle::shuffle_turns;
pub use source::{DataSet, Source};
pub use text::chat_template::{AskingRole, ChatOptions, ChatTemplate, CheckpointTemplate};
pub use text::chat_template::{EncodedChat, MEDIA_MARKER, Rendered};
pub use text::choice::TemplateChoice;
pub use text::conversation::{Conversation, Ending, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, Speaker, Turn};
pub use text::labels::{
    Cut, EncodedSample, IGNORE_INDEX, LabelOptions, encode_sample, encode_sample_with_images,
};
pub use text::layout::Layout;
pub use text::sample::conversation_of;
pub use text::segments::{TokenRole, encode_with_images};
pub use text::stream::{StopMatcher, StreamDecoder};
pub use text::template::{SQ_TOKENS, Template};
pub use text::tokenizer::{TextTokenizer, TokenSpan};
