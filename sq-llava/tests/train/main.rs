//! `sq-llava train`, the real command: what its switches do; stopped, killed, resumed, in trouble.
#![allow(clippy::print_stdout)] // A skipped test says so, a random one what it drew.

mod adaptive;
mod checkpoint_template;
mod devices;
#[cfg(feature = "mpi")]
mod nodes;
mod packing;
#[cfg(not(feature = "mpi"))]
mod ranks;
mod reports;
mod resume;
mod sources;
mod switches;
mod trouble;
mod validation;
mod world;
