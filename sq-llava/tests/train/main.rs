//! `sq-llava train`, the real command: what its switches do; stopped, killed, resumed, in trouble.
#![allow(clippy::print_stdout)] // A skipped test says so, a random one what it drew.

mod checkpoint_template;
mod devices;
mod nodes;
mod resume;
mod sources;
mod switches;
mod trouble;
mod validation;
mod world;
