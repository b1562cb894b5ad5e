use burn::module::Param;
use burn::tensor::{DType, Tensor};
use burn_flex::Flex;

use super::{Ad, backward, close, draw, gradient, values};
use crate::ops::draws::with_keys;
use crate::ops::linear::Linear;
use crate::ops::lora::LoraConfig;
use crate::ops::weight::Weight;

/// A linear map with everything drawn, and B not zero.
pub(super) fn linear(d_in: usize, d_out: usize, bias: bool, rank: Option<usize>) -> Linear<Ad> {
    let mut linear = Linear::<Ad>::init(d_in, d_out, bias, &Default::default());
    linear.weight = Param::from_tensor(draw([d_out, d_in], 21, 0.3)).into();
    if bias {
        linear.bias = Some(Param::from_tensor(draw([d_out], 22, 1.0)));
    }
    if let Some(rank) = rank {
        let config = LoraConfig::llm(rank, 2.0 * rank as f64, 0.4);
        linear = linear.with_lora(&config, 3);
        if let Some(lora) = &mut linear.lora {
            lora.a = Param::from_tensor(draw([rank, d_in], 23, 0.3));
            lora.b = Param::from_tensor(draw([d_out, rank], 24, 0.3));
        }
    }
    linear
}

/// Result, and gradients of the input and of every parameter in order.
pub(super) fn linear_pass(
    linear: &Linear<Ad>,
    rows: usize,
    kernel: bool,
) -> (Tensor<Flex, 2>, Vec<Vec<f32>>) {
    let x = draw([rows, linear.d_in()], 25, 1.0).require_grad();
    let out = match kernel {
        true => linear.forward(x.clone()),
        false => linear.portable(x.clone()),
    };
    let grads = backward(&out);
    let mut found = vec![values(&gradient(&x, &grads))];
    found.push(values(&gradient(&linear.weight.val(), &grads)));
    if let Some(bias) = &linear.bias {
        found.push(values(&gradient(&bias.val(), &grads)));
    }
    if let Some(lora) = &linear.lora {
        found.extend([&lora.a, &lora.b].map(|p| values(&gradient(&p.val(), &grads))));
    }
    (out.inner(), found)
}

#[test]
fn linear_maps_as_the_portable_form() {
    // Read row by row, and in blocks; small enough for one thread, and for the pool.
    for (rows, d_in, d_out) in [
        (1, 33, 50),
        (5, 33, 50),
        (8, 17, 3),
        (9, 40, 31),
        (130, 200, 190),
    ] {
        for bias in [false, true] {
            for (rank, keys) in [(None, &[][..]), (Some(4), &[][..]), (Some(4), &[7][..])] {
                let linear = linear(d_in, d_out, bias, rank);
                let what =
                    format!("{rows}×{d_in}→{d_out}, bias {bias}, rank {rank:?}, keys {keys:?}");
                let (found, grads) = with_keys(keys, || linear_pass(&linear, rows, true));
                let (expected, expected_grads) =
                    with_keys(keys, || linear_pass(&linear, rows, false));
                close(&found, &expected, 2e-6, &what);
                for (part, (found, expected)) in grads.iter().zip(&expected_grads).enumerate() {
                    let error = error_of(found, expected);
                    assert!(error < 4e-6, "{what}, gradient {part}: {error:e}");
                }
            }
        }
    }
}

/// The largest difference, in units of the largest expected value.
fn error_of(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let size = expected.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
    let pairs = found.iter().zip(expected);
    pairs.map(|(f, e)| (f - e).abs()).fold(0.0, f32::max) / size
}

#[test]
fn a_frozen_weight_gets_no_gradient() {
    let mut linear = linear(12, 10, false, Some(2));
    linear.weight = linear.weight.set_require_grad(false);
    let x = draw([6, 12], 1, 1.0).require_grad();
    let grads = backward(&linear.forward(x.clone()));
    assert!(linear.weight.val().grad(&grads).is_none());
    assert!(x.grad(&grads).is_some());
    assert!(linear.lora.unwrap().a.val().grad(&grads).is_some());
}

fn frozen(weight: Tensor<Flex, 2>) -> Weight<Ad> {
    Weight::from(Param::from_tensor(Tensor::from_inner(weight))).set_require_grad(false)
}

#[test]
fn half_weights_multiply_as_the_same_numbers_in_full() {
    for rows in [1, 3, 8, 9, 40] {
        let mut half = linear(70, 45, true, Some(3));
        let weight = half.weight.val().inner().cast(DType::F16);
        half.weight = frozen(weight);
        let mut full = linear(70, 45, true, Some(3));
        let weight = half.weight.val().inner().cast(DType::F32);
        full.weight = frozen(weight);
        let (found, grads) = linear_pass(&half, rows, true);
        let (expected, expected_grads) = linear_pass(&full, rows, true);
        close(&found, &expected, 1e-6, &format!("{rows} rows"));
        assert!(
            error_of(&grads[0], &expected_grads[0]) < 1e-6,
            "{rows} rows"
        );
    }
}
