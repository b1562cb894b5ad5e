//! Rows of a weight, or of keys, times a few rows of input, and values by weights: what a decoded
//! token is multiplied with. It costs what reading them costs.
//!
//! Four rows are read at once, so that their sums do not wait for each other, and the four behind
//! them are asked for meanwhile: the processor sees such short streams too late (one core of an
//! Emerald Rapids reads 6 GB/s row by row, 9 in fours, 16 with the request, of 18 at most). A row's
//! sum has the same order either way.

mod keys;

use burn::tensor::{bf16, f16};
use half::slice::HalfFloatSliceExt;

use super::level::{Level, prefetch};
use super::math::{LANES, total};

/// Rows that are read at once.
const GROUP: usize = 4;
/// Bytes of a line of the cache.
const LINE: usize = 64;

/// A number as weights and the cache store it.
trait Number: Copy {
    fn full(self) -> f32;

    fn widen<L: Level>(from: &[Self; LANES]) -> [f32; LANES];
}

impl Number for f32 {
    #[inline(always)]
    fn full(self) -> f32 {
        self
    }

    #[inline(always)]
    fn widen<L: Level>(from: &[Self; LANES]) -> [f32; LANES] {
        *from
    }
}

impl Number for f16 {
    #[inline(always)]
    fn full(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn widen<L: Level>(from: &[Self; LANES]) -> [f32; LANES] {
        L::widen(from)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn full(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn widen<L: Level>(from: &[Self; LANES]) -> [f32; LANES] {
        let mut to = [0.0; LANES];
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.full();
        }
        to
    }
}

/// The loops over numbers of a type, for every instruction set.
pub(super) trait Stored: Copy + Sync + Sized {
    /// Products of weight rows `[count, k]` with inputs `[rows, k]`: `out [count, rows]`.
    fn products(weight: &[Self], x: &[f32], rows: usize, k: usize, out: &mut [f32]);

    /// `factor · key · query` for some queries `[queries, dim]` and keys `stride` apart:
    /// `[queries, keys]`.
    fn scores(
        query: &[f32],
        dim: usize,
        keys: &[Self],
        stride: usize,
        factor: f32,
        out: &mut [f32],
    );

    /// Adds values `stride` apart with some rows of weights `[rows, keys]`: `[rows, dim]`.
    fn mix(weights: &[f32], keys: usize, values: &[Self], stride: usize, out: &mut [f32]);

    /// Rows `stride` apart as f32 numbers, and how far apart those are: themselves, or in `space`.
    fn dense<'a>(
        rows: &'a [Self],
        stride: usize,
        [count, width]: [usize; 2],
        space: &'a mut Vec<f32>,
    ) -> (&'a [f32], usize) {
        space.resize(count * width, 0.0);
        for (row, out) in space.chunks_exact_mut(width).enumerate() {
            Self::to_full(&rows[row * stride..][..width], out);
        }
        (&space[..], width)
    }

    /// To f32.
    fn to_full(from: &[Self], to: &mut [f32]);

    /// From f32, to nearest.
    fn from_full(from: &[f32], to: &mut [Self]);
}

macro_rules! stored {
    ($number:ty, $module:ident, $round:expr $(, $dense:item)?) => {
        impl Stored for $number {
            $($dense)?

            fn products(weight: &[Self], x: &[f32], rows: usize, k: usize, out: &mut [f32]) {
                $module::products(weight, x, rows, k, out);
            }

            fn scores(
                query: &[f32],
                dim: usize,
                keys: &[Self],
                stride: usize,
                factor: f32,
                out: &mut [f32],
            ) {
                $module::scores(query, dim, keys, stride, factor, out);
            }

            fn mix(weights: &[f32], keys: usize, values: &[Self], stride: usize, out: &mut [f32]) {
                $module::mix(weights, keys, values, stride, out);
            }

            fn to_full(from: &[Self], to: &mut [f32]) {
                $module::widen(from, to);
            }

            fn from_full(from: &[f32], to: &mut [Self]) {
                $round(from, to);
            }
        }

        mod $module {
            use super::super::level::vectorised;

            vectorised! {
                pub fn products<L>(
                    weight: &[$number],
                    x: &[f32],
                    rows: usize,
                    k: usize,
                    out: &mut [f32],
                ) {
                    super::products::<L, $number>(weight, x, rows, k, out);
                }

                pub fn scores<L>(
                    query: &[f32],
                    dim: usize,
                    keys: &[$number],
                    stride: usize,
                    factor: f32,
                    out: &mut [f32],
                ) {
                    super::keys::scores::<L, $number>(query, dim, keys, stride, factor, out);
                }

                pub fn mix<L>(
                    weights: &[f32],
                    keys: usize,
                    values: &[$number],
                    stride: usize,
                    out: &mut [f32],
                ) {
                    super::keys::mix::<L, $number>(weights, keys, values, stride, out);
                }

                pub fn widen<L>(from: &[$number], to: &mut [f32]) {
                    super::widen::<L, $number>(from, to);
                }
            }
        }
    };
}

stored!(
    f32,
    in_f32,
    |from: &[f32], to: &mut [f32]| to.copy_from_slice(from),
    fn dense<'a>(
        rows: &'a [f32],
        stride: usize,
        _: [usize; 2],
        _: &'a mut Vec<f32>,
    ) -> (&'a [f32], usize) {
        (rows, stride)
    }
);
stored!(burn::tensor::f16, in_f16, |from: &[f32], to: &mut [f16]| to
    .convert_from_f32_slice(from));
