//! Products of f32 matrices through the crate that flex multiplies with, reading transposed and
//! strided operands where they lie and adding to what is there.

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

/// Multiplications from which on the pool is worth waking.
const POOLED: usize = 1 << 21;

impl<'a> Matrix<'a> {
    /// Rows of contiguous elements, `row` apart.
    pub(super) fn rows(data: &'a [f32], row: usize) -> Self {
        Self {
            data,
            row,
            column: 1,
        }
    }

    /// The transposed matrix.
    pub(super) fn transposed(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
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
    // SAFETY: all elements that the sizes and strides reach lie inside the slice.
    unsafe { product_at(sizes, factor, a, b, out.as_mut_ptr(), out_row, add, threads) };
}

/// `factor · a b` in new memory, for `a [m, k]` and `b [k, n]`.
pub(super) fn new_product(
    sizes @ [m, n, k]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    threads: Threads,
) -> Vec<f32> {
    if k == 0 {
        return vec![0.0; m * n];
    }
    let mut out = Vec::with_capacity(m * n);
    // SAFETY: there is room for all elements, and a product that does not add writes them all.
    unsafe {
        product_at(sizes, factor, a, b, out.as_mut_ptr(), n, false, threads);
        out.set_len(m * n);
    }
    out
}

/// As [`product`].
///
/// # Safety
/// Elements of `m` rows of `n`, `out_row` apart, can be written at `out`, and read with `add`.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn product_at(
    [m, n, k]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: *mut f32,
    out_row: usize,
    add: bool,
    threads: Threads,
) {
    assert!(a.holds(m, k) && b.holds(k, n));
    let pooled = threads == Threads::Pool && m.saturating_mul(n).saturating_mul(k) >= POOLED;
    let parallelism = match pooled {
        true => gemm::Parallelism::Rayon(0),
        false => gemm::Parallelism::None,
    };
    // SAFETY: the caller's promise for `out`; all elements of `a` and `b` that these sizes and
    // strides reach lie inside the slices, checked above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_row as isize,
            add,
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
            parallelism,
        );
    }
}
