//! Products in bf16 with sums in f32: `x Wᵀ` and `g W` of f32 rows, which are rounded to bf16 on
//! the way, and a weight that stays as it is stored.
//!
//! Both factors are brought into tiles of 1 KB, the layout of AMX: 16 rows of 32 numbers for the
//! left factor, 16 pairs of numbers for 16 columns for the right one. The left factor is packed
//! once; the right one 32 columns at a time by the thread that multiplies them, so that a weight
//! is never twice in memory. Packing costs about what reading the weight costs.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
#[cfg(test)]
mod tests;

use half::bf16;

use super::pieces::Scattered;
#[cfg(target_arch = "x86_64")]
use super::processor::{KernelPath, path};
use super::team::{share_chunks, share_with};

/// Rows of a tile, and its columns of the right factor.
const SIDE: usize = 16;
/// Numbers of a tile along the sum.
const DEPTH: usize = 32;
/// Rows and columns that are multiplied at once: two tiles each.
const BLOCK: usize = 2 * SIDE;

/// 16 rows of 32 numbers, or 16 pairs of numbers for 16 columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([bf16; SIDE * DEPTH]);

impl Tile {
    const ZERO: Self = Self([bf16::ZERO; SIDE * DEPTH]);
}

/// Sums of a block, row by row.
#[repr(C, align(64))]
struct Sums([f32; BLOCK * BLOCK]);

impl Sums {
    const ZERO: Self = Self([0.0; BLOCK * BLOCK]);
}

/// What multiplies tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// AMX: a tile by a tile in one instruction.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AVX-512 with products of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Any machine; for tests alone, as f32 is faster there.
    #[cfg(test)]
    Portable,
}

impl Unit {
    /// The unit of this machine's path; `None` where f32 is faster.
    pub(super) fn found() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        match path() {
            KernelPath::Amx => return Some(Self::Amx),
            KernelPath::Bf16 => return Some(Self::Avx512),
            _ => {}
        }
        None
    }

    /// `sums = Σ left · right` of two rows and two columns of tiles, all equally long.
    fn block(self, left: [&[Tile]; 2], right: [&[Tile]; 2], sums: &mut Sums) {
        let depth = left[0].len();
        assert!(
            [left[1], right[0], right[1]]
                .iter()
                .all(|t| t.len() == depth)
        );
        match self {
            // SAFETY: `found` gives this only where the system grants AMX; the tiles are as many,
            // and `multiply` has configured the thread.
            #[cfg(target_arch = "x86_64")]
            Self::Amx => unsafe { amx::block(left, right, sums) },
            // SAFETY: `found` gives this only where the machine has the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::block(left, right, sums) },
            #[cfg(test)]
            Self::Portable => portable(left, right, sums),
        }
    }

    /// Work with [`Self::block`] in it.
    fn with<R>(self, work: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Amx {
            // SAFETY: `found` gives this only where the system grants AMX.
            let _tiles = unsafe { amx::Configured::new() };
            return work();
        }
        work()
    }
}

/// The left factor in tiles: all of a row of tiles, then the next row.
struct Left {
    tiles: Vec<Tile>,
    /// Tiles of a row.
    depth: usize,
}

impl Left {
    /// Packs `[rows, depth]`, rounded to bf16; an even number of rows of tiles.
    fn new(values: &[f32], rows: usize, depth: usize) -> Self {
        let tiles_deep = depth.div_ceil(DEPTH);
        let count = rows.div_ceil(BLOCK) * 2 * tiles_deep;
        let mut tiles = vec![Tile::ZERO; count];
        share_chunks(&mut tiles, tiles_deep, |band, tiles| {
            let first = (band * SIDE).min(rows);
            let last = (first + SIDE).min(rows);
            pack::left(&values[first * depth..last * depth], depth, tiles);
        });
        Self {
            tiles,
            depth: tiles_deep,
        }
    }

    fn band(&self, index: usize) -> &[Tile] {
        &self.tiles[index * self.depth..(index + 1) * self.depth]
    }
}