stored!(
    burn::tensor::bf16,
    in_bf16,
    |from: &[f32], to: &mut [bf16]| to.convert_from_f32_slice(from)
);

#[inline(always)]
fn widen<L: Level, T: Number>(from: &[T], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (from, to) in from.iter().zip(to) {
        *to = T::widen::<L>(from);
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = from.full();
    }
}

#[inline(always)]
fn products<L: Level, T: Number>(weight: &[T], x: &[f32], rows: usize, k: usize, out: &mut [f32]) {
    let groups = weight.chunks_exact(GROUP * k);
    let rest = groups.remainder();
    let mut outs = out.chunks_exact_mut(GROUP * rows);
    for (weight, out) in groups.zip(&mut outs) {
        group::<L, T, GROUP>(weight, x, rows, k, out);
    }
    let outs = outs.into_remainder().chunks_exact_mut(rows);
    for (weight, out) in rest.chunks_exact(k).zip(outs) {
        group::<L, T, 1>(weight, x, rows, k, out);
    }
}

#[inline(always)]
fn group<L: Level, T: Number, const R: usize>(
    weight: &[T],
    x: &[f32],
    rows: usize,
    k: usize,
    out: &mut [f32],
) {
    let mut weights: [&[T]; R] = [&[]; R];
    for (r, row) in weights.iter_mut().enumerate() {
        *row = &weight[r * k..(r + 1) * k];
    }
    for (row, x) in x.chunks_exact(k).enumerate() {
        let lanes = dots::<L, T, R>(weights, x, R * k);
        for (i, lanes) in lanes.into_iter().enumerate() {
            out[i * rows + row] = total(lanes);
        }
    }
}

/// Blocks of [`LANES`] numbers that a line of the cache holds.
#[inline(always)]
const fn blocks_of_a_line<T>() -> usize {
    let block = LANES * size_of::<T>();
    if block < LINE { LINE / block } else { 1 }
}

