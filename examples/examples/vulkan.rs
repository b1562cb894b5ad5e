//! Ask about a photo on Vulkan.
//!
//! `cargo run --release -p sq-llava-examples --features vulkan --example vulkan -- MODEL PHOTO QUESTION`

fn main() -> Result<(), sq_llava_examples::AnyError> {
    let device = burn_wgpu::WgpuDevice::default();
    sq_llava_examples::ask::<burn_wgpu::Vulkan>(&device, burn::tensor::FloatDType::F16)
}
