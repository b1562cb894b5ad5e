//! Ask about a photo on an NVIDIA GPU.
//!
//! `cargo run --release -p sq-llava-examples --features cuda --example cuda -- MODEL PHOTO QUESTION`

fn main() -> Result<(), sq_llava_examples::AnyError> {
    let device = burn_cuda::CudaDevice::default();
    sq_llava_examples::ask::<burn_cuda::Cuda>(&device, burn::tensor::FloatDType::BF16)
}
