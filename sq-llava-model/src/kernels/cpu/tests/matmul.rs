//! Products of tensors, and rows divided by their norms.

use super::*;

use crate::kernels::cpu::{Matmul, NormalizeKernel};
use crate::ops::matmul;
use crate::ops::norm::portable_normalize;

/// A leaf, and the operand that is made of it: as it is, as columns, or one matrix for all samples.
fn operand(
    [batch, rows, columns]: [usize; 3],
    lies: usize,
    seed: u64,
) -> (Tensor<Ad, 3>, Tensor<Ad, 3>) {
    match lies {
        0 => {
            let leaf = draw([batch, rows, columns], seed, 1.0).require_grad();
            (leaf.clone(), leaf)
        }
        1 => {
            let leaf = draw([batch, columns, rows], seed, 1.0).require_grad();
            (leaf.clone(), leaf.swap_dims(1, 2))
        }
        _ => {
            let leaf = draw([1, rows, columns], seed, 1.0).require_grad();
            (leaf.clone(), leaf.expand([batch, rows, columns]))
        }
    }
}

#[test]
fn products_as_the_portable_form() {
    let sizes = [(1, [1, 1, 1]), (3, [5, 17, 40]), (2, [70, 130, 300])];
    for (batch, [m, n, k]) in sizes {
        for lies in 0..9 {
            let pass = |kernel: bool| {
                let (a, left) = operand([batch, m, k], lies / 3, 1);
                let (b, right) = operand([batch, k, n], lies % 3, 2);
                let out = match kernel {
                    true => by_kernel(Matmul { factor: 0.5 }, [float(left), float(right)]),
                    false => matmul::portable(left, right, 0.5),
                };
                let grads = backward(&out);
                (out.inner(), gradient(&a, &grads), gradient(&b, &grads))
            };
            let (found, expected) = (pass(true), pass(false));
            let what = format!("{batch} of {m}×{n}×{k}, operands {lies}");
            close(&found.0, &expected.0, 2e-6, &what);
            close(&found.1, &expected.1, 2e-6, &format!("{what}, a"));
            close(&found.2, &expected.2, 2e-6, &format!("{what}, b"));
        }
    }
}

#[test]
fn a_gradient_lies_like_its_operand() {
    let tensor = |shape: [usize; 3]| draw(shape, 3, 1.0).into_primitive().tensor().primitive;
    let a = tensor([2, 5, 6]);
    let columns = tensor([2, 7, 6]);
    let layout = columns.layout().transpose(1, 2);
    let kernel = Matmul { factor: 1.0 };
    let inputs = [a, columns.with_layout(layout)];
    let strides = inputs.each_ref().map(|i| i.layout().strides().to_vec());
    let (out, saved) = kernel.forward_saving(inputs, [true; 2]);
    let grads = kernel.backward(saved, out, [true; 2]);
    for (grad, strides) in grads.into_iter().zip(strides) {
        assert_eq!(grad.unwrap().layout().strides(), strides);
    }
}

#[test]
fn matrices_that_do_not_fit_are_left_to_the_portable_form() {
    let tensor = |shape: [usize; 3]| draw(shape, 3, 1.0).into_primitive().tensor().primitive;
    let kernel = Matmul { factor: 1.0 };
    assert!(kernel.accepts(&[&tensor([2, 3, 4]), &tensor([2, 4, 5])]));
    assert!(!kernel.accepts(&[&tensor([2, 3, 4]), &tensor([1, 4, 5])]));
    assert!(!kernel.accepts(&[&tensor([2, 3, 4]), &tensor([2, 3, 5])]));
}

#[test]
fn directions_as_the_portable_form() {
    for shape in [[1, 1, 1], [2, 9, 33], [1, 700, 64]] {
        let pass = |kernel: bool| {
            let zeros = Tensor::<Ad, 3>::zeros([shape[0], 1, shape[2]], &Default::default());
            let leaf = Tensor::cat(vec![draw(shape, 1, 2.0), zeros], 1).require_grad();
            let out = match kernel {
                true => by_kernel(NormalizeKernel { least: 1e-24 }, [float(leaf.clone())]),
                false => portable_normalize(leaf.clone(), 2),
            };
            let grads = backward(&out);
            (out.inner(), gradient(&leaf, &grads))
        };
        let (found, expected) = (pass(true), pass(false));
        close(&found.0, &expected.0, 2e-6, "directions");
        close(&found.1, &expected.1, 4e-6, "gradient");
        let last = found.1.narrow(1, shape[1], 1);
        assert!(values(&last).iter().all(|&value| value == 0.0));
    }
}
