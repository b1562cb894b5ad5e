//! Products of f32 matrices, reading transposed and strided operands where they lie and adding to
//! what is there.
//!
//! With AVX-512 they are this folder's own in the shapes in which those were measured to be faster;
//! elsewhere those of the crate that flex multiplies with, in pieces. Either way a sum is the same
//! whichever number of threads computed it.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

use super::team::{Start, share};

/// A matrix that is read: its elements, and the distances between two rows and two columns.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

/// Who computes a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The calling thread: the caller runs several products at once.
    One,
    /// The pool, if the product is large enough for that.
    Pool,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Onto<'a> {
    /// Nothing: what stands there is overwritten.
    Nothing,
    /// What stands there.
    Out,
    /// The same row `[n]` for all rows.
    Row(&'a [f32]),
}

/// Columns that a thread takes at once from the crate.
const WIDE: usize = 128;
/// Columns that are few.
const NARROW: usize = 32;
/// Pieces that there should be.
const PIECES: usize = 4;

/// Multiplications from which on it is worth sharing.
const POOLED: usize = 1 << 21;

impl<'a> Matrix<'a> {
    /// Rows of contiguous elements, `row` apart.
    pub(super) fn rows(data: &'a [f32], row: usize) -> Self {
        Self::strided(data, row, 1)
    }

    /// Elements so far apart from row to row and from column to column.
    pub(super) fn strided(data: &'a [f32], row: usize, column: usize) -> Self {
        Self { data, row, column }
    }

