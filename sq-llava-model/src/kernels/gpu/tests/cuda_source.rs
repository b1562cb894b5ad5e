//! Every kernel as CUDA source, which NVRTC accepts for A100s and H100s.

use burn::tensor::quantization::{QuantLevel, QuantScheme, QuantStore, QuantValue};
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::empty_qtensor_optimized;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::Runtime;
use cubecl::cuda::CudaDevice;

use super::elements::ACTIVATIONS;
use super::nvrtc::Nvrtc;
use super::paper::{Paper, Source, sources};
use crate::kernels::activation::Activation;
use crate::kernels::adamw::AdamWStep;
use crate::kernels::gpu::activation::{Elements, Work};
use crate::kernels::gpu::attention::{Scores, Slopes as AttentionSlopes, Softmax};
use crate::kernels::gpu::cross_entropy::{Losses, Slopes};
use crate::kernels::gpu::matmul::Matmul;
use crate::kernels::gpu::norm::{Forward, InputSlope, WeightSlope};
use crate::kernels::gpu::rope::Turn;
use crate::kernels::gpu::{
    AdamW, Append, Attend, CrossEntropyKernel, Dense, Launch, Likeliest, Normed, RmsNormKernel,
    RowProduct, Seen, SquareSums,
};

const STEP: AdamWStep = AdamWStep {
    rate: 1e-2,
    beta_1: 0.9,
    beta_2: 0.95,
    epsilon: 1e-6,
    weight_decay: 0.1,
    time: 1,
    grad_scale: 0.5,
};

const STORED: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn tensor<const D: usize>(shape: [usize; D], dtype: DType) -> CubeTensor<Paper> {
    let device = CudaDevice::new(0);
    empty_device_contiguous_dtype(Paper::client(&device), device, Shape::from(shape), dtype)
}

fn packed(shape: [usize; 2], value: QuantValue) -> CubeTensor<Paper> {
    let scheme = QuantScheme::default()
        .with_value(value)
        .with_level(QuantLevel::block([32]))
        .with_store(QuantStore::PackedU32(0));
    empty_qtensor_optimized(shape, scheme, &CudaDevice::new(0))
}

/// Launches one form of everything.
fn launch_all() -> Vec<Source> {
    for dtype in STORED {
        normalise(dtype);
        for back in [false, true] {
            let angles = [0; 2].map(|_| tensor([1, 1, 5, 8], DType::F32));
            let inputs = [tensor([2, 3, 5, 8], dtype)].into_iter().chain(angles);
            Turn { back }.launch(inputs.collect());
        }
        for act in ACTIVATIONS {
            let inputs = |n: usize| (0..n).map(|_| tensor([300], dtype)).collect();
            Elements(act, Work::Value).launch(inputs(1));
            Elements(act, Work::Slope).launch(inputs(2));
            Elements(act, Work::Gated).launch(inputs(2));
            Elements(act, Work::GatedSlopes).launch(inputs(3));
        }
        decode(dtype);
        logits(dtype);
        attention(dtype);
        for rows in [1, 8] {
            products(rows, dtype, || tensor([24, 64], dtype));
        }
        Matmul.launch(vec![tensor([2, 70, 40], dtype), tensor([2, 40, 9], dtype)]);
        products(2, DType::F32, || tensor([24, 64], dtype));
    }
    for tensors in [1, 11] {
        let inputs = (0..4 * tensors).map(|_| tensor([300], DType::F32));
        AdamW(STEP).launch(inputs.collect());
        let inputs = (0..2 * tensors).map(|_| tensor([300], DType::F32));
        SquareSums.launch(inputs.collect());
    }
    for value in [QuantValue::Q8S, QuantValue::Q4S] {
        for dtype in STORED {
            Dense { dtype }.launch(vec![packed([24, 64], value)]);
        }
        products(3, DType::F32, || packed([24, 64], value));
        products(3, DType::BF16, || packed([24, 64], value));
    }
    sources(&Paper::client(&CudaDevice::new(0)))
}

fn logits(dtype: DType) {
    let kernel = CrossEntropyKernel::new(&[0, 63, 5]);
    let (rows, sums) = (tensor([3, 64], dtype), tensor([3], DType::F32));
    Losses(kernel.clone()).launch(vec![rows.clone()]);
    Slopes(kernel).launch(vec![rows.clone(), sums.clone(), sums]);
    Likeliest.launch(vec![rows, tensor([64], DType::F32)]);
}

