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
use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Int, Tensor};
use burn_cubecl::CubeBackend;
use burn_fusion::Fusion;
use cubecl::Runtime;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::wgpu::{GraphicsApi, Vulkan, WgpuDevice, WgpuRuntime, init_setup};
use sq_llava_model::config::LlamaConfig;
use sq_llava_model::language::cache::KvCache;
use sq_llava_model::language::llama::Llama;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_model::ops::square_sums::SquareSums;

type B = Fusion<CubeBackend<WgpuRuntime, f32, i32, u8>>;

const LAYERS: usize = 3;

/// Kernels that a layer with seven adapters launches in a training step: forward and backward.
const TRAINING: usize = 115;

/// The same in 16 bits: the adapters' factors and their gradients are cast, and no states.
const HALF: usize = 135;

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

/// Loss and gradients of two packed rows with states in a dtype, and the gradients of the adapters'
/// second factors.
fn step(
    model: &Llama<Autodiff<B>>,
    states: DType,
    device: &WgpuDevice,
) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
    let tokens: Vec<i32> = (0..32).map(|i| i * 7 % 320).collect();
    let embedded = model.embed(ids(&tokens, device)).cast(states);
    let embedded = embedded.reshape([2, 16, 64]);
    let context = model.packed_context(&[vec![9, 7], vec![16]], 16, device);
    let hidden = model.forward_at(embedded, &context).reshape([32, 64]);
    let next: Vec<i64> = (0..32).map(|i| i * 11 % 320).collect();
    let loss = model.token_losses(hidden, &next).mean();
    let grads = loss.backward();
    let found = model.linears().map(|(name, linear)| {
        let lora = linear.lora.as_ref().expect("an adapter");
        let found = lora.b.grad(&grads);
        found.unwrap_or_else(|| panic!("{name} has no gradient"))
    });
    let found = found.collect();
    (loss.inner(), found)
}

/// A frozen decoder stored in a dtype, with adapters that do something.
fn adapted(layers: usize, weights: DType, device: &WgpuDevice) -> Llama<Autodiff<B>> {
    let mut model = llama::<Autodiff<B>>(layers, device).no_grad();
    let table = &mut model.model.embed_tokens.weight;
    *table = table.clone().map(|table| table.cast(weights));
    let lora = LoraConfig::llm(4, 8.0, 0.0);
    for (index, (_, linear)) in model.linears_mut().enumerate() {
        linear.weight = linear.weight.clone().map(|weight| weight.cast(weights));
        *linear = linear.clone().with_lora(&lora, index as u64);
        if let Some(lora) = &mut linear.lora {
            let shape = lora.b.dims();
            let drawn = Tensor::random(shape, Distribution::Uniform(-0.1, 0.1), device);
            lora.b = Param::from_tensor(drawn);
        }
    }
    model
}

/// Kernels of a training step of so many layers, weights and states in a dtype each.
fn stepped(
    log: &Path,
    layers: usize,
    [weights, states]: [DType; 2],
    device: &WgpuDevice,
) -> Vec<String> {
    let model = adapted(layers, weights, device);
    for _ in 0..3 {
        step(&model, states, device);
    }
    counted(log, device, || {
        step(&model, states, device);
    })
}

/// What one more layer adds.
fn training(log: &Path, device: &WgpuDevice) {
    let layer = |dtypes| {
        let [few, more] = [2, 4].map(|layers| stepped(log, layers, dtypes, device));
        ((more.len() - few.len()) / 2, by_name(&more))
    };
    let (full, names) = layer([DType::F32, DType::F32]);
    eprintln!("a layer of a training step launches {full} kernels");
    assert!(
        (20..=TRAINING).contains(&full),
        "{full} kernels; of four layers\n{names}"
    );
    if !B::supports_dtype(device, DType::F16) {
        eprintln!("skipped: the device has no 16-bit floats");
        return;
    }
    let (half, names) = layer([DType::F16, DType::F16]);
    eprintln!("with weights and states in 16 bits {half}");
    assert!(half <= HALF, "{half} kernels; of four layers\n{names}");
    half_states(device);
}

/// Loss and gradients through integers are those of the dense weights that they stand for.
fn quantized(device: &WgpuDevice) {
    for format in [Quantize::Q8, Quantize::Q4] {
        let mut model = adapted(2, DType::F32, device);
        let (before, _) = step(&model, DType::F32, device);
        model.quantize_here(format).expect("finite weights");
        let found = step(&model, DType::F32, device);
        for (name, linear) in model.linears_mut() {
            assert!(!linear.weight.is_dense(), "{name}");
            *linear = linear.clone().dequantize();
        }
        let expected = step(&model, DType::F32, device);
        let [before, loss, dense] = [before, found.0, expected.0].map(doubles);
        assert!(far(&loss, &dense) < 1e-5, "{loss:?} for {dense:?}");
        assert!(far(&loss, &before) > 1e-6, "the weights were not rounded");
        for (index, (found, expected)) in found.1.into_iter().zip(expected.1).enumerate() {
            let far = far(&doubles(found), &doubles(expected));
            assert!(far < 1e-4, "{format:?}, adapter {index}: {far}");
        }
    }
}

/// Loss and gradients with states in 16 bits are those with f32's, but for the rounding.
fn half_states(device: &WgpuDevice) {
    let model = adapted(2, DType::F16, device);
    let (loss, expected) = step(&model, DType::F32, device);
    let (half, found) = step(&model, DType::F16, device);
    let [loss, half] = [loss, half].map(doubles);
    assert!(far(&half, &loss) < 1e-3, "{half:?} for {loss:?}");
    for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        let far = far(&doubles(found), &doubles(expected));
        assert!(far > 0.0 && far < 2e-2, "adapter {index}: {far}");
    }
}

/// Length of the difference over that of the second.
fn far(a: &[f64], b: &[f64]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (difference / square(&mut b.iter().copied())).sqrt()
}

fn doubles<const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The norm of many gradients takes few launches.
fn norm(log: &Path, device: &WgpuDevice) {
    let gradients: Vec<Tensor<B, 2>> = (1..=64)
        .map(|rows| Tensor::ones([rows, 96], device))
        .collect();
    let work = || {
        let mut sums = SquareSums::<B, 2>::new();
        for (i, gradient) in gradients.iter().enumerate() {
            sums.push(i % 2, gradient.clone());
        }
        let total: f64 = sums.finish().iter().sum();
        assert!((total - 96.0 * 32.0 * 65.0).abs() < 1.0, "{total}");
    };
    // Ones are made when they are asked for, and what is fused is found out while it runs.
    work();
    work();
    let kernels = counted(log, device, work);
    eprintln!(
        "the norm of 64 gradients launches {} kernels",
        kernels.len()
    );
    assert!((3..=12).contains(&kernels.len()), "{}", by_name(&kernels));
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
    norm(&log, &device);
    quantized(&device);
}
