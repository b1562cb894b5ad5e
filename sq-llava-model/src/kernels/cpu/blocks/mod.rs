//! Rows of weights in blocks ([`Blocks`]) times a few rows of input, for each instruction set.
//!
//! An input is rounded to integers from −32639 to 32639 block by block, half a step being 2⁻¹⁶ of
//! the block's largest value, and multiplied with the weights' integers.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod input;
#[cfg(target_arch = "x86_64")]
mod vnni;

use half::f16;

#[cfg(target_arch = "x86_64")]
use super::processor::{KernelPath, path};
use crate::kernels::blocks::{BLOCK, Blocks, QuantFormat};

pub(super) use input::Input;

/// Scales are read in steps of this many.
const STEP: usize = 16;
/// Rows of input that share a pass over the weights. Rows of weights are read one after the other:
/// memory gives several short streams at once half as fast.
const GROUP: usize = 4;

/// One row of weights.
struct Row<'a> {
    blocks: usize,
    quants: &'a [u8],
    /// At least [`STEP`] more than the row's own follow, of other rows or zeros.
    scales: &'a [f16],
    mins: &'a [f16],
}

/// All rows from one on, found once: where a weight's bytes lie is asked through its memory's owner,
/// which for every row would cost as much as half of the row.
struct Rows<'a> {
    blocks: usize,
    width: usize,
    minima: bool,
    quants: &'a [u8],
    scales: &'a [f16],
    mins: &'a [f16],
}

impl<'a> Rows<'a> {
    fn from(weight: &'a Blocks, first: usize) -> Self {
        let (blocks, rows) = (weight.row_blocks(), first..weight.rows);
        Self {
            blocks,
            width: blocks * weight.format.block_bytes(),
            minima: weight.format == QuantFormat::Q4,
            quants: weight.quants_of(rows),
            scales: weight.scales_from(first),
            mins: weight.mins_from(first),
        }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> Row<'a> {
        let first = row * self.blocks;
        let row = Row {
            blocks: self.blocks,
            quants: &self.quants[row * self.width..(row + 1) * self.width],
            scales: &self.scales[first..],
            mins: if self.minima {
                &self.mins[first..]
            } else {
                &[]
            },
        };
        let steps = row.blocks.next_multiple_of(STEP);
        assert!(row.scales.len() >= steps && (!self.minima || row.mins.len() >= steps));
        row
    }
}

/// Products of weight rows from `first` on with all inputs: `out[weight row, input]`.
pub(super) fn dots(weight: &Blocks, first: usize, inputs: &[Input], out: &mut [f32]) {
    level().dots(weight, first, inputs, out);
}

/// Instruction sets that products are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Any machine.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with integer products (VNNI).
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Level {
    /// Whether this machine has the instructions.
    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => KernelPath::Avx2.is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => {
                KernelPath::Avx512.is_available() && is_x86_feature_detected!("avx512vnni")
            }
        }
    }

    /// As [`dots`] at this level.
    pub fn dots(self, weight: &Blocks, first: usize, inputs: &[Input], out: &mut [f32]) {
        let n = inputs.len();
        let whole = n / GROUP * GROUP;
        for start in (0..whole).step_by(GROUP) {
            let four = std::array::from_fn::<_, GROUP, _>(|m| &inputs[start + m]);
            self.rows(weight, first, &four, out, [start, n]);
        }
        for (start, input) in inputs.iter().enumerate().skip(whole) {
            self.rows(weight, first, &[input], out, [start, n]);
        }
    }

    /// All weight rows with some inputs, which stand from column `start` of `n` in `out`.
    fn rows<const M: usize>(
        self,
        weight: &Blocks,
        first: usize,
        inputs: &[&Input; M],
        out: &mut [f32],
        [start, n]: [usize; 2],
    ) {
        let blocks = weight.row_blocks();
        for input in inputs {
            let steps = blocks.next_multiple_of(STEP);
            assert!(input.values.len() >= blocks * BLOCK);
            assert!(input.scales.len() == steps && input.sums.len() == steps);
            #[cfg(target_arch = "x86_64")]
            assert!(self < Self::Vnni || input.bytes.reach(weight.format) >= blocks);
        }
        let all = Rows::from(weight, first);
        let rows = out.chunks_mut(n).enumerate().map(|(i, out)| {
            let row = all.row(i);
            (row, &mut out[start..start + M])
        });
        match (self, weight.format) {
            // SAFETY: `level` gives these only where the machine has the features; the
            // inputs' lengths are asserted above, a row's in `Rows::row`.
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, QuantFormat::Q8) => unsafe { vnni::rows::<false, M>(rows, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, QuantFormat::Q4) => unsafe { vnni::rows::<true, M>(rows, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, QuantFormat::Q8) => unsafe { avx2::rows::<false, M>(rows, inputs) },
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, QuantFormat::Q4) => unsafe { avx2::rows::<true, M>(rows, inputs) },
            (Self::Portable, format) => {
                for (row, out) in rows {
                    let sums = match format {
                        QuantFormat::Q8 => portable::<false, M>(&row, inputs),
                        QuantFormat::Q4 => portable::<true, M>(&row, inputs),
                    };
                    out.copy_from_slice(&sums);
                }
            }
        }
    }
}

/// The best level of this machine's path.
fn level() -> Level {
    use std::sync::OnceLock;
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        match path() {
            KernelPath::Portable => {}
            KernelPath::Avx512 | KernelPath::Bf16 | KernelPath::Amx
                if Level::Vnni.is_available() =>
            {
                return Level::Vnni;
            }
            _ => return Level::Avx2,
        }
        Level::Portable
    })
}

fn portable<const Q4: bool, const M: usize>(row: &Row<'_>, inputs: &[&Input; M]) -> [f32; M] {
    let mut sums = [0.0f32; M];
    let width = if Q4 { BLOCK / 2 } else { BLOCK };
    for (b, quants) in row.quants.chunks_exact(width).enumerate() {
        let mut weights = [0i32; BLOCK];
        if Q4 {
            for (i, &quant) in quants.iter().enumerate() {
                weights[i] = i32::from(quant & 15);
                weights[i + BLOCK / 2] = i32::from(quant >> 4);
            }
        } else {
            for (weight, &quant) in weights.iter_mut().zip(quants) {
                *weight = i32::from(quant as i8);
            }
        }
        let d = row.scales[b].to_f32();
        for (sum, input) in sums.iter_mut().zip(inputs) {
            let values = &input.values[b * BLOCK..(b + 1) * BLOCK];
            let dot: i32 = weights
                .iter()
                .zip(values)
                .map(|(w, &x)| w * i32::from(x))
                .sum();
            *sum += dot as f32 * (d * input.scales[b]);
            if Q4 {
                *sum += row.mins[b].to_f32() * input.sums[b];
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests;