/// Products of `R` rows with one, lane by lane; their totals are as [`dot`](super::math::dot), in
/// the same order. Numbers `ahead` of the rows are asked for. (Loops, since `map` of an array is a
/// call, and compiled without the instructions of a level.)
#[inline(always)]
#[allow(clippy::needless_range_loop)] // several arrays side by side
fn dots<L: Level, T: Number, const R: usize>(
    rows: [&[T]; R],
    x: &[f32],
    ahead: usize,
) -> [[f32; LANES]; R] {
    let mut lanes = [[0.0f32; LANES]; R];
    let (x_blocks, x_rest) = x.as_chunks::<LANES>();
    let start = x_blocks.len() * LANES;
    let mut blocks: [&[[T; LANES]]; R] = [&[]; R];
    for r in 0..R {
        blocks[r] = &rows[r].as_chunks().0[..x_blocks.len()];
    }
    for (i, x) in x_blocks.iter().enumerate() {
        if i % blocks_of_a_line::<T>() == 0 {
            for r in 0..R {
                prefetch(blocks[r][i].as_ptr().wrapping_add(ahead));
            }
        }
        for r in 0..R {
            let wide = T::widen::<L>(&blocks[r][i]);
            for lane in 0..LANES {
                lanes[r][lane] = L::fma(wide[lane], x[lane], lanes[r][lane]);
            }
        }
    }
    for r in 0..R {
        for (lane, (weight, &x)) in rows[r][start..].iter().zip(x_rest).enumerate() {
            lanes[r][lane] = L::fma(weight.full(), x, lanes[r][lane]);
        }
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::super::level::Baseline;
    use super::*;

    #[test]
    fn every_half_number_becomes_the_same_in_full() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut wide = vec![0.0; all.len()];
        f16::to_full(&all, &mut wide);
        let same = |half: &f16, wide: f32| {
            let same = half.to_f32().to_bits() == wide.to_bits();
            assert!(
                same || half.is_nan() && wide.is_nan(),
                "{half} became {wide}"
            );
        };
        for (half, &wide) in all.iter().zip(&wide) {
            same(half, wide);
        }
        for block in all.as_chunks::<LANES>().0 {
            for (half, wide) in block.iter().zip(Baseline::widen(block)) {
                same(half, wide);
            }
        }
    }

    #[test]
    fn every_brain_number_becomes_the_same_in_full() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut wide = vec![0.0; all.len()];
        bf16::to_full(&all, &mut wide);
        for (brain, &wide) in all.iter().zip(&wide) {
            let same = brain.to_f32().to_bits() == wide.to_bits();
            assert!(
                same || brain.is_nan() && wide.is_nan(),
                "{brain} became {wide}"
            );
        }
    }

    /// A row's sum is the same alone, among others, and in 16 bits that hold it exactly.
    #[test]
    fn a_row_is_multiplied_alike_wherever_it_stands() {
        for k in [1, 15, 16, 40, 576] {
            for count in [1, 3, 4, 9] {
                let number = |i: usize| (i * 37 % 101) as f32 / 64.0 - 0.75;
                let weight: Vec<f32> = (0..count * k).map(number).collect();
                let x: Vec<f32> = (0..2 * k).map(|i| number(i + 5)).collect();
                let mut full = vec![0.0; count * 2];
                f32::products(&weight, &x, 2, k, &mut full);
                for (row, weight) in weight.chunks(k).enumerate() {
                    let mut alone = vec![0.0; 2];
                    f32::products(weight, &x, 2, k, &mut alone);
                    assert_eq!(full[2 * row..2 * row + 2], alone, "{k} {count} {row}");
                    let exact: f64 = weight
                        .iter()
                        .zip(&x)
                        .map(|(w, x)| f64::from(*w) * f64::from(*x))
                        .sum();
                    let error = (f64::from(alone[0]) - exact).abs();
                    assert!(error < 1e-4, "{k}: {} for {exact}", alone[0]);
                }
                let half: Vec<f16> = weight.iter().map(|w| f16::from_f32(*w)).collect();
                let brain: Vec<bf16> = weight.iter().map(|w| bf16::from_f32(*w)).collect();
                let mut found = vec![0.0; count * 2];
                f16::products(&half, &x, 2, k, &mut found);
                assert_eq!(found, full, "{k} {count}");
                bf16::products(&brain, &x, 2, k, &mut found);
                assert_eq!(found, full, "{k} {count}");
            }
        }
    }
}
