//! Functions of one f32 that vectorise, and sums with a fixed order.

use super::level::Level;

/// Accumulators of a sum: the same number on every machine, so that the order is the same.
pub(super) const LANES: usize = 16;

/// `1.5 · 2²³`: adding it rounds to an integer that stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `eˣ` within 2 units in the last place; zero below −86.9, near the smallest normal number.
#[inline(always)]
pub(super) fn exp<L: Level>(x: f32) -> f32 {
    // ln 2 in two parts, of which the first has few bits: its products with n are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = L::fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = L::fma(n, -LN2_LOW, L::fma(n, -LN2_HIGH, x));
    // (eʳ − 1 − r) / r² for |r| ≤ ln 2 / 2, fitted with absolute error 3e-9.
    let p = L::fma(r, 1.395_048_7e-3, 8.368_89e-3);
    let p = L::fma(r, p, 4.166_620_6e-2);
    let p = L::fma(r, p, 1.666_651_8e-1);
    let p = L::fma(r, p, 0.5);
    let e = L::fma(r * r, p, r) + 1.0;
    // 2ⁿ⁻¹ from its exponent bits, then twice that: 2¹²⁸ is not a number of this type.
    let half = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let y = e * half * 2.0;
    let y = if x < -86.9 { 0.0 } else { y };
    if x > 88.722_84 { f32::INFINITY } else { y }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(super) fn sigmoid<L: Level>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<L>(-x))
}

/// `tanh x`, with the absolute error of one rounding.
#[inline(always)]
pub(super) fn tanh<L: Level>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<L>(2.0 * x) + 1.0)
}

/// Distribution function and density of the standard normal distribution.
#[inline(always)]
pub(super) fn normal<L: Level>(x: f32) -> (f32, f32) {
    const COEFFICIENTS: [f32; 10] = [
        -1.885_050_1e-6,
        1.396_628_2e-1,
        1.394_779e-1,
        1.218_077e-1,
        9.928_431e-2,
        -1.060_905_4e-2,
        1.431_189_8e-1,
        -2.429_578_5e-1,
        1.382_638e-1,
        -2.804_674_2e-2,
    ];
    let size = x.abs();
    let gauss = exp::<L>(-0.5 * size * size);
    // Φ(−|x|) e^{x²/2} as a polynomial in 1 / (1 + 0.35 |x|), fitted on 0 … 14 with relative
    // error 2.7e-8: the tail keeps its relative accuracy.
    let t = 1.0 / L::fma(size, 0.35, 1.0);
    let mut p = COEFFICIENTS[9];
    for &c in COEFFICIENTS[..9].iter().rev() {
        p = L::fma(p, t, c);
    }
    let tail = p * gauss;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, gauss * 0.398_942_3)
}

/// Sum of the lanes, in pairs.
#[inline(always)]
pub(super) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ f(i)` over `0..n`, lane by lane.
#[inline(always)]
pub(super) fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, slot) in lanes.iter_mut().enumerate() {
            *slot += f(start + lane);
        }
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    total(lanes)
}

/// `a · b`. The slices are equally long.
#[inline(always)]
pub(super) fn dot<L: Level>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] = L::fma(a[lane], b[lane], lanes[lane]);
        }
    }
    for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] = L::fma(a, b, lanes[lane]);
    }
    total(lanes)
}

/// The largest element; −∞ of none.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] {
                block[lane]
            } else {
                lanes[lane]
            };
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Replaces each element by `e^{x − shift}` and returns their sum.
#[inline(always)]
pub(super) fn exp_in_place<L: Level>(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, rest) = values.as_chunks_mut::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            block[lane] = exp::<L>(block[lane] - shift);
            lanes[lane] += block[lane];
        }
    }
    for (lane, value) in rest.iter_mut().enumerate() {
        *value = exp::<L>(*value - shift);
        lanes[lane] += *value;
    }
    total(lanes)
}

#[cfg(test)]
mod tests {
    use super::super::level::{Baseline, vectorised};
    use super::*;

    vectorised! {
        fn each<L>(values: &mut [f32], which: u8) {
            for value in values {
                *value = match which {
                    0 => exp::<L>(*value),
                    1 => normal::<L>(*value).0,
                    _ => normal::<L>(*value).1,
                };
            }
        }
    }

    fn ulps(found: f32, expected: f64) -> f64 {
        let next = (expected as f32).abs().to_bits() + 1;
        (f64::from(found) - expected).abs()
            / f64::from(f32::from_bits(next) - (expected as f32).abs())
    }

    #[test]
    fn the_exponential_is_within_two_units() {
        let inputs: Vec<f32> = (0..200_001).map(|i| -86.5 + i as f32 * 8.75e-4).collect();
        let mut found = inputs.clone();
        each(&mut found, 0);
        for (&x, &y) in inputs.iter().zip(&found) {
            let expected = f64::from(x).exp();
            assert!(ulps(y, expected) <= 2.0, "{x}: {y} for {expected}");
            assert!(ulps(exp::<Baseline>(x), expected) <= 2.0, "{x} without FMA");
        }
    }

    #[test]
    fn the_exponential_at_its_ends() {
        let mut ends = [
            f32::NEG_INFINITY,
            -1e30,
            -104.0,
            0.0,
            88.72,
            89.0,
            f32::INFINITY,
            f32::NAN,
        ];
        each(&mut ends, 0);
        assert_eq!(ends[..4], [0.0, 0.0, 0.0, 1.0]);
        assert!(ends[4].is_finite() && ends[4] > 3.3e38);
        assert_eq!(ends[5..7], [f32::INFINITY; 2]);
        assert!(ends[7].is_nan());
    }

    /// Φ at these points from a table of the error function with 20 digits.
    #[test]
    fn the_normal_distribution_keeps_its_tails() {
        let cases = [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_542_9),
            (-1.0, 0.158_655_253_931_457_05),
            (-3.0, 1.349_898_031_630_094_5e-3),
            (-6.0, 9.865_876_450_376_946e-10),
            (-10.0, 7.619_853_024_160_527e-24),
            (5.0, 0.999_999_713_348_428_1),
        ];
        for (x, expected) in cases {
            let mut value = [x];
            each(&mut value, 1);
            let error = (f64::from(value[0]) - expected).abs() / expected;
            assert!(error < 1e-6, "Φ({x}) = {} for {expected}", value[0]);
        }
        let mut density = [1.5f32];
        each(&mut density, 2);
        assert!((density[0] - 0.129_517_6).abs() < 1e-7);
    }

    #[test]
    fn sums_take_every_element_once() {
        for n in [0usize, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected = (n * n.saturating_sub(1) / 2) as f32;
            assert_eq!(sum(n, |i| values[i]), expected);
            let ones = vec![1.0; n];
            assert_eq!(dot::<Baseline>(&values, &ones), expected);
            let last = if n == 0 {
                f32::NEG_INFINITY
            } else {
                n as f32 - 1.0
            };
            assert_eq!(max(&values), last);
        }
    }
}
