//! SQ-LLaVA on [Burn](https://burn.dev): the model, LoRA, generation and weights, generic over
//! Burn's backends.

pub mod activation;
pub mod adamw;
pub mod assistant;
pub mod attention;
pub mod cache;
pub mod cat;
pub mod clip;
pub mod clip_model;
pub mod clip_score;
pub mod clip_text;
pub mod cluster;
pub mod config;
#[cfg(feature = "cpu")]
mod cpu;
pub mod cross_entropy;
pub mod draws;
pub mod embedding;
mod error;
pub mod generate;
pub mod linear;
pub mod llama;
pub mod lora;
pub mod multimodal;
pub mod norm;
pub mod pool;
pub mod projector;
pub mod prototype;
pub mod quant;
pub mod questioner;
pub mod rope;
pub mod sampling;
mod sq_llava;
pub mod weights;

pub use assistant::{Answer, AnswerOptions, Assistant, AssistantOptions, Request};
pub use config::SqLlavaConfig;
pub use error::ModelError;
pub use multimodal::IMAGE_TOKEN_INDEX;
pub use questioner::{Question, QuestionOptions, Questions, SelfQuestioner};
pub use sq_llava::{Sample, SqLlava};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ReadmeDoctests;
