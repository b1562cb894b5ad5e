//! The reference checks of `sq-llava-model` on Vulkan. Mesa's software driver will do; without
//! any driver the tests say so and do nothing.
#![cfg(feature = "vulkan")]
#![allow(clippy::print_stderr)] // A skipped test says so.

#[path = "../../sq-llava-model/tests/golden_model/checkpoints.rs"]
mod checkpoints;
#[path = "../../sq-llava-model/tests/golden_model/extractors.rs"]
mod extractors;
#[path = "../../sq-llava-model/tests/golden_model/tensors.rs"]
mod tensors;

use std::sync::OnceLock;

use burn::tensor::{Distribution, Tensor, TensorData};
use burn_wgpu::{RuntimeOptions, Vulkan, WgpuDevice, graphics, init_setup};
use checkpoints::{Checkpoint, part_a, part_a2};
use sq_llava_model::attention::{AttentionMask, attention};

type B = Vulkan;

/// The first Vulkan adapter, software ones included; `None`, with a message, if there is none.
fn device() -> Option<WgpuDevice> {
    static DEVICE: OnceLock<Option<WgpuDevice>> = OnceLock::new();
    DEVICE
        .get_or_init(|| {
            let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
                backends: wgpu::Backends::VULKAN,
                ..wgpu::InstanceDescriptor::new_without_display_handle()
            });
            let found = instance.enumerate_adapters(wgpu::Backends::VULKAN);
            let adapters = burn::tensor::try_read_sync(found).unwrap_or_default();
            let Some(adapter) = adapters.first() else {
                eprintln!("skipped: no Vulkan driver is installed");
                return None;
            };
            let device = match adapter.get_info().device_type {
                wgpu::DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(0),
                wgpu::DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(0),
                wgpu::DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(0),
                wgpu::DeviceType::Cpu | wgpu::DeviceType::Other => WgpuDevice::Cpu,
            };
            init_setup::<graphics::Vulkan>(&device, RuntimeOptions::default());
            Some(device)
        })
        .clone()
}

fn each(checkpoints: Vec<Checkpoint>, check: impl Fn(&Checkpoint, &WgpuDevice)) {
    if let Some(device) = device() {
        for checkpoint in &checkpoints {
            check(checkpoint, &device);
        }
    }
}

#[test]
fn golden_vulkan_a_hidden_states() {
    each(part_a(), |checkpoint, device| {
        checkpoints::hidden_states::<B>(checkpoint, device);
    });
}

#[test]
fn golden_vulkan_a_image_tokens() {
    each(part_a(), checkpoints::image_tokens::<B>);
}

#[test]
fn golden_vulkan_a_logits() {
    each(part_a(), |checkpoint, device| {
        checkpoints::logits::<B>(checkpoint, "input_ids_orig", device);
    });
}

#[test]
fn golden_vulkan_a_greedy() {
    each(part_a(), checkpoints::greedy::<B>);
}

#[test]
fn golden_vulkan_a_text_logits() {
    each(part_a(), |checkpoint, device| {
        checkpoints::text_logits::<B>(checkpoint, device);
    });
}

#[test]
fn golden_vulkan_a2_image_tokens() {
    each(part_a2(), checkpoints::image_tokens::<B>);
}

#[test]
fn golden_vulkan_a2_logits() {
    each(part_a2(), |checkpoint, device| {
        checkpoints::logits::<B>(checkpoint, "input_ids_orig", device);
    });
}

#[test]
fn golden_vulkan_a2_greedy() {
    each(part_a2(), checkpoints::greedy::<B>);
}

#[test]
fn golden_vulkan_b_cluster() {
    if let Some(device) = device() {
        extractors::cluster_output::<B>(&device);
        extractors::cluster_centers::<B>(&device);
    }
}

#[test]
fn golden_vulkan_b_full_size() {
    if let Some(device) = device() {
        extractors::cluster_full_size::<B>(&device);
    }
}

#[test]
fn golden_vulkan_c_prototype() {
    if let Some(device) = device() {
        extractors::prototype_output::<B>(&device);
        extractors::prototype_intermediates::<B>(&device);
    }
}

/// Backends disagree about the alignment of a causal mask when there are fewer queries than keys;
/// a chunk behind a cache must not depend on it.
#[test]
fn a_chunk_sees_what_the_whole_sequence_sees() {
    let Some(device) = device() else {
        return;
    };
    let draw = || Tensor::<B, 4>::random([1, 2, 24, 32], Distribution::Default, &device);
    let (q, k, v) = (draw(), draw(), draw());
    let whole = attention(
        q.clone(),
        k.clone(),
        v.clone(),
        &AttentionMask::causal(&[0], 0, 24, &device),
    );
    let chunk = attention(
        q.slice([0..1, 0..2, 17..24, 0..32]),
        k,
        v,
        &AttentionMask::causal(&[0], 17, 7, &device),
    );
    let reference: TensorData = whole.slice([0..1, 0..2, 17..24, 0..32]).into_data();
    let reference: Vec<f64> = reference.iter::<f64>().collect();
    golden::assert_close("chunk", &tensors::values(chunk), &reference, 2e-4);
}
