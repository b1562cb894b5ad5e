//! Measuring a vision-language model: benchmarks in their own formats, their scores, CLIPScore,
//! how varied questions are, and judges. Nothing here is needed to train or to answer.
//!
//! A benchmark is a [`task::Task`], one file each in `task/`; [`registry`] lists them. Its
//! questions, answers and results are [`question`], [`answer`], [`matched`] and [`report`]; [`run`]
//! asks a model. Formats are those of LLaVA's evaluation scripts, so that theirs and ours read each
//! other's files. Everything written is a function of its input alone: the same bytes every time.

pub mod answer;
pub mod clip_score;
pub mod diversity;
mod error;
mod jsonl;
pub mod judge;
pub mod layout;
pub mod matched;
pub mod metric;
pub mod problem;
pub mod protocol;
pub mod prototypes;
pub mod published;
pub mod question;
pub mod question_list;
pub mod registry;
pub mod report;
pub mod run;
pub mod shard;
pub mod submission;
pub mod summary;
mod table;
pub mod task;

pub use error::EvalError;
