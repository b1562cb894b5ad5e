//! The `sq-llava` command.
fn main() {}
