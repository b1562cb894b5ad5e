use burn::tensor::{Bool, Tensor, TensorData};
use burn_flex::Flex;

use super::{Ad, backward, by_kernel, close, draw, gradient, values};
use crate::kernels::cpu::{Attention, Hidden, flex_bool, float};
use crate::ops::attention::{AttentionMask, ScoreOptions, attention, portable};

/// Result and gradients of attention over these sizes.
pub(super) fn attend(
    sizes: [usize; 6],
    mask: &AttentionMask<Ad>,
    scale: f32,
    kernel: bool,
) -> [Tensor<Flex, 4>; 4] {
    attend_with(sizes, mask, scale, ScoreOptions::default(), kernel)
}

fn attend_with(
    [batch, heads, kv_heads, queries, keys, dim]: [usize; 6],
    mask: &AttentionMask<Ad>,
    scale: f32,
    options: ScoreOptions,
    kernel: bool,
) -> [Tensor<Flex, 4>; 4] {
    let q = draw([batch, queries, heads, dim], 1, scale).require_grad();
    let k = draw([batch, kv_heads, keys, dim], 2, scale).require_grad();
    let v = draw([batch, keys, kv_heads, dim], 3, 1.0).require_grad();
    let query = q.clone().swap_dims(1, 2);
    let value = v.clone().swap_dims(1, 2);
    let out = match kernel {
        false => portable(query, k.clone(), value, mask, options),
        true => {
            let hidden = match mask {
                AttentionMask::Full => Hidden::Nothing,
                AttentionMask::Causal => Hidden::Later,
                AttentionMask::Outside(span) => Hidden::Outside(span.clone()),
                AttentionMask::Hidden(marks) => Hidden::Marked(flex_bool(marks).unwrap()),
                AttentionMask::Firsts(_) => panic!("a mask of a GPU's backend"),
            };
            let kernel = Attention {
                hidden,
                scale: options.scale.map(|scale| scale as f32),
                softcap: options.softcap.map(|cap| cap as f32),
            };
            by_kernel(kernel, [float(query), float(k.clone()), float(value)])
        }
    };
    let grads = backward(&out);
    let [q, k, v] = [&q, &k, &v].map(|leaf| gradient(leaf, &grads));
    [out.inner(), q, k, v]
}

#[test]
fn attention_as_the_portable_form() {
    let device = Default::default();
    let chunk =
        |padding: &[usize], past, queries| AttentionMask::causal(padding, past, queries, &device);
    let cases = [
        ([1, 1, 1, 1, 1, 8], AttentionMask::Full, 1.0),
        ([2, 3, 1, 5, 5, 7], AttentionMask::Causal, 1.0),
        ([1, 4, 2, 70, 70, 16], AttentionMask::Causal, 1.0),
        ([1, 2, 2, 65, 33, 5], AttentionMask::Full, 1.0),
        ([1, 9, 3, 1, 37, 64], AttentionMask::Full, 1.0),
        ([2, 6, 3, 130, 130, 8], chunk(&[0, 40], 0, 130), 1.0),
        ([2, 4, 2, 3, 20, 16], chunk(&[2, 0], 17, 3), 1.0),
        ([3, 2, 1, 1, 11, 4], chunk(&[0, 4, 10], 10, 1), 1.0),
        // Scores of hundreds: one key takes all the weight.
        ([1, 2, 1, 9, 9, 16], AttentionMask::Causal, 30.0),
    ];
    for (sizes, mask, scale) in cases {
        let found = attend(sizes, &mask, scale, true);
        let expected = attend(sizes, &mask, scale, false);
        for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let tolerance = if scale > 1.0 { 2e-4 } else { 1e-5 };
            close(
                found,
                expected,
                tolerance,
                &format!("{sizes:?}, part {part}"),
            );
        }
    }
}