    /// The transposed matrix.
    pub(super) fn transposed(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    /// The matrix from a row and a column of it on.
    fn from(self, row: usize, column: usize) -> Self {
        let data = &self.data[row * self.row + column * self.column..];
        Self { data, ..self }
    }

    /// Whether columns stand in one piece, and not rows.
    fn is_turned(&self) -> bool {
        self.row == 1 && self.column != 1
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// Whether a product is large enough for several threads.
pub(super) fn is_shared([m, n, k]: [usize; 3]) -> bool {
    m.saturating_mul(n).saturating_mul(k) >= POOLED
}

/// `out = factor · a b`, or `out += factor · a b` with `add`, for `a [m, k]`, `b [k, n]` and `out`
/// with rows `out_row` apart.
#[allow(clippy::too_many_arguments)]
pub(super) fn product(
    sizes @ [m, n, _]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    out_row: usize,
    add: bool,
    threads: Threads,
) {
    assert!(Matrix::rows(out, out_row).holds(m, n));
    let onto = if add { Onto::Out } else { Onto::Nothing };
    // SAFETY: all elements that the sizes and strides reach lie inside the slice.
    unsafe {
        product_at(
            sizes,
            factor,
            a,
            b,
            out.as_mut_ptr(),
            out_row,
            onto,
            threads,
        )
    };
}

/// `factor · a b` in new memory, for `a [m, k]` and `b [k, n]`.
pub(super) fn new_product(
    sizes @ [m, n, _]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    threads: Threads,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * n);
    // SAFETY: there is room for all elements, and a product that does not add writes them all.
    unsafe {
        let at = out.as_mut_ptr();
        product_at(sizes, factor, a, b, at, n, Onto::Nothing, threads);
        out.set_len(m * n);
    }
    out
}

/// As [`product`], onto `onto`.
///
/// # Safety
/// Elements of `m` rows of `n`, `out_row` apart, can be written at `out`, and read with
/// [`Onto::Out`].
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn product_at(
    sizes @ [m, n, k]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: *mut f32,
    out_row: usize,
    onto: Onto<'_>,
    threads: Threads,
) {
    assert!(a.holds(m, k) && b.holds(k, n));
    if let Onto::Row(row) = onto {
        assert!(row.len() >= n);
    }
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        // SAFETY: the caller's promise.
        unsafe { start(m, n, out, out_row, onto) };
        return;
    }
    let pooled = threads == Threads::Pool && is_shared(sizes);
    #[cfg(target_arch = "x86_64")]
    if avx512::is_faster(sizes, &b, pooled) {
        let threads = if pooled {
            rayon::current_num_threads()
        } else {
            1
        };
        // SAFETY: the caller's promise; the sizes lie inside both matrices, checked above; the
        // machine has AVX-512, or it would not be said to be faster.
        unsafe { own(sizes, factor, a, b, out, out_row, onto, threads) };
        return;
    }
    // SAFETY: the caller's promise; the sizes lie inside both matrices, checked above.
    unsafe { general(sizes, factor, a, b, out, out_row, onto, pooled) };
}

/// Writes what a product is added to.
///
/// # Safety
/// As [`product_at`].
unsafe fn start(m: usize, n: usize, out: *mut f32, out_row: usize, onto: Onto<'_>) {
    for row in 0..m {
        // SAFETY: the caller's promise.
        unsafe {
            let out = out.add(row * out_row);
            match onto {
                Onto::Nothing => out.write_bytes(0, n),
                Onto::Out => {}
                Onto::Row(values) => out.copy_from_nonoverlapping(values.as_ptr(), n),
            }
        }
    }
}

/// In AVX-512.
///
/// # Safety
/// As [`product_at`]; all elements that these sizes reach lie inside the slices, none of the sizes
/// is 0, and the machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::too_many_arguments)]
unsafe fn own(
    sizes: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: *mut f32,
    out_row: usize,
    onto: Onto<'_>,
    threads: usize,
) {
    let job = avx512::Job {
        sizes,
        a: avx512::Strip::new(a.data, a.row, a.column),
        b: avx512::Strip::new(b.data, b.column, b.row),
        out: avx512::Out {
            at: out,
            row: out_row,
        },
        factor,
        onto,
    };
    // SAFETY: the caller's promise.
    unsafe { avx512::run(&job, threads) };
}

/// Rows and columns of the pieces of a product. They depend on its sizes alone, and so do sums.
fn piece(sizes @ [m, n, _]: [usize; 3], b: &Matrix<'_>) -> [usize; 2] {
    if !is_shared(sizes) {
        return [m, n];
    }
    // Most and fewest rows: the crate brings a transposed B into order again for each piece, any other
    // it reads as it lies.
    let (most, least) = match b.is_turned() && n > NARROW {
        true => (768, 128),
        false => (512, 32),
    };
    let wanted = PIECES.div_ceil(n.div_ceil(WIDE));
    let down = wanted.min(m.div_ceil(least)).max(m.div_ceil(most));
    [m.div_ceil(down), WIDE]
}

/// Through the crate `gemm`, in pieces for threads that are awake: its own would have to be woken for
/// each product.
///
/// # Safety
/// As [`product_at`]; all elements that these sizes reach lie inside the slices.
#[allow(clippy::too_many_arguments)]
unsafe fn general(
    [m, n, k]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: *mut f32,
    out_row: usize,
    onto: Onto<'_>,
    pooled: bool,
) {
    let [high, wide] = piece([m, n, k], &b);
    let across = n.div_ceil(wide);
    let pieces = m.div_ceil(high) * across;
    let out = Start(out);
    let compute = |piece| {
        let (row, column) = (piece / across * high, piece % across * wide);
        let sizes = [high.min(m - row), wide.min(n - column), k];
        let onto = match onto {
            Onto::Row(values) => Onto::Row(&values[column..]),
            other => other,
        };
        // SAFETY: the caller's promise; each piece is a part of the result for itself.
        unsafe {
            let out = out.get().add(row * out_row + column);
            piece_of(
                sizes,
                factor,
                a.from(row, 0),
                b.from(0, column),
                out,
                out_row,
                onto,
            );
        }
    };
    match pooled {
        true => share(pieces, &compute),
        false => (0..pieces).for_each(compute),
    }
}

/// By the calling thread.
///
/// # Safety
/// As [`general`].
unsafe fn piece_of(
    [m, n, k]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: *mut f32,
    out_row: usize,
    onto: Onto<'_>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Onto::Row(_) = onto {
            start(m, n, out, out_row, onto);
        }
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_row as isize,
            !matches!(onto, Onto::Nothing),
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
