//! Products of many rows. Where a device has matrix units the backend's own use them. Elsewhere (older
//! cards, drivers that compute on the CPU) those are compiled in a dozen forms for each shape before
//! one is chosen: here one kernel serves all shapes and layouts, with sums in f32.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, cubes, empty, line};
use super::{Device, Kernel, Launch, Plain, fixed, float, run, tensor};

/// Units in one direction of a cube.
const SIDE: usize = 16;

/// Rows, and columns, of the result that a unit makes.
const EACH: usize = 4;

/// Rows, and columns, of the result that a cube makes.
const TILE: usize = SIDE * EACH;

/// Columns of the first matrix that are held at a time.
const DEEP: usize = 16;

/// Distance of two columns of what is held; one more than a tile, so that neighbours in either
/// direction lie in different banks.
const APART: usize = TILE + 1;

/// `a b` of every two matrices, in the graph one node; `Err` gives both back where no GPU's backend
/// has them. `[.., m, k]`, `[.., k, n]` → `[.., m, n]`
pub(crate) fn matmul<B: Backend, const N: usize>(
    a: Tensor<B, N>,
    b: Tensor<B, N>,
) -> Result<Tensor<B, N>, [Tensor<B, N>; 2]> {
    let made = run::<B, _, 2>(Product, [a, b].map(float));
    made.map(tensor).map_err(|inputs| inputs.map(tensor))
}

/// [`matmul`] of tensors that no graph tracks.
pub(super) fn product<D: Device, const N: usize>(a: Tensor<D, N>, b: Tensor<D, N>) -> Tensor<D, N> {
    tensor(Product.forward::<D>([a, b].map(float)))
}

/// `a b` by this kernel or the backend's, whichever suits the device.
#[derive(Debug, Clone)]
struct Product;

impl Kernel<2> for Product {
    fn accepts(&self, inputs: &[Plain; 2]) -> bool {
        Matmul.accepts(inputs)
    }

    fn forward<D: Device>(&self, [a, b]: [FloatTensor<D>; 2]) -> FloatTensor<D> {
        match D::has_matrix_units(&D::float_device(&a)) {
            true => apart::<D>(D::float_matmul(a, b)),
            false => D::launch_one(&Matmul, vec![a, b]),
        }
    }

    fn forward_saving<D: Device>(
        &self,
        [a, b]: [FloatTensor<D>; 2],
        wanted: [bool; 2],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        // Each takes part in the other's gradient.
        let held = [(wanted[0], &b), (wanted[1], &a)].into_iter();
        let saved = held.filter(|(held, _)| *held).map(|(_, of)| of.clone());
        let saved = saved.collect();
        (self.forward::<D>([a, b]), saved)
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<D>>; 2] {
        let mut saved = saved.into_iter().map(transposed::<D>);
        let b = wanted[0].then(|| saved.next()).flatten();
        let a = wanted[1].then(|| saved.next()).flatten();
        let of_a = b.map(|b| self.forward::<D>([grad.clone(), b]));
        let of_b = a.map(|a| self.forward::<D>([a, grad]));
        [of_a, of_b]
    }
}

/// Keeps what follows a product out of the product's kernel.
///
/// burn-fusion 0.21 puts a product and the element-wise operations behind it (a cast, an adapter's
/// scale, a bias) into one kernel, of which autotune takes the fastest of several. Two of them
/// compute something else: for a single row one that reads a transposed weight as if it lay the
/// other way (`FusedMatmulSelector::GemvUnitPerpendicular` of burn-cubecl-fusion; the product alone
/// is checked for that), and in f16 the one with two buffers (`DoubleUnit`: with it a model on
/// Mesa's software driver answers otherwise although the logit of the right token is 4 % ahead). A
/// reshape to fewer dimensions is not fused, and moves nothing.
fn apart<D: Device>(product: FloatTensor<D>) -> FloatTensor<D> {
    let shape = Plain::of(&product).shape;
    let flat = D::float_reshape(product, [shape.num_elements()].into());
    D::float_reshape(flat, shape)
}

fn transposed<D: Device>(of: FloatTensor<D>) -> FloatTensor<D> {
    let dims = Plain::of(&of).shape.num_dims();
    D::float_swap_dims(of, dims - 2, dims - 1)
}

/// Sizes, or strides, of a tensor's last four dimensions.
fn last_four(of: &[usize], missing: usize) -> [usize; 4] {
    let mut all = [missing; 4];
    all[4 - of.len()..].copy_from_slice(of);
    all
}

/// Which of the inputs' neighbours in memory are neighbours along the columns of `a` and the rows of
/// `b`; else they are along the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    a_deep: bool,
    b_deep: bool,
}

/// The product of every two matrices. `[.., m, k]`, `[.., k, n]` → `[.., m, n]`
#[derive(Debug, Clone)]
pub(super) struct Matmul;

