//! SQ-LLaVA (ECCV 2024): a vision-language model that learns to *ask* about a picture as well as to
//! answer, on [Burn](https://burn.dev).
//!
//! ```no_run
//! use sq_llava::Assistant;
//!
//! let assistant = Assistant::load("sqllava-run")?;
//! println!("{}", assistant.ask("photo.jpg", "What is this?")?);
//! for question in assistant.questions("photo.jpg", 5)? {
//!     println!("{}", question.text);
//! }
//! # Ok::<(), sq_llava::ModelError>(())
//! ```
//!
//! | to do | with |
//! |---|---|
//! | answer, as it comes, several at once; ask | [`Assistant`] |
//! | several turns, other ways to draw tokens | [`Assistant::answer`](model::Assistant::answer) with a [`Request`] |
//! | another backend, dtype, base, blocks of int8 or int4 | [`Assistant::load_on`] with [`AssistantOptions`] |
//! | the model itself, its layers, weights and LoRA | [`model`] |
//! | pictures, tokenizers, templates, data sets | [`data`] |
//! | train: two stages, the joint loss, checkpoints | [`train`], with a [`Recipe`] and [`TrainPaths`] |
//! | a model by its name on the Hugging Face hub | [`Assistant::load`], [`hub`] |
//! | measure: benchmarks, CLIPScore, diversity, judges | [`eval`] |
//!
//! Every module of [`model`] is generic over Burn's `B: Backend`; [`Assistant`] without a type means
//! the CPU (feature `cpu`).

mod assistant;
pub mod hub;

// The crates below, whole.
pub use sq_llava_data as data;
pub use sq_llava_eval as eval;
pub use sq_llava_model as model;
pub use sq_llava_train as train;

// To load a model and talk with it.
pub use assistant::Assistant;
pub use sq_llava_data::{Conversation, Ending, Layout, Template, TemplateChoice};
pub use sq_llava_model::generation::sampling::Sampling;
pub use sq_llava_model::weights::{LoadOptions, Narrow};
pub use sq_llava_model::{Answer, AnswerOptions, AssistantOptions, ModelError, Request};

// To let it ask.
pub use sq_llava_model::{Question, QuestionOptions, Questions, SelfQuestioner};

// To train one.
pub use sq_llava_train::{Recipe, TrainError, TrainPaths};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ReadmeDoctests;
