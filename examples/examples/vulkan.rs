//! Ask about a photo on Vulkan.
//!
//! `cargo run --release --features vulkan --example vulkan -- MODEL PHOTO QUESTION`
#![allow(clippy::print_stdout)]

use std::io::Write;

use anyhow::{Context, Result};
use burn::tensor::FloatDType;
use sq_llava_data::Ending;
use sq_llava_model::weights::LoadOptions;
use sq_llava_model::{AnswerOptions, Assistant, AssistantOptions, Request};

type Backend = burn_wgpu::Vulkan;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .context("usage: vulkan MODEL PHOTO QUESTION")
    };
    let (model, photo, question) = (next()?, next()?, next()?);

    let options = AssistantOptions {
        load: LoadOptions {
            dtype: FloatDType::F16,
            ..LoadOptions::default()
        },
        ..AssistantOptions::default()
    };
    let device = burn_wgpu::WgpuDevice::default();
    let (assistant, _report) = Assistant::<Backend>::load(model.as_ref(), &options, &device)?;
    let photo = assistant.open_image(photo.as_ref())?;

    let mut conversation = assistant.conversation();
    conversation.push_images(1).push_user(question);
    let request = Request {
        conversation: &conversation,
        ending: Ending::Answer,
        images: &[photo],
    };
    assistant.answer(&request, &AnswerOptions::default(), &mut |text| {
        print!("{text}");
        // A closed pipe is the reader's wish.
        let _ = std::io::stdout().flush();
    })?;
    println!();
    Ok(())
}