impl Launch for Matmul {
    const NAME: &'static str = "matmul";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let [a, b] = inputs else {
            return false;
        };
        let dims = a.shape.num_dims();
        if !(2..=4).contains(&dims) || b.shape.num_dims() != dims {
            return false;
        }
        let [a_0, a_1, _, deep] = last_four(&a.shape, 1);
        let [b_0, b_1, rows, _] = last_four(&b.shape, 1);
        let fits = [a_0, a_1, deep] == [b_0, b_1, rows] && a.dtype == b.dtype;
        let some = a.shape.num_elements() > 0 && b.shape.num_elements() > 0;
        fits && some && a.is_float()
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        let mut made = inputs[0].clone();
        let last = made.shape.num_dims() - 1;
        made.shape[last] = inputs[1].width();
        vec![made]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [a, b] = fixed(inputs);
        let plain = [Plain::of(&a), Plain::of(&b)];
        let output = empty(&a, self.outputs(&plain).swap_remove(0));
        let [outer, inner, m, k] = last_four(&plain[0].shape, 1);
        let n = plain[1].width();
        let across = n.div_ceil(TILE);
        let tiles = m.div_ceil(TILE) * across;
        let [of_a, of_b] = [&a, &b].map(|of| last_four(of.meta.strides(), 0));
        let form = Form {
            a_deep: of_a[3] <= of_a[2],
            b_deep: of_b[2] <= of_b[3],
        };
        let dtype = StorageType::from(a.dtype);
        // SAFETY: what lies outside of the matrices is neither read nor written.
        unsafe {
            tiled::launch_unchecked::<R>(
                &output.client.clone(),
                cubes(outer * inner * tiles),
                line(),
                a.into_array_arg(),
                b.into_array_arg(),
                output.clone().into_array_arg(),
                outer * inner,
                inner,
                tiles,
                across,
                m,
                n,
                k,
                of_a[0],
                of_a[1],
                of_a[2],
                of_a[3],
                of_b[0],
                of_b[1],
                of_b[2],
                of_b[3],
                form,
                dtype,
            );
        }
        vec![output]
    }
}

/// A cube makes a tile of the result, a unit every sixteenth of its rows and columns.
#[cube(launch_unchecked)]
fn tiled<F: Float>(
    a: &Array<F>,
    b: &Array<F>,
    output: &mut Array<F>,
    batch: usize,
    inner: usize,
    tiles: usize,
    across: usize,
    m: usize,
    n: usize,
    k: usize,
    a_outer: usize,
    a_inner: usize,
    a_row: usize,
    a_column: usize,
    b_outer: usize,
    b_inner: usize,
    b_row: usize,
    b_column: usize,
    #[comptime] form: Form,
    #[define(F)] _dtype: StorageType,
) {
    let sample = CUBE_POS / tiles;
    let tile = CUBE_POS % tiles;
    let row = tile / across * TILE;
    let column = tile % across * TILE;
    let unit = UNIT_POS as usize;
    let (down, right) = (unit / SIDE, unit % SIDE);
    let mut rows = SharedMemory::<f32>::new(comptime!(DEEP * APART));
    let mut columns = SharedMemory::<f32>::new(comptime!(DEEP * APART));
    if sample < batch {
        let a_start = sample / inner * a_outer + sample % inner * a_inner;
        let b_start = sample / inner * b_outer + sample % inner * b_inner;
        let mut sums = Array::<f32>::new(comptime!(EACH * EACH));
        #[unroll]
        for i in 0..comptime!(EACH * EACH) {
            sums[i] = 0.0f32;
        }
        let mut start = 0usize.runtime();
        while start < k {
            // Others may still read what was held before.
            sync_cube();
            hold(
                a,
                &mut rows,
                a_start,
                row,
                m,
                start,
                k,
                a_row,
                a_column,
                form.a_deep,
            );
            hold(
                b,
                &mut columns,
                b_start,
                column,
                n,
                start,
                k,
                b_column,
                b_row,
                form.b_deep,
            );
            sync_cube();
            for deep in 0..comptime!(DEEP) {
                let mut factors = Array::<f32>::new(EACH);
                #[unroll]
                for j in 0..comptime!(EACH) {
                    factors[j] = columns[deep * APART + right + j * SIDE];
                }
                #[unroll]
                for i in 0..comptime!(EACH) {
                    let value = rows[deep * APART + down + i * SIDE];
                    #[unroll]
                    for j in 0..comptime!(EACH) {
                        sums[i * EACH + j] = fma(value, factors[j], sums[i * EACH + j]);
                    }
                }
            }
            start += DEEP;
        }
        #[unroll]
        for i in 0..comptime!(EACH) {
            let to_row = row + down + i * SIDE;
            #[unroll]
            for j in 0..comptime!(EACH) {
                let to_column = column + right + j * SIDE;
                if to_row < m && to_column < n {
                    let at = (sample * m + to_row) * n + to_column;
                    output[at] = F::cast_from(sums[i * EACH + j]);
                }
            }
        }
    }
}

/// Holds [`DEEP`] values of each of a tile's rows, zeros where there are none. `deep` says that
/// values of a row are neighbours.
#[cube]
fn hold<F: Float>(
    from: &Array<F>,
    held: &mut SharedMemory<f32>,
    start: usize,
    first_row: usize,
    rows: usize,
    first_deep: usize,
    end: usize,
    row_stride: usize,
    deep_stride: usize,
    #[comptime] deep: bool,
) {
    let unit = UNIT_POS as usize;
    #[unroll]
    for part in 0..comptime!(TILE * DEEP / UNITS as usize) {
        let place = part * comptime!(UNITS as usize) + unit;
        let (row, column) = if comptime!(deep) {
            (place / DEEP, place % DEEP)
        } else {
            (place % TILE, place / TILE)
        };
        let mut value = 0.0f32;
        if first_row + row < rows && first_deep + column < end {
            let at = (first_row + row) * row_stride + (first_deep + column) * deep_stride;
            value = f32::cast_from(from[start + at]);
        }
        held[column * APART + row] = value;
    }
}
