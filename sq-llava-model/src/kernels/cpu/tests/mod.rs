//! Every kernel against the operations that all backends have, forward and backward, on shapes
//! that fill neither vectors nor pieces.

mod attention;
mod linear;
mod matmul;
mod packed;
mod sums;

use attention::attend;
use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use linear::{linear, linear_pass};
use sq_llava_data::mix::splitmix64;

use super::{Kernel, LayerNormKernel, RmsNormKernel, float, run, tensor};

use crate::ops::activation::Activation;
use crate::ops::adamw::AdamWStep;
use crate::ops::attention::AttentionMask;
use crate::ops::cross_entropy;
use crate::ops::norm::{layer_norm, rms_norm};
use crate::ops::rope::RotaryEmbedding;
use crate::ops::softmax;
use crate::ops::square_sums::SquareSums;

type Ad = Autodiff<Flex>;

const ACTIVATIONS: [Activation; 5] = [
    Activation::Silu,
    Activation::QuickGelu,
    Activation::Gelu,
    Activation::GeluPytorchTanh,
    Activation::Relu,
];

/// Numbers between −`scale` and `scale` that depend on the seed.
fn draw<const D: usize>(shape: [usize; D], seed: u64, scale: f32) -> Tensor<Ad, D> {
    let mut state = splitmix64(seed);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = splitmix64(state);
            scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn values<const D: usize>(tensor: &Tensor<Flex, D>) -> Vec<f32> {
    tensor.clone().into_data().to_vec().unwrap()
}

/// The largest difference, in units of the largest expected value (of 1e-3 if all are smaller).
fn difference<const D: usize>(found: &Tensor<Flex, D>, expected: &Tensor<Flex, D>) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let size = expected.iter().fold(1e-3f32, |a, b| a.max(b.abs()));
    let worst = found.iter().zip(&expected).map(|(f, e)| {
        assert!(f.is_finite(), "{f} where {e} was expected");
        (f - e).abs()
    });
    worst.fold(0.0, f32::max) / size
}

fn close<const D: usize>(
    found: &Tensor<Flex, D>,
    expected: &Tensor<Flex, D>,
    tolerance: f32,
    what: &str,
) {
    let difference = difference(found, expected);
    assert!(difference <= tolerance, "{what}: {difference:e}");
}

/// The kernel itself; a test that fell back would compare the portable form with itself.
fn by_kernel<K: Kernel<N>, const N: usize, const D: usize>(
    kernel: K,
    inputs: [<Ad as burn::tensor::backend::BackendTypes>::FloatTensorPrimitive; N],
) -> Tensor<Ad, D> {
    match run::<Ad, K, N>(kernel, inputs) {
        Ok(output) => tensor(output),
        Err(_) => panic!("the kernel does not take these inputs"),
    }
}

/// Gradient of a leaf; zeros where nothing depends on it.
fn gradient<const D: usize>(
    leaf: &Tensor<Ad, D>,
    grads: &<Ad as burn::tensor::backend::AutodiffBackend>::Gradients,
) -> Tensor<Flex, D> {
    let zeros = || Tensor::zeros(leaf.dims(), &Default::default());
    leaf.grad(grads).unwrap_or_else(zeros)
}

/// `Σ out · weights` with weights that differ, backwards.
fn backward<const D: usize>(
    out: &Tensor<Ad, D>,
) -> <Ad as burn::tensor::backend::AutodiffBackend>::Gradients {
    let weights = draw(out.dims(), 99, 1.0);
    (out.clone() * weights).sum().backward()
}

#[test]
fn activations_and_gates_as_the_portable_form() {
    for (n, scale) in [(1, 3.0), (17, 6.0), (16 * 1024 + 5, 8.0), (40, 60.0)] {
        for act in ACTIVATIONS {
            let pass = |kernel: bool| {
                let gate = draw([1, n], 1, scale).require_grad();
                let up = draw([1, n], 2, 2.0).require_grad();
                let out = match kernel {
                    true => by_kernel(super::Gated(act), [float(gate.clone()), float(up.clone())]),
                    false => act.portable(gate.clone()) * up.clone(),
                };
                let grads = backward(&out);
                (out.inner(), gradient(&gate, &grads), gradient(&up, &grads))
            };
            let (found, expected) = (pass(true), pass(false));
            let what = format!("{act:?} of {n}");
            close(&found.0, &expected.0, 2e-6, &what);
            close(&found.1, &expected.1, 4e-6, &format!("{what}, gate"));
            close(&found.2, &expected.2, 2e-6, &format!("{what}, up"));

            let pass = |kernel: bool| {
                let x = draw([1, n], 1, scale).require_grad();
                let out = match kernel {
                    true => by_kernel(super::Pointwise(act), [float(x.clone())]),
                    false => act.portable(x.clone()),
                };
                let grads = backward(&out);
                (out.inner(), gradient(&x, &grads))
            };
            let (found, expected) = (pass(true), pass(false));
            close(&found.0, &expected.0, 2e-6, &what);
            close(&found.1, &expected.1, 4e-6, &format!("{what}, slope"));
        }
    }
}

