//! Ask about a photo on the CPU; needs nothing installed.
//!
//! `cargo run --release -p sq-llava-examples --example cpu -- MODEL PHOTO QUESTION`

fn main() -> Result<(), sq_llava_examples::AnyError> {
    let device = burn_flex::FlexDevice;
    sq_llava_examples::ask::<burn_flex::Flex>(&device, burn::tensor::FloatDType::F32)
}
