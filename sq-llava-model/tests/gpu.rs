//! A model through the kernels for GPUs: what it computes, and how many kernels a decoded token and a
//! training step launch. CubeCL's own log names each; counts do not depend on the device, so Mesa's software
//! driver will do. Without a driver the test says so and does nothing.
#![cfg(feature = "wgpu")]
#![allow(clippy::print_stderr)] // A skipped test says so, and a failed one names the kernels.

#[path = "golden_model/checkpoints.rs"]
#[allow(dead_code)] // The CPU's tests call all of them.
mod checkpoints;
#[path = "golden_model/tensors.rs"]
#[allow(dead_code)]
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::backend::Autodiff;
use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use burn_cubecl::CubeBackend;
use burn_fusion::Fusion;
use cubecl::Runtime;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::wgpu::{GraphicsApi, Vulkan, WgpuDevice, WgpuRuntime, init_setup};
use sq_llava_model::config::LlamaConfig;
use sq_llava_model::language::cache::KvCache;
use sq_llava_model::language::llama::Llama;
use sq_llava_model::ops::lora::LoraConfig;

type B = Fusion<CubeBackend<WgpuRuntime, f32, i32, u8>>;

const LAYERS: usize = 3;

/// Kernels that a layer with seven adapters launches in a training step: forward and backward.
const TRAINING: usize = 125;

/// The first Vulkan device, with its launches in a log.
fn device(log: &Path) -> Option<WgpuDevice> {
    let ids = WgpuRuntime::enumerate_all_devices(&Vulkan::backend());
    let device = match ids.first()?.type_id {
        0 => WgpuDevice::DiscreteGpu(0),
        1 => WgpuDevice::IntegratedGpu(0),
        2 => WgpuDevice::VirtualGpu(0),
        _ => WgpuDevice::Cpu,
    };
    // A software driver compiles each kernel that autotune tries for seconds.
    let config = serde_json::json!({
        "profiling": { "logger": { "file": log, "level": "minimal" } },
        "autotune": { "level": "minimal" },
    });
    let config = serde_json::from_value(config).expect("a configuration");
    CubeClRuntimeConfig::set(config);
    init_setup::<Vulkan>(&device, Default::default());
    Some(device)
}

/// Kernels launched so far, once the log, which is written behind, says no more.
fn launched(log: &Path) -> Vec<String> {
    let read = || std::fs::read_to_string(log).unwrap_or_default();
    let (mut text, mut since) = (read(), Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(20));
        let now = read();
        if now != text {
            (text, since) = (now, Instant::now());
        }
    }
    let names = text
        .lines()
        .filter_map(|line| line.split_once("Executing "));
    names.map(|(_, name)| name.to_owned()).collect()
}

/// Kernels that `work` launches.
fn counted(log: &Path, device: &WgpuDevice, work: impl FnOnce()) -> Vec<String> {
    let before = launched(log).len();
    work();
    B::sync(device).expect("the device");
    launched(log).split_off(before)
}

/// Names with how often each was launched.
fn by_name(kernels: &[String]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for kernel in kernels {
        *counts.entry(kernel).or_default() += 1;
    }
    let lines = counts
        .into_iter()
        .map(|(name, n)| format!("{n} × {name}\n"));
    lines.collect()
}

fn llama<C: Backend<Device = WgpuDevice>>(layers: usize, device: &WgpuDevice) -> Llama<C> {
    let config = LlamaConfig::new()
        .with_hidden_size(64)
        .with_intermediate_size(172)
        .with_num_hidden_layers(layers)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(2)
        .with_vocab_size(320);
    config.init(device)
}

fn ids<C: Backend>(ids: &[i32], device: &C::Device) -> Tensor<C, 1, Int> {
    Tensor::from_data(ids, device)
}

/// One token behind others; its logits come to the host.
fn token(model: &Llama<B>, id: i32, cache: &mut KvCache<B>, device: &WgpuDevice) {
    let embedded = model.embed(ids(&[id], device)).unsqueeze_dim::<3>(0);
    let hidden = model.forward_layers(embedded, &[0], Some(cache));
    let logits = model.logits(hidden.squeeze_dim(0)).into_data();
    assert!(logits.iter::<f32>().all(f32::is_finite));
}

fn decoding(log: &Path, device: &WgpuDevice) {
    let model = llama::<B>(LAYERS, device);
    let mut cache = KvCache::new(LAYERS, vec![0]);
    let prompt = model
        .embed(ids(&[1, 2, 3, 4, 5], device))
        .unsqueeze_dim::<3>(0);
    model.forward_layers(prompt, &[0], Some(&mut cache));
    // What is fused is found out while it runs.
    for id in 0..4 {
        token(&model, id, &mut cache, device);
    }
    let kernels = counted(log, device, || token(&model, 7, &mut cache, device));
    let found = kernels.len();
    eprintln!("a decoded token launches {found} kernels in {LAYERS} layers");
    assert!(found > LAYERS, "the log is not read: {found}");
    assert!(
        found <= 7 * LAYERS + 10,
        "{found} kernels:\n{}",
        by_name(&kernels)
    );
}

/// Loss and gradients of two packed rows, the gradients of the adapters on the device.
fn step(model: &Llama<Autodiff<B>>, device: &WgpuDevice) {
    let tokens: Vec<i32> = (0..32).map(|i| i * 7 % 320).collect();
    let embedded = model.embed(ids(&tokens, device)).reshape([2, 16, 64]);
    let context = model.packed_context(&[vec![9, 7], vec![16]], 16, device);
    let hidden = model.forward_at(embedded, &context).reshape([32, 64]);
    let next: Vec<i64> = (0..32).map(|i| i * 11 % 320).collect();
    let grads = model.token_losses(hidden, &next).mean().backward();
    for (name, linear) in model.linears() {
        let lora = linear.lora.as_ref().expect("an adapter");
        assert!(lora.b.grad(&grads).is_some(), "{name}");
    }
}

/// Kernels of a training step of so many layers.
fn stepped(log: &Path, layers: usize, device: &WgpuDevice) -> Vec<String> {
    let mut model = llama::<Autodiff<B>>(layers, device).no_grad();
    let lora = LoraConfig::llm(4, 8.0, 0.0);
    for (index, (_, linear)) in model.linears_mut().enumerate() {
        *linear = linear.clone().with_lora(&lora, index as u64);
    }
    for _ in 0..3 {
        step(&model, device);
    }
    counted(log, device, || step(&model, device))
}

/// What one more layer adds.
fn training(log: &Path, device: &WgpuDevice) {
    let [few, more] = [2, 4].map(|layers| stepped(log, layers, device));
    let layer = (more.len() - few.len()) / 2;
    eprintln!("a layer of a training step launches {layer} kernels");
    assert!(
        (20..=TRAINING).contains(&layer),
        "{layer} kernels; of four layers\n{}",
        by_name(&more)
    );
}

/// Counting needs a device for itself, so this is one test.
#[test]
fn golden_a_model_is_right_and_a_token_launches_few_kernels() {
    let folder = tempfile::tempdir().expect("a folder");
    let log: PathBuf = folder.path().join("launches.log");
    let Some(device) = device(&log) else {
        eprintln!("skipped: no Vulkan driver is installed");
        return;
    };
    let checkpoint = checkpoints::part_a().swap_remove(0);
    checkpoints::text_logits::<B>(&checkpoint, &device);
    checkpoints::greedy::<B>(&checkpoint, &device);
    decoding(&log, &device);
    training(&log, &device);
}
