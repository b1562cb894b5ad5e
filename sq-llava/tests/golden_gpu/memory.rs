//! What a graph keeps on the device, beside the arithmetic of it.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor};
use sq_llava_model::SqLlavaConfig;
use sq_llava_model::kernels::{DeviceMemory, Kernels};
use sq_llava_model::ops::draws::with_keys;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_train::GradientCheckpointing;
use sq_llava_train::recipe::Objective;
use sq_llava_train::step::groups::{ParamGroups, Trains};
use sq_llava_train::step::memory::StepMemory;

use crate::{B, Device, device};

const ROWS: usize = 2;
const TOKENS: usize = 128;

/// Bytes that tensors hold on the device.
fn in_use(device: &Device) -> u64 {
    B::sync(device).expect("the device");
    let memory = DeviceMemory::of::<B>(device).expect("a GPU's backend");
    assert!(memory.in_use <= memory.reserved);
    memory.in_use
}

fn config() -> SqLlavaConfig {
    let mut config = SqLlavaConfig::preset("tiny").expect("a preset");
    (config.vision, config.prototype) = (None, None);
    config.llama = config
        .llama
        .with_hidden_size(256)
        .with_intermediate_size(688)
        .with_num_hidden_layers(6)
        .with_num_attention_heads(8)
        .with_num_key_value_heads(4);
    config
}

/// Bytes of the layers' graph: measured, and by arithmetic.
fn kept(dropout: f64, device: &Device) -> (u64, u64) {
    let (config, lora) = (config(), LoraConfig::llm(8, 16.0, dropout));
    let trains = Trains {
        llm: true,
        ..Trains::default()
    };
    let model = config.init::<Autodiff<B>>(device).expect("a model");
    let (model, _) = ParamGroups::mark(model.with_llm_lora(&lora), trains);
    let shape = [ROWS, TOKENS, config.llama.hidden_size];
    let hidden = Tensor::<Autodiff<B>, 3>::random(shape, Distribution::Default, device);
    let forward = || {
        let llama = &model.language_model;
        with_keys(&[1, 2], || {
            llama.forward_layers(hidden.clone(), &[0; ROWS], None)
        })
    };
    // Weights are made when they are first read.
    drop(forward().sum().backward());
    let before = in_use(device);
    let output = forward();
    let kept = in_use(device) - before;
    drop(output.sum().backward());
    assert!(in_use(device) <= before + before / 100, "something stayed");
    let memory = StepMemory {
        config: &config,
        base_bytes: 4,
        quantize: None,
        trains,
        trainable: config.llama.lora_parameters(&lora),
        llm: Some(lora),
        vision: None,
        rows: ROWS,
        tokens: TOKENS,
        pictures: 0,
        accumulates: false,
        thread_groups: 1,
        chunk_tokens: 32,
        objective: Objective::Text,
        kernels: Kernels::of::<B>(),
    };
    let expected = memory.activations(GradientCheckpointing::None);
    (kept, expected as u64)
}

/// Closer than one tensor as wide as the states would make it in every layer.
#[test]
fn a_graph_keeps_what_the_estimate_says() {
    let Some(device) = device() else {
        return;
    };
    for dropout in [0.0, 0.05] {
        let (kept, expected) = kept(dropout, &device);
        assert!(
            kept.abs_diff(expected) <= expected / 30,
            "dropout {dropout}: {kept} bytes, {expected} by arithmetic"
        );
    }
}
