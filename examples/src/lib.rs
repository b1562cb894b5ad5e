//! What the examples share: a question about a photo, on any of Burn's backends.
#![allow(clippy::print_stdout)] // An example shows its result.

use std::io::Write;

use burn::tensor::{FloatDType, backend::Backend};
use sq_llava::{Assistant, AssistantOptions, LoadOptions};

/// Whatever can go wrong.
pub type AnyError = Box<dyn std::error::Error>;

/// Answers the question on the command line: `MODEL PHOTO QUESTION`.
///
/// # Errors
/// If an argument is missing, or the model or the photo cannot be read.
pub fn ask<B: Backend>(device: &B::Device, dtype: FloatDType) -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, photo, question] = &arguments[..] else {
        return Err("give MODEL PHOTO QUESTION".into());
    };
    let options = AssistantOptions {
        load: LoadOptions {
            dtype,
            ..LoadOptions::default()
        },
        ..AssistantOptions::default()
    };
    let assistant = Assistant::<B>::load_on(model, &options, device)?;
    assistant.ask_streaming(photo, question, |text| {
        print!("{text}");
        // A closed pipe is the reader's wish.
        let _ = std::io::stdout().flush();
    })?;
    println!();
    Ok(())
}
