//! Every reader of other people's files, over damaged copies of good ones: it must answer each with
//! a value or an error, without a panic and within a memory of its file's size.
//!
//! A [`Reader`] says what is read and which good files there are. The tests give it 2,000 damaged
//! copies of them, the same in every run; the programs in `fuzz_targets` let libFuzzer damage them.
//! CONTRIBUTING.md has the commands.

pub mod data;
pub mod eval;
pub mod model;
#[cfg(test)]
mod mutation;
mod reader;
pub mod train;

pub use reader::{Reader, Seeds, Trial};

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// The program of one reader: libFuzzer's, or without cargo-fuzz one that says how to run it.
#[macro_export]
macro_rules! target {
    ($reader:expr) => {
        #[cfg(fuzzing)]
        static TRIAL: std::sync::LazyLock<$crate::Trial> =
            std::sync::LazyLock::new(|| $crate::Trial::of(&$reader));

        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(
            init: $reader.write_seeds(),
            |bytes: &[u8]| TRIAL.read(bytes)
        );

        #[cfg(not(fuzzing))]
        fn main() {
            // The trial is type-checked with everything else.
            let _ = $reader.name;
        }
    };
}
