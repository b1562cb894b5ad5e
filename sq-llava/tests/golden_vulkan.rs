//! The reference checks on Vulkan. Mesa's software driver will do; without any driver
//! the tests say so and do nothing.
#![cfg(feature = "vulkan")]
#![allow(clippy::print_stderr)] // A skipped test says so.

mod golden_gpu;

use std::sync::OnceLock;

use burn_wgpu::{RuntimeOptions, Vulkan, WgpuDevice, graphics, init_setup};

type B = Vulkan;
type Device = WgpuDevice;

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
