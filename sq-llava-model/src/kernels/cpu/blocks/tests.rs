#![allow(clippy::print_stderr)] // A level that is not tested is named.

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Input, Level};
use crate::kernels::blocks::{BLOCK, BlockMatrix, QuantFormat};
use crate::kernels::cpu::weight::{Weight, few};

type B = Flex;

/// The same numbers for a shape in every run.
fn random(rows: usize, columns: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64((rows * 10_000 + columns) as u64);
    (0..rows * columns)
        .map(|_| rng.random_range(-2.0..2.0))
        .collect()
}

fn matrix(format: QuantFormat, rows: usize, columns: usize) -> BlockMatrix {
    let values = random(rows, columns);
    BlockMatrix::quantize("a weight", format, [rows, columns], |row, out| {
        out.copy_from_slice(&values[row * columns..(row + 1) * columns]);
    })
    .unwrap()
}

/// `x Wᵀ` in f64, and what the rounding of inputs to 16 bits and of sums to f32 may change:
/// half a step of each block's largest input for every weight. What is rounded meets a weight in
/// int4 without its block's minimum, so a small weight can stand for two large parts.
fn reference(weight: &BlockMatrix, input: &[f32]) -> Vec<(f64, f64)> {
    let w: Vec<f32> = weight.dequantize().to_vec().unwrap();
    let mut out = vec![];
    for x in input.chunks(weight.columns()) {
        for w in w.chunks(weight.columns()) {
            let (mut sum, mut bound) = (0.0, 0.0);
            for (x, w) in x.chunks(BLOCK).zip(w.chunks(BLOCK)) {
                let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let min = match weight.format() {
                    QuantFormat::Q8 => 0.0,
                    QuantFormat::Q4 => w.iter().copied().fold(f32::INFINITY, f32::min),
                };
                for (x, w) in x.iter().zip(w) {
                    let scaled = w - min;
                    sum += f64::from(*w) * f64::from(*x);
                    bound += f64::from(scaled.abs() * largest) / 65278.0;
                    bound += f64::from((scaled.abs() + min.abs()) * x.abs()) * 1e-6;
                }
            }
            out.push((sum, bound));
        }
    }
    out
}

fn assert_near(what: &str, found: &[f32], weight: &BlockMatrix, input: &[f32]) {
    let expected = reference(weight, input);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, (sum, bound)) in found.iter().zip(expected) {
        let error = (f64::from(*found) - sum).abs();
        assert!(
            error <= bound,
            "{what}: {found} for {sum}, allowed {bound:.1e}"
        );
    }
}

fn at(level: Level, weight: &BlockMatrix, input: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; weight.rows()];
    level.dots(
        weight.blocks(),
        0,
        &[Input::new(input, &[Some(weight.format())])],
        &mut out,
    );
    out
}

/// The levels of this machine; those that it lacks are named.
fn levels() -> Vec<Level> {
    #[allow(unused_mut)]
    let mut levels = vec![Level::Portable];
    #[cfg(target_arch = "x86_64")]
    for level in [Level::Avx2, Level::Vnni] {
        match level.is_available() {
            true => levels.push(level),
            false => eprintln!("this machine does not run {level:?}: it is not tested"),
        }
    }
    levels
}

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8, QuantFormat::Q4];

#[test]
fn every_level_multiplies_alike() {
    for format in FORMATS {
        // Widths with full and part blocks, fewer and more than a step of scales.
        for columns in [7, 32, 172, 576, 1031] {
            let weight = matrix(format, 5, columns);
            let input = random(1, columns);
            for level in levels() {
                let found = at(level, &weight, &input);
                let what = format!("{format:?} {level:?} {columns}");
                assert_near(&what, &found, &weight, &input);
            }
        }
    }
}

#[test]
fn few_and_many_rows_are_products_with_the_dequantised_weight() {
    for format in FORMATS {
        for rows in [1, 2, 4, 5, 8, 9, 33] {
            let (n, k) = (300, 100);
            let weight = matrix(format, n, k);
            let input = random(rows, k);
            let tensor = TensorData::new(input.clone(), [rows, k]);
            let tensor = Tensor::<B, 2>::from_data(tensor, &Default::default());
            let found: Vec<f32> = weight.product(tensor).into_data().to_vec().unwrap();
            let what = format!("{format:?} {rows} rows");
            assert_near(&what, &found, &weight, &input);
        }
        // Wide enough for several threads.
        let weight = matrix(format, 1200, 576);
        let input = random(1, 576);
        let found = few(&[Weight::in_blocks(weight.blocks())], 1, &input);
        assert_near("wide", &found[0], &weight, &input);
    }
}

#[test]
fn the_gradient_is_the_dense_one_of_the_dequantised_weight() {
    type Ad = Autodiff<B>;
    let device = Default::default();
    for format in FORMATS {
        for rows in [1, 20] {
            let (n, k) = (70, 100);
            let weight = matrix(format, n, k);
            let dense = Tensor::<Ad, 2>::from_data(weight.dequantize(), &device);
            let input = TensorData::new(random(rows, k), [rows, k]);
            let cotangent = TensorData::new(random(rows, n), [rows, n]);
            let gradient = |product: &dyn Fn(Tensor<Ad, 2>) -> Tensor<Ad, 2>| {
                let x = Tensor::<Ad, 2>::from_data(input.clone(), &device).require_grad();
                let y = product(x.clone()) * Tensor::from_data(cotangent.clone(), &device);
                let grads = y.sum().backward();
                let grad = x.grad(&grads).expect("the input has a gradient");
                grad.into_data().to_vec::<f32>().unwrap()
            };
            let found = gradient(&|x| weight.product(x));
            let expected = gradient(&|x| x.matmul(dense.clone().transpose()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let weight = matrix(QuantFormat::Q8, 3, 64);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut input = random(1, 64);
        input[40] = bad;
        for level in levels() {
            let found = at(level, &weight, &input);
            assert!(found.iter().all(|v| !v.is_finite()), "{level:?} {found:?}");
        }
    }
    // A row of zeros gives zeros.
    let found = few(&[Weight::in_blocks(weight.blocks())], 1, &[0.0; 64]);
    assert_eq!(found, [[0.0; 3]]);
}
