//! Attention of many queries.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};
use cubecl::wgpu::WgpuDevice;

use super::{Cpu, by_kernel, close, draw, dtypes, leaf, on_both, pass};
use crate::kernels::gpu::{Attention, Seen, float};
use crate::ops::attention::{AttentionMask, ScoreOptions, portable};

/// What a query sees, for the kernel and for the portable form.
#[derive(Debug, Clone)]
enum Sees {
    All,
    Causal,
    /// Padding, keys before the first query, window.
    Sliding(Vec<usize>, usize, usize),
    /// Lengths of the samples of each row.
    Packed(Vec<Vec<usize>>, usize),
}

impl Sees {
    fn mask<B: AutodiffBackend>(&self, queries: usize, device: &B::Device) -> AttentionMask<B> {
        match self {
            Self::All => AttentionMask::Full,
            Self::Causal => AttentionMask::Causal,
            Self::Sliding(padding, past, window) => {
                AttentionMask::sliding(padding, *past, queries, *window, device)
            }
            Self::Packed(lengths, window) => {
                AttentionMask::packed(lengths, queries, *window, device)
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Case {
    /// Batch, heads, key heads, queries, keys, width of a head.
    sizes: [usize; 6],
    sees: Sees,
    options: ScoreOptions,
    /// Scores held at a time.
    held: usize,
}

fn cases() -> Vec<Case> {
    let plain = ScoreOptions::default();
    let bent = ScoreOptions {
        scale: Some(0.31),
        softcap: Some(1.5),
    };
    let all = [
        ([1, 1, 1, 1, 1, 8], Sees::All, plain, 1 << 20),
        ([2, 4, 2, 5, 37, 16], Sees::All, plain, 1 << 20),
        ([1, 2, 2, 300, 270, 8], Sees::All, plain, 1),
        ([2, 6, 3, 70, 70, 12], Sees::Causal, plain, 1 << 20),
        // Three blocks, the last of them not full.
        ([2, 4, 2, 150, 150, 16], Sees::Causal, plain, 1),
        ([1, 4, 1, 150, 150, 8], Sees::Causal, bent, 1),
        (
            [2, 4, 2, 140, 140, 8],
            Sees::Sliding(vec![0, 90], 0, usize::MAX),
            plain,
            1,
        ),
        (
            [2, 2, 1, 130, 150, 8],
            Sees::Sliding(vec![3, 0], 20, 40),
            bent,
            1,
        ),
        (
            [2, 4, 2, 1, 33, 8],
            Sees::Sliding(vec![0, 7], 32, usize::MAX),
            plain,
            1 << 20,
        ),
        (
            [2, 4, 2, 140, 140, 8],
            Sees::Packed(vec![vec![60, 50], vec![140]], usize::MAX),
            plain,
            1,
        ),
    ];
    let case = |(sizes, sees, options, held)| Case {
        sizes,
        sees,
        options,
        held,
    };
    all.map(case).into()
}

fn inputs([batch, heads, kv_heads, queries, keys, dim]: [usize; 6]) -> [TensorData; 3] {
    [
        draw([batch, heads, queries, dim], 1, 2.0),
        draw([batch, kv_heads, keys, dim], 2, 2.0),
        draw([batch, kv_heads, keys, dim], 3, 1.0),
    ]
}

fn expected(case: &Case) -> (TensorData, Vec<TensorData>) {
    let device = Default::default();
    let leaves = inputs(case.sizes).map(|data| leaf::<Cpu, 4>(&data, DType::F32, &device));
    let [query, key, value] = leaves.clone();
    let mask = case.sees.mask::<Cpu>(case.sizes[3], &device);
    pass(portable(query, key, value, &mask, case.options), &leaves)
}

fn kernel<B: AutodiffBackend>(
    case: &Case,
    leaves: &[Tensor<B, 4>; 3],
    mask: &AttentionMask<B>,
) -> Tensor<B, 4> {
    let kernel = |seen| Attention {
        seen,
        scale: case.options.scale.map(|scale| scale as f32),
        softcap: case.options.softcap.map(|cap| cap as f32),
        held: case.held,
    };
    let [query, key, value] = leaves.clone().map(float);
    match mask {
        AttentionMask::Full => by_kernel::<B, _, 3, 4>(kernel(Seen::All), [query, key, value]),
        AttentionMask::Causal => {
            by_kernel::<B, _, 3, 4>(kernel(Seen::ToItself), [query, key, value])
        }
        AttentionMask::Firsts(firsts) => {
            let inputs = [query, key, value, float(firsts.clone())];
            by_kernel::<B, _, 4, 4>(kernel(Seen::FromFirst), inputs)
        }
        other => panic!("no mask of a GPU's backend: {other:?}"),
    }
}

fn attention<B: AutodiffBackend<Device = WgpuDevice>>(device: &WgpuDevice) {
    for case in cases() {
        let expected = expected(&case);
        for (dtype, tolerance) in dtypes(device) {
            let leaves = inputs(case.sizes).map(|data| leaf::<B, 4>(&data, dtype, device));
            let mask = case.sees.mask::<B>(case.sizes[3], device);
            let out = kernel(&case, &leaves, &mask);
            assert_eq!(out.dtype(), dtype);
            let found = pass(out, &leaves);
            let what = format!("{dtype:?} {case:?}");
            close(&found.0, &expected.0, 2.0 * tolerance, &what);
            for (part, (found, expected)) in found.1.iter().zip(&expected.1).enumerate() {
                let what = format!("{what}, gradient {part}");
                close(found, expected, 4.0 * tolerance, &what);
            }
        }
    }
}

#[test]
fn attention_is_the_portable_form() {
    on_both!(attention);
}
