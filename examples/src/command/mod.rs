//! One file for each subcommand.

#![allow(clippy::print_stdout)] // What a command says is its output.

pub mod ask;
pub mod bench;
pub mod chat;
pub mod check;
pub mod export;
pub mod inspect;
pub mod question;
pub mod train;
