//! SQ-LLaVA on [Burn](https://burn.dev): the model, LoRA, generation and weights, generic over
//! Burn's backends.

pub mod config;
pub mod connector;
mod error;
pub mod generation;
pub mod kernels;
pub mod language;
pub mod ops;
pub mod origin;
mod sq_llava;
pub mod vision;
pub mod weights;

pub use config::SqLlavaConfig;
pub use connector::splice::IMAGE_TOKEN_INDEX;
pub use error::ModelError;
pub use generation::assistant::{Answer, AnswerOptions, Assistant, AssistantOptions, Request};
pub use generation::questioner::{Question, QuestionOptions, Questions, SelfQuestioner};
#[cfg(feature = "cpu")]
pub use kernels::cpu::{peak, processor};
pub use language::vocabulary::check_vocabulary;
pub use sq_llava::{Sample, SqLlava};