fn attention(dtype: DType) {
    for (seen, softcap) in [
        (Seen::All, None),
        (Seen::ToItself, Some(30.0)),
        (Seen::FromFirst, None),
    ] {
        let scores = Scores {
            seen,
            heads: 4,
            queries: 3,
            past: 2,
            block: 0..3,
            scale: 0.125,
            softcap,
        };
        let firsts = (seen == Seen::FromFirst).then(|| tensor([1, 3], DType::F32));
        let rows = || tensor([1, 2, 6, 5], dtype);
        let inputs = |rows: Vec<_>| rows.into_iter().chain(firsts.clone()).collect();
        Softmax(scores.clone()).launch(inputs(vec![rows()]));
        AttentionSlopes(scores).launch(inputs(vec![rows(), rows()]));
    }
}

fn normalise(dtype: DType) {
    for offset in [false, true] {
        let kernel = RmsNormKernel { eps: 1e-5, offset };
        let (x, weight) = (tensor([3, 64], dtype), tensor([64], DType::F32));
        let inverse = tensor([3], DType::F32);
        Forward(kernel.clone()).launch(vec![x.clone(), weight.clone()]);
        InputSlope(kernel).launch(vec![x.clone(), weight, inverse.clone(), x.clone()]);
        WeightSlope.launch(vec![x.clone(), inverse, x]);
    }
}

/// `states`: dtype of the rows and of what is added to them.
fn products(rows: usize, states: DType, weight: impl Fn() -> CubeTensor<Paper>) {
    let x = || tensor([rows, 64], states);
    let plain = RowProduct::plain();
    plain.launch(vec![x(), weight()]);
    plain.launch_with(vec![x(), weight()], 32, false);
    let whole = RowProduct {
        bias: true,
        residual: true,
        ..plain.clone()
    };
    let beside = [tensor([24], DType::F32), tensor([rows, 24], states)];
    whole.launch([x(), weight()].into_iter().chain(beside).collect());
    let norm = Some(Normed {
        eps: 1e-5,
        offset: false,
    });
    let several = RowProduct {
        weights: 3,
        norm,
        ..plain.clone()
    };
    several.launch(vec![
        x(),
        weight(),
        weight(),
        weight(),
        tensor([64], DType::BF16),
    ]);
    let gated = RowProduct {
        weights: 2,
        norm,
        gate: Some(Activation::Silu),
        ..plain
    };
    gated.launch(vec![x(), weight(), weight(), tensor([64], DType::BF16)]);
}

/// States in f32 and in what the cache is in.
fn decode(dtype: DType) {
    for states in [DType::F32, dtype] {
        decode_from(states, dtype);
    }
}

fn decode_from(states: DType, dtype: DType) {
    let buffer = || tensor([2, 2, 512, 64], dtype);
    for rotates in [true, false] {
        let mut inputs = vec![tensor([2, 256], states)];
        inputs.extend([tensor([2, 128], states), tensor([2, 128], states)]);
        inputs.extend([buffer(), buffer()]);
        if rotates {
            inputs.extend([0; 2].map(|_| tensor([1, 1, 1, 64], DType::F32)));
        }
        Append { past: 3, rotates }.launch(inputs);
    }
    for (keys, softcap) in [(5, None), (300, Some(30.0))] {
        let attend = Attend {
            keys,
            scale: 0.125,
            softcap,
        };
        attend.launch(vec![tensor([2, 4, 1, 64], states), buffer(), buffer()]);
    }
}

#[test]
fn nvrtc_accepts_every_kernel() {
    let sources = launch_all();
    assert!(sources.len() > 60, "{} launches", sources.len());
    let Some(nvrtc) = Nvrtc::find() else {
        eprintln!("skipped: NVRTC or the CUDA headers are not installed");
        return;
    };
    for architecture in ["sm_80", "sm_90"] {
        for (name, source) in &sources {
            if let Err(said) = nvrtc.compile(source, architecture) {
                panic!("{name} for {architecture}: {said}\n{source}");
            }
        }
    }
}
