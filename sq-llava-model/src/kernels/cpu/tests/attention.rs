use burn::tensor::{Bool, Tensor, TensorData};
use burn_flex::Flex;

use super::{Ad, backward, by_kernel, close, draw, gradient, values};
use crate::kernels::cpu::{Attention, Hidden, flex_bool, float};
use crate::ops::attention::{AttentionMask, attention, portable};

/// Result and gradients of attention over these sizes.
pub(super) fn attend(
    [batch, heads, kv_heads, queries, keys, dim]: [usize; 6],
    mask: &AttentionMask<Ad>,
    scale: f32,
    kernel: bool,
) -> [Tensor<Flex, 4>; 4] {
    let q = draw([batch, queries, heads, dim], 1, scale).require_grad();
    let k = draw([batch, kv_heads, keys, dim], 2, scale).require_grad();
    let v = draw([batch, keys, kv_heads, dim], 3, 1.0).require_grad();
    let query = q.clone().swap_dims(1, 2);
    let value = v.clone().swap_dims(1, 2);
    let out = match kernel {
        false => portable(query, k.clone(), value, mask, None),
        true => {
            let hidden = match mask {
                AttentionMask::Full => Hidden::Nothing,
                AttentionMask::Causal => Hidden::Later,
                AttentionMask::Hidden(marks) => Hidden::Marked(flex_bool(marks).unwrap()),
            };
            by_kernel(
                Attention(hidden),
                [float(query), float(k.clone()), float(value)],
            )
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
    let kernel: Tensor<Ad, 4> = by_kernel(Attention(Hidden::Later), inputs);
    let model = attention(q.inner(), k.inner(), v.inner(), &AttentionMask::Causal);
    assert_eq!(values(&model), values(&kernel.inner()));
}
