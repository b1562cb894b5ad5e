//! Cutting work into pieces of a fixed size for threads (`team.rs`).
//!
//! Results are new memory that nothing has been written to: each piece is set to zero by the thread
//! that fills it, while it is in its cache, or written whole.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::team::{share_chunks, share_each};
use super::view::{contiguous, elements, filled, is_free};

/// Elements of a piece: large against the cost of handing it to a thread, small against a cache.
const PIECE: usize = 16 * 1024;

/// Rows of width `width` that make a piece.
fn rows_of(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// `len` elements in rows of `width`, a multiple of which `len` is, that `f(first row, rows)`
/// writes over zeros.
pub(super) fn rows(len: usize, width: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let rows = rows_of(width);
    let mut all = Vec::with_capacity(len);
    let out = &mut all.spare_capacity_mut()[..len];
    share_chunks(out, rows * width, |piece, out| f(piece * rows, zeros(out)));
    // SAFETY: the pieces are all of it, and each was set to zero.
    unsafe { all.set_len(len) };
    all
}

/// A tensor `[.., width]` with what `f(first row, rows)` makes of its elements: in place where they
/// may be written over, else in a copy.
pub(super) fn over(
    tensor: FlexTensor,
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) -> FlexTensor {
    let mut tensor = owned(tensor);
    let out = tensor.storage_mut::<f32>();
    let rows = rows_of(width);
    share_chunks(out, rows * width, |piece, out| f(piece * rows, out));
    tensor
}

/// As [`over`], with two tensors of the same shape.
pub(super) fn over2(
    [a, b]: [FlexTensor; 2],
    width: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> [FlexTensor; 2] {
    let rows = rows_of(width);
    let (mut a, mut b) = (owned(a), owned(b));
    let size = (rows * width).max(1);
    let pieces = a.storage_mut::<f32>().chunks_mut(size);
    let pieces = pieces.zip(b.storage_mut::<f32>().chunks_mut(size));
    let mut pieces: Vec<_> = pieces.enumerate().collect();
    share_each(&mut pieces, |(piece, (a, b))| f(*piece * rows, a, b));
    [a, b]
}

/// What `f(first row, rows)` adds to the elements of a tensor of this shape, or to zeros.
pub(super) fn onto(
    known: Option<FlexTensor>,
    shape: &Shape,
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) -> FlexTensor {
    match known {
        Some(known) => over(known, width, f),
        None => filled(rows(shape.num_elements(), width, f), shape.clone()),
    }
}

/// The tensor if it may be written over, else a copy.
fn owned(tensor: FlexTensor) -> FlexTensor {
    if is_free(&tensor) {
        return tensor;
    }
    let tensor = contiguous(tensor);
    let from = elements(&tensor);
    let copy = rows(from.len(), 1, |at, out| {
        out.copy_from_slice(&from[at..at + out.len()]);
    });
    filled(copy, tensor.layout().shape().clone())
}

fn zeros(out: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    out.fill(MaybeUninit::new(0.0));
    // SAFETY: all of it was written just now.
    unsafe { &mut *(out as *mut [MaybeUninit<f32>] as *mut [f32]) }
}

/// New memory that several threads write, each elements of its own.
pub(super) struct Scattered<'a> {
    start: *mut f32,
    len: usize,
    all: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: who writes promises that nobody else writes the same elements.
unsafe impl Sync for Scattered<'_> {}

impl<'a> Scattered<'a> {
    pub(super) fn new(all: &'a mut [MaybeUninit<f32>]) -> Self {
        Self {
            start: all.as_mut_ptr().cast(),
            len: all.len(),
            all: PhantomData,
        }
    }

    /// Writes elements from `at` on.
    ///
    /// # Safety
    /// No other thread writes them at the same time.
    pub(super) unsafe fn write(&self, at: usize, from: &[f32]) {
        assert!(at <= self.len && from.len() <= self.len - at);
        // SAFETY: the elements lie inside, and the caller's promise.
        unsafe {
            self.start
                .add(at)
                .copy_from_nonoverlapping(from.as_ptr(), from.len())
        };
    }
}

/// Sum over pieces of `total` rows of what `f(first row, end row, sums)` adds to `size` sums.
pub(super) fn sums(
    total: usize,
    width: usize,
    size: usize,
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let rows = rows_of(width);
    let mut parts = vec![0.0; total.div_ceil(rows) * size];
    share_chunks(&mut parts, size, |piece, part| {
        f(piece * rows, ((piece + 1) * rows).min(total), part);
    });
    let mut all = vec![0.0; size];
    for part in parts.chunks_exact(size.max(1)) {
        for (sum, value) in all.iter_mut().zip(part) {
            *sum += value;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_written_once_where_it_belongs() {
        for (count, width) in [(0, 3), (1, 3), (7, 5), (9000, 7), (40_000, 1)] {
            let number = |row: usize, column: usize| (row * width + column) as f32;
            let fill = |first: usize, out: &mut [f32]| {
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    for (column, out) in out.iter_mut().enumerate() {
                        *out += number(first + row, column);
                    }
                }
            };
            let expected: Vec<f32> = (0..count * width).map(|i| i as f32).collect();
            assert_eq!(rows(count * width, width, fill), expected);
            let zeros = || filled(vec![0.0; count * width], Shape::from(vec![count, width]));
            let [a, b] = over2([zeros(), zeros()], width, |first, a, b| {
                fill(first, a);
                fill(first, b);
            });
            let (a, b) = (elements(&a).to_vec(), elements(&b).to_vec());
            assert_eq!((&a, &b), (&expected, &expected));
        }
    }
}
