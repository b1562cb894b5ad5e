//! One file for each subcommand.

#![allow(clippy::print_stdout)] // What a command says is its output.

pub mod ablate;
pub mod ask;
pub mod bench;
pub mod chat;
pub mod check;
pub mod clipscore;
pub mod diversity;
pub mod eval;
pub mod export;
pub mod improve;
pub mod inspect;
pub mod judge;
pub mod logits;
pub mod prototypes;
pub mod quality;
pub mod question;
pub mod quickstart;
pub mod score;
pub mod train;
