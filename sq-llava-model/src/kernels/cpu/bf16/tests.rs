#![allow(clippy::print_stderr)] // A level that is not tested is named.

use half::bf16;

use super::super::processor::KernelPath;
use super::{Unit, backward, forward};

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The units of this machine; those that it lacks are named.
fn units() -> Vec<Unit> {
    let mut units = vec![Unit::Portable];
    #[cfg(target_arch = "x86_64")]
    for (path, unit) in [
        (KernelPath::Bf16, Unit::Avx512),
        (KernelPath::Amx, Unit::Amx),
    ] {
        match path.is_available() {
            true => units.push(unit),
            false => eprintln!("this machine does not run {unit:?}: it is not tested"),
        }
    }
    units
}

/// `a bᵀ` of rows in f64, and the sum of sizes.
fn reference(a: &[f32], b: &[f32], depth: usize) -> Vec<(f64, f64)> {
    let mut out = vec![];
    for a in a.chunks(depth) {
        for b in b.chunks(depth) {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            out.push((products.clone().sum(), products.map(f64::abs).sum()));
        }
    }
    out
}

fn rounded(values: &[f32]) -> Vec<f32> {
    let round = |value: &f32| bf16::from_f32(*value).to_f32();
    values.iter().map(round).collect()
}

const SHAPES: [[usize; 3]; 6] = [
    [9, 32, 32],
    [33, 64, 48],
    [40, 100, 70],
    [64, 576, 33],
    [1, 1, 1],
    [100, 31, 17],
];

#[test]
fn forward_is_the_product_of_rounded_numbers() {
    for unit in units() {
        for [rows, d_in, d_out] in SHAPES {
            let x = numbers(rows * d_in, 1);
            let weight = numbers(d_out * d_in, 2);
            let stored: Vec<bf16> = weight.iter().map(|w| bf16::from_f32(*w)).collect();
            let expected = reference(&rounded(&x), &rounded(&weight), d_in);
            let bias = numbers(d_out, 6);
            for bias in [None, Some(&bias[..])] {
                let found = forward(unit, [rows, d_in, d_out], &x, &stored, bias);
                assert_eq!(found.len(), expected.len());
                for (i, (found, (sum, size))) in found.iter().zip(&expected).enumerate() {
                    let sum = sum + bias.map_or(0.0, |bias| f64::from(bias[i % d_out]));
                    let error = (f64::from(*found) - sum).abs();
                    let what = format!("{unit:?} {rows} {d_in} {d_out} {}", bias.is_some());
                    assert!(error <= 1e-6 * (size + 1.0), "{what}: {found} for {sum}");
                }
            }
        }
    }
}

#[test]
fn backward_is_the_product_with_the_weight_itself() {
    for unit in units() {
        for [rows, d_in, d_out] in SHAPES {
            let grad = numbers(rows * d_out, 3);
            let weight = numbers(d_out * d_in, 4);
            let stored: Vec<bf16> = weight.iter().map(|w| bf16::from_f32(*w)).collect();
            let mut columns = vec![0.0; d_in * d_out];
            for (i, value) in rounded(&weight).into_iter().enumerate() {
                columns[i % d_in * d_out + i / d_in] = value;
            }
            let expected = reference(&rounded(&grad), &columns, d_out);
            let out = backward(unit, [rows, d_in, d_out], &grad, &stored);
            assert_eq!(out.len(), expected.len());
            for (found, (sum, size)) in out.iter().zip(&expected) {
                let error = (f64::from(*found) - sum).abs();
                let what = format!("{unit:?} {rows} {d_in} {d_out}");
                assert!(error <= 1e-6 * (size + 1e-3), "{what}: {found} for {sum}");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    for unit in units() {
        let weight = vec![bf16::ONE; 40 * 64];
        for bad in [f32::NAN, f32::INFINITY, f32::from_bits(0x7f80_0001)] {
            let mut x = numbers(10 * 64, 5);
            x[3 * 64 + 7] = bad;
            let out = forward(unit, [10, 64, 40], &x, &weight, None);
            for (row, out) in out.chunks(40).enumerate() {
                let finite = out.iter().all(|v| v.is_finite());
                assert_eq!(finite, row != 3, "{unit:?} {bad} {row}");
            }
        }
    }
}