/// Windows that end inside a block of queries, in a later one, behind padding and behind a cache;
/// soft limits that are felt, and a scale.
#[test]
fn windows_and_soft_limits_as_the_portable_form() {
    let device = Default::default();
    let sliding = |padding: &[usize], past, queries, window| {
        AttentionMask::sliding(padding, past, queries, window, &device)
    };
    let cases = [
        ([1, 4, 2, 70, 70, 16], sliding(&[0], 0, 70, 9)),
        ([1, 2, 1, 200, 200, 8], sliding(&[0], 0, 200, 100)),
        ([1, 2, 2, 33, 33, 8], sliding(&[0], 0, 33, 2)),
        ([2, 6, 3, 130, 130, 8], sliding(&[0, 40], 0, 130, 20)),
        ([2, 6, 3, 130, 130, 8], sliding(&[70, 3], 0, 130, 90)),
        ([1, 4, 2, 7, 50, 16], sliding(&[0], 43, 7, 12)),
        ([3, 2, 1, 1, 80, 4], sliding(&[0, 4, 75], 79, 1, 16)),
        ([1, 4, 2, 70, 70, 16], AttentionMask::Causal),
        ([1, 2, 2, 65, 33, 5], AttentionMask::Full),
    ];
    let options = [
        (None, None),
        (Some(0.31), None),
        (None, Some(1.5)),
        (Some(0.31), Some(0.4)),
    ];
    for (sizes, mask) in &cases {
        for (scale, softcap) in options {
            let options = ScoreOptions { scale, softcap };
            let found = attend_with(*sizes, mask, 1.0, options, true);
            let expected = attend_with(*sizes, mask, 1.0, options, false);
            for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("{sizes:?}, {mask:?}, {options:?}, part {part}");
                close(found, expected, 1e-5, &what);
            }
        }
    }
}

/// What the spans hide is what a mask of the same rule hides.
#[test]
fn a_span_hides_what_its_rule_says() {
    let device = Default::default();
    for (padding, past, queries, window) in [
        ([0, 0], 0, 9, 4),
        ([2, 5], 0, 9, 4),
        ([0, 3], 6, 5, usize::MAX),
    ] {
        let keys = past + queries;
        let mut marks = Vec::new();
        for pad in padding {
            for query in past..keys {
                let hidden = |key: usize| {
                    key > query || (key < pad && key != query) || query - key.min(query) >= window
                };
                marks.extend((0..keys).map(hidden));
            }
        }
        let marks = TensorData::new(marks, [2, 1, queries, keys]);
        let marks = AttentionMask::Hidden(Tensor::<Ad, 4, Bool>::from_data(marks, &device));
        let span = AttentionMask::sliding(&padding, past, queries, window, &device);
        assert!(matches!(span, AttentionMask::Outside(_)));
        let sizes = [2, 2, 1, queries, keys, 8];
        let found = attend(sizes, &span, 1.0, true);
        let expected = attend(sizes, &marks, 1.0, false);
        for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
            close(found, expected, 1e-5, &format!("{padding:?}, part {part}"));
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let device = Default::default();
    let mut marks = vec![false; 3 * 4];
    marks[4..8].fill(true);
    let marks = Tensor::<Ad, 4, Bool>::from_data(TensorData::new(marks, [1, 1, 3, 4]), &device);
    let mask = AttentionMask::Hidden(marks);
    let found = attend([1, 2, 1, 3, 4, 6], &mask, 1.0, true);
    let expected = attend([1, 2, 1, 3, 4, 6], &mask, 1.0, false);
    let rows = found[0].clone().slice([0..1, 0..2, 1..2, 0..6]);
    assert_eq!(values(&rows), vec![0.0; 12]);
    for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
        close(found, expected, 1e-5, &format!("part {part}"));
    }
}

/// The public function reaches the kernel: bits equal, where the portable form differs in some.
#[test]
fn the_models_attention_is_the_kernel() {
    let q = draw([1, 3, 40, 16], 1, 1.0);
    let [k, v] = [2, 3].map(|seed| draw([1, 3, 40, 16], seed, 1.0));
    let inputs = [&q, &k, &v].map(|x| float(x.clone()));
    let plain = Attention {
        hidden: Hidden::Later,
        scale: None,
        softcap: None,
    };
    let kernel: Tensor<Ad, 4> = by_kernel(plain, inputs);
    let model = attention(q.inner(), k.inner(), v.inner(), &AttentionMask::Causal);
    assert_eq!(values(&model), values(&kernel.inner()));
}

#[test]
fn a_query_whose_scores_are_all_minus_infinity_is_zero() {
    let device = Default::default();
    let query = Tensor::<Flex, 4>::ones([1, 2, 1, 8], &device);
    let key = Tensor::full([1, 1, 3, 8], f32::NEG_INFINITY, &device);
    let value = Tensor::ones([1, 1, 3, 8], &device);
    let out = attention(query, key, value, &AttentionMask::Full);
    assert_eq!(values(&out), [0.0; 16]);
}
