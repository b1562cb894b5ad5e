//! `sq-llava train`, the real command: what its switches do; stopped, killed, resumed, in trouble.

mod devices;
mod resume;
mod switches;
mod trouble;
mod validation;
mod world;