#[test]
fn a_transposed_input_is_read_in_its_order() {
    let x = draw([5, 7], 3, 2.0).inner();
    let found = Activation::Silu.forward(x.clone().transpose());
    close(
        &found,
        &Activation::Silu.portable(x.clone().transpose()),
        1e-6,
        "transposed",
    );
    let part = x.slice([1..4, 0..7]);
    let found = Activation::Silu.forward(part.clone());
    close(&found, &Activation::Silu.portable(part), 1e-6, "a slice");
}

#[test]
fn no_rows_give_no_rows() {
    let none = Tensor::<Flex, 2>::zeros([0, 8], &Default::default());
    assert_eq!(
        Activation::Gelu.gated(none.clone(), none.clone()).dims(),
        [0, 8]
    );
    let norm = crate::ops::norm::RmsNorm::init(8, 1e-5, &Default::default());
    assert_eq!(norm.forward(none).dims(), [0, 8]);
}

#[test]
fn norms_as_the_portable_form() {
    let cases = [
        ([1, 1, 1], 1.0),
        ([2, 3, 33], 1.0),
        ([1, 700, 48], 300.0),
        ([3, 1, 16], 1e-3),
    ];
    for (shape, scale) in cases {
        let n = shape[2];
        let leaves = || {
            let x = draw(shape, 4, scale).require_grad();
            (
                x,
                draw([n], 5, 1.5).require_grad(),
                draw([n], 6, 1.0).require_grad(),
            )
        };
        let eps = 1e-5;
        let pass = |kernel: bool| {
            let (x, w, _) = leaves();
            let out = match kernel {
                true => by_kernel(RmsNormKernel { eps }, [float(x.clone()), float(w.clone())]),
                false => rms_norm(x.clone(), w.clone(), eps),
            };
            let grads = backward(&out);
            (out.inner(), gradient(&x, &grads), gradient(&w, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 4e-6, &format!("rms {shape:?}"));
        close(
            &found.1,
            &expected.1,
            2e-5,
            &format!("rms {shape:?}, input"),
        );
        close(
            &found.2,
            &expected.2,
            2e-5,
            &format!("rms {shape:?}, weight"),
        );

        let pass = |kernel: bool| {
            let (x, w, b) = leaves();
            let inputs = [float(x.clone()), float(w.clone()), float(b.clone())];
            let out = match kernel {
                true => by_kernel(LayerNormKernel { eps }, inputs),
                false => layer_norm(x.clone(), w.clone(), b.clone(), eps),
            };
            let grads = backward(&out);
            let [w, b] = [&w, &b].map(|leaf| gradient(leaf, &grads));
            (out.inner(), gradient(&x, &grads), w, b)
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 4e-6, &format!("layer {shape:?}"));
        // With one element or tiny ones everything cancels: an absolute bound is all there is.
        let slack = if n == 1 { 1e-2 } else { 5e-5 };
        close(
            &found.1,
            &expected.1,
            slack,
            &format!("layer {shape:?}, input"),
        );
        close(
            &found.2,
            &expected.2,
            2e-5,
            &format!("layer {shape:?}, weight"),
        );
        close(
            &found.3,
            &expected.3,
            2e-5,
            &format!("layer {shape:?}, bias"),
        );
    }
}

#[test]
fn rotation_as_the_portable_form() {
    let rope = RotaryEmbedding::new(10, 1e4, None);
    let rows: [Vec<Vec<usize>>; 2] = [
        vec![(3..10).collect()],
        vec![(0..7).collect(), vec![0, 0, 0, 1, 2, 3, 4]],
    ];
    for positions in rows {
        let rotation = rope.rotation::<Ad>(&positions, &Default::default());
        let pass = |kernel: bool| {
            // As a projection gives it: tokens outside the heads.
            let x = draw([2, 7, 3, 10], 7, 2.0).require_grad();
            let heads = x.clone().swap_dims(1, 2);
            let out = match kernel {
                true => rotation.apply(heads),
                false => rotation.portable(heads),
            };
            let grads = backward(&out);
            (out.inner(), gradient(&x, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 1e-6, "rotation");
        close(&found.1, &expected.1, 1e-6, "rotation, input");
    }
}

#[test]
fn softmax_as_the_portable_form() {
    for (shape, scale) in [
        ([1, 1, 1], 1.0),
        ([2, 3, 17], 3.0),
        ([2, 40, 1000], 5.0),
        ([3, 5, 70], 200.0),
    ] {
        let pass = |kernel: bool| {
            let x = draw(shape, 51, scale).require_grad();
            // Turned, as scores may come.
            let rows = x.clone().swap_dims(0, 1);
            let out = match kernel {
                true => by_kernel(super::SoftmaxKernel, [float(rows)]),
                false => softmax::portable(rows),
            };
            let grads = backward(&out);
            (out.inner(), gradient(&x, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 2e-6, &format!("{shape:?}"));
        close(&found.1, &expected.1, 4e-6, &format!("{shape:?}, scores"));
        // Numbers that slow products down, and the products made of them, are not there.
        let small = |v: f32| v != 0.0 && v.abs() < super::softmax::TINY;
        assert!(!values(&found.0).into_iter().any(small), "{shape:?}");
    }
    let none = Tensor::<Flex, 2>::zeros([0, 8], &Default::default());
    assert_eq!(softmax::softmax(none).dims(), [0, 8]);
}

#[test]
fn cross_entropy_as_the_portable_form() {
    for (n, vocabulary, scale) in [(1, 3, 1.0), (7, 33, 40.0), (40, 1000, 5.0)] {
        let ids: Vec<i64> = (0..n as i64).map(|i| i * 13 % vocabulary as i64).collect();
        let pass = |kernel: bool| {
            let logits = draw([n, vocabulary], 31, scale).require_grad();
            let losses = match kernel {
                true => cross_entropy::token_losses(logits.clone(), &ids),
                false => cross_entropy::portable(logits.clone(), &ids),
            };
            let grads = backward(&losses);
            (losses.inner(), gradient(&logits, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 2e-6, &format!("{n}×{vocabulary}"));
        close(
            &found.1,
            &expected.1,
            4e-6,
            &format!("{n}×{vocabulary}, logits"),
        );
    }
}

#[test]
fn an_optimizer_step_as_the_portable_form() {
    let step = AdamWStep {
        rate: 1e-2,
        beta_1: 0.9,
        beta_2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.1,
        time: 3,
        grad_scale: 0.5,
    };
    for n in [1, 19, 16 * 1024 + 3] {
        let [p, m, v, g] = [1, 2, 3, 4].map(|seed| draw([1, n], seed, 1.0).inner());
        let v = v.square();
        let found = step.apply(p.clone(), m.clone(), v.clone(), g.clone());
        let expected = step.portable(p, m, v, g.clone());
        for (found, expected) in found.iter().zip(&expected) {
            close(found, expected, 2e-6, &format!("{n} values"));
        }
        let mut sums = SquareSums::<Flex, 2>::new();
        sums.push(1, g.clone());
        sums.push(1, g.clone());
        let expected = 2.0 * f64::from(g.square().sum().into_scalar());
        let [nothing, found] = sums.finish();
        assert_eq!(nothing, 0.0);
        assert!((found - expected).abs() <= 2e-6 * expected, "{found}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let all = || {
        let mut bits: Vec<u32> = Vec::new();
        let mut keep = |values: Vec<f32>| bits.extend(values.iter().map(|v| v.to_bits()));
        let mask = AttentionMask::causal(&[0, 13], 0, 150, &Default::default());
        for part in attend([2, 4, 2, 150, 150, 24], &mask, 1.0, true) {
            keep(values(&part));
        }
        let x = draw([700, 96], 8, 1.0).require_grad();
        let w = draw([96], 9, 1.0).require_grad();
        let out: Tensor<Ad, 2> = by_kernel(
            RmsNormKernel { eps: 1e-5 },
            [float(x.clone()), float(w.clone())],
        );
        let grads = backward(&out);
        keep(values(&gradient(&x, &grads)));
        keep(values(&gradient(&w, &grads)));
        let scale = draw([96], 10, 1.0).require_grad();
        let inputs = [float(x.clone()), float(x.clone()), float(scale.clone())];
        let sum: Tensor<Ad, 2> = by_kernel(super::ScaledSum, inputs);
        let grads = backward(&sum);
        keep(values(&gradient(&x, &grads)));
        keep(values(&gradient(&scale, &grads)));
        for (rows, rank) in [(1, 4), (6, 4), (200, 64)] {
            let (out, grads) = linear_pass(&linear(300, 260, true, Some(rank)), rows, true);
            keep(values(&out));
            grads.into_iter().for_each(&mut keep);
        }
        bits
    };
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    };
    let one = pool(1).install(all);
    for threads in [2, 3, 8] {
        assert!(pool(threads).install(all) == one, "{threads} threads");
    }
}
