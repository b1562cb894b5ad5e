//! Which elements of an adapter's input are dropped, as a pure function of where they stand.

use rayon::prelude::*;

/// All values stay below 2³¹, so that products give the same low bits in 32-bit and in 64-bit
/// integers, and shifts the same bits in signed and in unsigned ones.
pub(crate) const BITS: u32 = 0x7FFF_FFFF;
/// Odd multipliers of the mixer.
pub(crate) const MIX: [u32; 2] = [0x045D_9F3B, 0x2C1B_3C6D];
/// Its shifts: before each multiplier, and at the end.
pub(crate) const SHIFT: [u32; 3] = [16, 15, 15];
/// Below this number of elements one thread is faster.
const PARALLEL: usize = 1 << 16;

/// What elements `[rows, columns]` are multiplied with: 0 where one is dropped, else `scale`.
#[derive(Debug, Clone)]
pub(crate) struct Mask {
    /// A key for each row.
    pub(crate) rows: Vec<u32>,
    /// A key for each column.
    pub(crate) columns: Vec<u32>,
    /// Elements whose hash is below are dropped.
    pub(crate) threshold: u32,
    /// Factor of the others.
    pub(crate) scale: f32,
}

impl Mask {
    /// All of it, row by row.
    pub(crate) fn values(&self) -> Vec<f32> {
        let width = self.columns.len();
        let mut values = vec![0.0; self.rows.len() * width];
        let fill = |(row, &key): (&mut [f32], &u32)| {
            for (value, &column) in row.iter_mut().zip(&self.columns) {
                *value = self.factor(key, column);
            }
        };
        if values.len() < PARALLEL {
            values.chunks_mut(width).zip(&self.rows).for_each(fill);
        } else {
            let rows = values.par_chunks_mut(width).zip(&self.rows);
            rows.with_min_len(PARALLEL.div_ceil(width) / 4)
                .for_each(fill);
        }
        values
    }

    /// Of the element whose row and column have these keys.
    #[inline(always)]
    pub(crate) fn factor(&self, row: u32, column: u32) -> f32 {
        match mix(row ^ column) >= self.threshold {
            true => self.scale,
            false => 0.0,
        }
    }
}

/// A hash of 31 bits, after the integer mixers of H. Wellons' prospector.
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    for (multiplier, bits) in MIX.into_iter().zip(SHIFT) {
        x ^= x >> bits;
        x = x.wrapping_mul(multiplier) & BITS;
    }
    x ^ (x >> SHIFT[2])
}
