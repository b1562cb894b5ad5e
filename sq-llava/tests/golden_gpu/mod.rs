//! The reference checks of `sq-llava-model` on a GPU's backend, and what only such backends do.

#[path = "../../../sq-llava-train/tests/golden_training/adapter.rs"]
mod adapter;
#[path = "../../../sq-llava-model/tests/golden_model/checkpoints.rs"]
pub mod checkpoints;
#[path = "../../../sq-llava-model/tests/golden_model/extractors.rs"]
mod extractors;
mod families;
mod memory;
mod quantized;
#[path = "../../../sq-llava-model/tests/real_models/reference.rs"]
mod real_models;
#[path = "../../../sq-llava-train/tests/golden_training/rows.rs"]
mod rows;
#[path = "../../../sq-llava-model/tests/golden_model/tensors.rs"]
pub mod tensors;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, FloatDType, Tensor, TensorData};
use sq_llava_model::ops::attention::{AttentionMask, attention};
use sq_llava_model::ops::linear::Linear;
use sq_llava_model::ops::lora::LoraConfig;
use sq_llava_train::GradientCheckpointing;

use self::checkpoints::{Checkpoint, part_a, part_a2};
use crate::{B, Device, device};

fn each(checkpoints: Vec<Checkpoint>, check: impl Fn(&Checkpoint, &Device)) {
    if let Some(device) = device() {
        for checkpoint in &checkpoints {
            check(checkpoint, &device);
        }
    }
}

#[test]
fn golden_gpu_a_hidden_states() {
    each(part_a(), |checkpoint, device| {
        checkpoints::hidden_states::<B>(checkpoint, device);
    });
}

#[test]
fn golden_gpu_a_image_tokens() {
    each(part_a(), checkpoints::image_tokens::<B>);
}

#[test]
fn golden_gpu_a_logits() {
    each(part_a(), |checkpoint, device| {
        checkpoints::logits::<B>(checkpoint, "input_ids_orig", device);
    });
}

#[test]
fn golden_gpu_a_greedy() {
    each(part_a(), checkpoints::greedy::<B>);
}

#[test]
fn golden_gpu_a_text_logits() {
    each(part_a(), |checkpoint, device| {
        checkpoints::text_logits::<B>(checkpoint, device);
    });
}

/// On devices that compute in bf16.
#[test]
fn golden_gpu_a_bf16_logits() {
    if let Some(device) = device() {
        if B::supports_dtype(&device, DType::BF16) {
            // States are in bf16 as PyTorch's are, but sums round in another order.
            checkpoints::bf16_logits::<B>(1.5 * checkpoints::BF16, &device);
        } else {
            eprintln!("skipped: the device has no bf16");
        }
    }
}

#[test]
fn golden_gpu_a2_image_tokens() {
    each(part_a2(), checkpoints::image_tokens::<B>);
}

#[test]
fn golden_gpu_a2_logits() {
    each(part_a2(), |checkpoint, device| {
        checkpoints::logits::<B>(checkpoint, "input_ids_orig", device);
    });
}

#[test]
fn golden_gpu_a2_greedy() {
    each(part_a2(), checkpoints::greedy::<B>);
}

#[test]
fn golden_gpu_b_cluster() {
    if let Some(device) = device() {
        extractors::cluster_output::<B>(&device);
        extractors::cluster_centers::<B>(&device);
    }
}

#[test]
fn golden_gpu_b_full_size() {
    if let Some(device) = device() {
        extractors::cluster_full_size::<B>(&device);
    }
}

#[test]
fn golden_gpu_c_prototype() {
    if let Some(device) = device() {
        extractors::prototype_output::<B>(&device);
        extractors::prototype_intermediates::<B>(&device);
    }
}

#[test]
fn golden_gpu_d_llm_gradients_and_adamw() {
    if let Some(device) = device() {
        for checkpointing in [GradientCheckpointing::None, GradientCheckpointing::Blocks] {
            adapter::llm_gradients_and_adamw::<Autodiff<B>>(checkpointing, &device);
        }
    }
}

#[test]
fn golden_gpu_d_vision_features_loss_and_gradients() {
    if let Some(device) = device() {
        adapter::vision_features_loss_and_gradients::<Autodiff<B>>(&device);
    }
}

#[test]
fn real_llm_answers_as_the_reference() {
    if let Some(device) = device() {
        let mut known = vec![FloatDType::F32, FloatDType::F16];
        known.retain(|&dtype| B::supports_dtype(&device, dtype.into()));
        real_models::llm_tokenizes_and_answers::<B>(&known, &device);
    }
}

#[test]
fn real_towers_see_their_picture_as_the_reference() {
    if let Some(device) = device() {
        real_models::towers_see_their_picture::<B>(&device);
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

/// One row with an adapter, a bias or a cast behind the product, as in decoding. Where burn-fusion
/// puts them into the product's kernel, autotune may choose one that misreads transposed weights.
#[test]
fn one_row_gives_what_the_formula_gives() {
    let Some(device) = device() else {
        return;
    };
    for dims in [(64, 32), (64, 172), (172, 64)] {
        for (bias, rank) in [(false, 8), (true, 0), (true, 8)] {
            one_row(dims, bias, rank, DType::F32, &device);
        }
        if B::supports_dtype(&device, DType::F16) {
            one_row(dims, false, 0, DType::F16, &device);
        }
    }
}

fn one_row(dims: (usize, usize), bias: bool, rank: usize, dtype: DType, device: &Device) {
    let (d_in, d_out) = dims;
    let draw = |shape| Tensor::<B, 2>::random(shape, Distribution::Uniform(-0.5, 0.5), device);
    let mut linear = Linear::<B>::init(d_in, d_out, bias, device);
    linear.weight = linear.weight.map(|weight| weight.cast(dtype));
    let input = draw([1, d_in]);
    let x = doubles(input.clone());
    let mut expected = times(&x, &doubles(linear.weight.val()));
    if let Some(bias) = &linear.bias {
        add(&mut expected, &doubles(bias.val()), 1.0);
    }
    if rank > 0 {
        let config = LoraConfig::llm(rank, 16.0, 0.0);
        linear = linear.with_lora(&config, 0);
        let lora = linear.lora.as_mut().expect("an adapter");
        lora.b = Param::from_tensor(draw([d_out, rank]));
        let change = times(&times(&x, &doubles(lora.a.val())), &doubles(lora.b.val()));
        add(&mut expected, &change, config.scaling());
    }
    // What is fused is found out while it runs.
    for round in 0..4 {
        let found = tensors::values(linear.forward(input.clone()));
        let what = format!("{dims:?}, bias {bias}, rank {rank}, {dtype:?}, round {round}");
        let tolerance = if dtype == DType::F16 { 1e-2 } else { 2e-4 };
        golden::assert_close(&what, &found, &expected, tolerance);
    }
}

fn doubles<const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensors::values(tensor).into_iter().map(f64::from).collect()
}

/// `x Wᵀ` of one row.
fn times(x: &[f64], w: &[f64]) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
    w.chunks_exact(x.len()).map(dot).collect()
}

fn add(to: &mut [f64], values: &[f64], factor: f64) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += factor * value;
    }
}
