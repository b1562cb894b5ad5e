//! Ask about a photo on an Apple GPU.
//!
//! `cargo run --release -p sq-llava-examples --features metal --example metal -- MODEL PHOTO QUESTION`

fn main() -> Result<(), sq_llava_examples::AnyError> {
    let device = burn_wgpu::WgpuDevice::default();
    sq_llava_examples::ask::<burn_wgpu::Metal>(&device, burn::tensor::FloatDType::F16)
}