/// `x Wᵀ`, and the bias added. `x [rows, in]`, `weight [out, in]` → `[rows, out]`
pub(super) fn forward(
    unit: Unit,
    [rows, d_in, d_out]: [usize; 3],
    x: &[f32],
    weight: &[bf16],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    assert!(x.len() == rows * d_in && weight.len() == d_out * d_in);
    assert!(bias.is_none_or(|bias| bias.len() == d_out));
    let left = Left::new(x, rows, d_in);
    multiply(unit, &left, [rows, d_out], bias, |first, tiles| {
        let last = (first + SIDE).min(d_out);
        pack::rows(&weight[first * d_in..last * d_in], d_in, tiles);
    })
}

/// `g W`. `g [rows, out]`, `weight [out, in]` → `[rows, in]`
pub(super) fn backward(
    unit: Unit,
    [rows, d_in, d_out]: [usize; 3],
    grad: &[f32],
    weight: &[bf16],
) -> Vec<f32> {
    assert!(grad.len() == rows * d_out && weight.len() == d_out * d_in);
    let left = Left::new(grad, rows, d_out);
    multiply(unit, &left, [rows, d_in], None, |first, tiles| {
        pack::columns(weight, d_in, first, tiles);
    })
}

/// `left · right`, and the bias added; `pack(first column, tiles)` packs 16 columns of the right
/// factor.
fn multiply(
    unit: Unit,
    left: &Left,
    [rows, columns]: [usize; 2],
    bias: Option<&[f32]>,
    pack: impl Fn(usize, &mut [Tile]) + Sync,
) -> Vec<f32> {
    let mut all = Vec::with_capacity(rows * columns);
    let out = Scattered::new(&mut all.spare_capacity_mut()[..rows * columns]);
    let depth = left.depth;
    let work = |tiles: &mut Vec<Tile>, block: usize| {
        let first = block * BLOCK;
        tiles.clear();
        tiles.resize(2 * depth, Tile::ZERO);
        let (one, two) = tiles.split_at_mut(depth);
        pack(first, one);
        if first + SIDE < columns {
            pack(first + SIDE, two);
        }
        let width = BLOCK.min(columns - first);
        let bias = bias.map(|bias| &bias[first..first + width]);
        let mut sums = Sums::ZERO;
        unit.with(|| {
            for band in 0..rows.div_ceil(BLOCK) {
                let left = [left.band(2 * band), left.band(2 * band + 1)];
                unit.block(left, [one, two], &mut sums);
                let there = BLOCK.min(rows - band * BLOCK);
                for (row, sums) in sums.0.chunks_exact_mut(BLOCK).take(there).enumerate() {
                    for (sum, bias) in sums.iter_mut().zip(bias.unwrap_or_default()) {
                        *sum += bias;
                    }
                    let at = (band * BLOCK + row) * columns + first;
                    // SAFETY: these columns are this call's alone.
                    unsafe { out.write(at, &sums[..width]) };
                }
            }
        });
    };
    share_with(columns.div_ceil(BLOCK), Vec::new, work);
    // SAFETY: the blocks are all columns, and each wrote every row.
    unsafe { all.set_len(rows * columns) };
    all
}

/// What the units compute, for their tests.
#[cfg(any(test, target_arch = "x86_64"))]
fn portable(left: [&[Tile]; 2], right: [&[Tile]; 2], sums: &mut Sums) {
    for (row, sums) in sums.0.chunks_exact_mut(BLOCK).enumerate() {
        for (column, sum) in sums.iter_mut().enumerate() {
            let tiles = left[row / SIDE].iter().zip(right[column / SIDE]);
            *sum = 0.0;
            for (left, right) in tiles {
                for pair in 0..DEPTH / 2 {
                    for i in 0..2 {
                        let a = left.0[row % SIDE * DEPTH + 2 * pair + i];
                        let b = right.0[pair * 2 * SIDE + 2 * (column % SIDE) + i];
                        *sum += a.to_f32() * b.to_f32();
                    }
                }
            }
        }
    }
}
