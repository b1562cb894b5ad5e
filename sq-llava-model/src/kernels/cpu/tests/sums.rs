//! What adds up: layers' outputs, gradients that meet, dropped elements, joined logits.

use super::*;
use crate::kernels::cpu::{Dropout, JoinedCrossEntropyKernel, ScaledSum, Sum};
use crate::ops::draws::{key, mask, masked, with_keys};
use crate::ops::residual::portable_scaled;

/// Shapes that fill neither vectors nor pieces, and one of several pieces.
const SHAPES: [[usize; 2]; 4] = [[1, 1], [3, 17], [5, 48], [700, 33]];

#[test]
fn sums_as_the_portable_form() {
    for shape in SHAPES {
        let pass = |kernel: bool| {
            let [a, b] = [1, 2].map(|seed| draw(shape, seed, 2.0).require_grad());
            let out = match kernel {
                true => by_kernel(Sum, [float(a.clone()), float(b.clone())]),
                false => a.clone() + b.clone(),
            };
            let grads = backward(&out);
            (out.inner(), gradient(&a, &grads), gradient(&b, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 0.0, &format!("{shape:?}"));
        close(&found.1, &expected.1, 0.0, &format!("{shape:?}, first"));
        close(&found.2, &expected.2, 0.0, &format!("{shape:?}, second"));

        let pass = |kernel: bool| {
            let [a, b] = [1, 2].map(|seed| draw(shape, seed, 2.0).require_grad());
            let scale = draw([shape[1]], 3, 1.5).require_grad();
            let inputs = [float(a.clone()), float(b.clone()), float(scale.clone())];
            let out = match kernel {
                true => by_kernel(ScaledSum, inputs),
                false => portable_scaled(a.clone(), b.clone(), scale.clone()),
            };
            let grads = backward(&out);
            let [a, b] = [&a, &b].map(|leaf| gradient(leaf, &grads));
            (out.inner(), a, b, gradient(&scale, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 1e-6, &format!("scaled {shape:?}"));
        close(&found.1, &expected.1, 0.0, &format!("scaled {shape:?}, a"));
        close(&found.2, &expected.2, 1e-6, &format!("scaled {shape:?}, b"));
        let what = format!("scaled {shape:?}, scale");
        close(&found.3, &expected.3, 4e-6, &what);
    }
}

#[test]
fn a_sum_leaves_what_others_hold_as_it_was() {
    let [a, b] = [1, 2].map(|seed| draw([3, 40], seed, 1.0).inner());
    let (before_a, before_b) = (values(&a), values(&b));
    let sum = crate::ops::residual::add(a.clone(), b.clone());
    assert_eq!((values(&a), values(&b)), (before_a, before_b));
    close(&sum, &(a + b), 0.0, "sum");
}

/// `x + f(norm(x))`, and x again behind it: gradients that meet at x come from a sum, a norm, an
/// activation and burn's own operations, and none is written over while another still needs it.
#[test]
fn gradients_that_meet_add_up() {
    for rows in [3, 700] {
        let pass = |kernel: bool| {
            let x = draw([rows, 48], 4, 1.0).require_grad();
            let w = draw([48], 5, 1.5).require_grad();
            let hidden = x.clone() * 1.5;
            let (normed, eps) = (hidden.clone(), 1e-5);
            let out = if kernel {
                let normed: Tensor<Ad, 2> =
                    by_kernel(RmsNormKernel { eps }, [float(normed), float(w.clone())]);
                let act = Activation::Silu;
                let inner: Tensor<Ad, 2> = by_kernel(
                    super::super::Gated(act),
                    [float(normed.clone()), float(normed)],
                );
                let sum: Tensor<Ad, 2> = by_kernel(Sum, [float(hidden.clone()), float(inner)]);
                by_kernel(Sum, [float(sum.clone()), float(sum.clone())]) * hidden
            } else {
                let normed = rms_norm(normed, w.clone(), eps);
                let sum =
                    hidden.clone() + Activation::Silu.portable(normed.clone()) * normed.clone();
                (sum.clone() + sum) * hidden
            };
            let grads = backward(&out);
            (out.inner(), gradient(&x, &grads), gradient(&w, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 4e-6, &format!("{rows} rows"));
        close(&found.1, &expected.1, 2e-5, &format!("{rows} rows, input"));
        close(&found.2, &expected.2, 2e-5, &format!("{rows} rows, weight"));
    }
}

#[test]
fn dropped_elements_as_the_portable_form() {
    for [rows, width] in SHAPES {
        let keys = [key(1, 2, "a")];
        let mask = with_keys(&keys, || mask([rows, width], 3, 0.3)).expect("a mask");
        let pass = |kernel: bool| {
            let x = draw([rows, width], 6, 2.0).require_grad();
            let out = match kernel {
                true => by_kernel(Dropout(mask.clone()), [float(x.clone())]),
                false => masked(x.clone(), &mask),
            };
            // Beside another way back to x.
            let grads = backward(&(out.clone() + x.clone()));
            (out.inner(), gradient(&x, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 0.0, &format!("{rows}×{width}"));
        let what = format!("{rows}×{width}, input");
        close(&found.1, &expected.1, 1e-6, &what);
    }
}

#[test]
fn joined_cross_entropy_as_the_portable_form() {
    // Behind the last column, over it, and inside.
    for (n, columns, new, start) in [(1, 3, 1, 3), (7, 33, 4, 31), (40, 1000, 3, 500)] {
        let all = columns.max(start + new);
        let ids: Vec<i64> = (0..n as i64).map(|i| i * 499 % all as i64).collect();
        let pass = |kernel: bool| {
            let base = draw([n, columns], 31, 9.0).require_grad();
            let rows = draw([n, new], 32, 9.0).require_grad();
            let losses = if kernel {
                let places = ids.iter().map(|&id| id as usize).collect();
                let kernel = JoinedCrossEntropyKernel { ids: places, start };
                by_kernel(kernel, [float(base.clone()), float(rows.clone())])
            } else {
                let logits = cross_entropy::joined(base.clone(), rows.clone(), start);
                cross_entropy::portable(logits, &ids)
            };
            let grads = backward::<1>(&losses);
            let [base, rows] = [&base, &rows].map(|leaf| gradient(leaf, &grads));
            (losses.inner(), base, rows)
        };
        let (found, expected) = (pass(true), pass(false));
        let what = format!("{n}×{columns} and {new} from {start}");
        close(&found.0, &expected.0, 2e-6, &what);
        close(&found.1, &expected.1, 4e-6, &format!("{what}, base"));
        close(&found.2, &expected.2, 4e-6, &format!("{what}, new"));
    }
}
