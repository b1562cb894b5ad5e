//! Products of a few rows with weights of floats or of packed integers, as in decoding: each weight
//! is read once, integers become floats in registers, sums are f32.
//!
//! A line of units, one plane where the device has planes of one size, makes one column of the
//! result for all rows.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::features::Plane;
use cubecl::prelude::*;
use cubecl::quant::scheme::{QuantScheme, QuantStore, QuantValue};

use super::activation::value;
use super::device::{UNITS, cubes, empty};
use super::{Launch, Plain};
use crate::kernels::activation::Activation;

/// Rows that are multiplied at once; more are a matter for matrix units.
pub(crate) const MAX_ROWS: usize = 8;

/// Weights that one launch multiplies with.
pub(crate) const MAX_WEIGHTS: usize = 3;

/// Rows times weights of one launch: each has sums of its own in the kernel's text, and Mesa's
/// software driver runs none that has 24, without saying so.
const MAX_SUMS: usize = 16;

/// Values that share a scale.
const BLOCK: usize = crate::kernels::blocks::BLOCK;

/// `x Wᵀ` of `x [rows, in]` and up to three weights `[out, in]`, floats or packed integers, each
/// `[rows, out]` in the dtype of `x`; with what comes before and behind. Inputs in this order: `x`,
/// the weights, then what the fields name.
#[derive(Debug, Clone)]
pub(crate) struct RowProduct {
    /// Number of weights.
    pub weights: usize,
    /// The rows are normalised first; the norm's weight `[in]` is an input.
    pub norm: Option<Normed>,
    /// A bias `[out]` of the only weight is an input.
    pub bias: bool,
    /// `[rows, out]` that is added to the only result is an input.
    pub residual: bool,
    /// Two weights make one result, `f(x Aᵀ) · x Bᵀ`.
    pub gate: Option<Activation>,
}

/// RMSNorm in front of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Normed {
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the factor is one more than the norm's weight.
    pub offset: bool,
}

impl RowProduct {
    /// One weight and nothing else.
    pub fn plain() -> Self {
        Self {
            weights: 1,
            norm: None,
            bias: false,
            residual: false,
            gate: None,
        }
    }
}

/// Bits of an integer where the first stands in the lowest bits of a `u32`.
fn bits_of(scheme: &QuantScheme) -> Option<u32> {
    let packed = matches!(scheme.store, QuantStore::PackedU32(0));
    match scheme.value {
        QuantValue::Q8S if packed => Some(8),
        QuantValue::Q4S if packed => Some(4),
        _ => None,
    }
}

/// What the kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    rows: u32,
    weights: u32,
    /// Units that share a column.
    lanes: u32,
    /// Whether they are a plane.
    planes: bool,
    normed: bool,
    offset: bool,
    bias: bool,
    residual: bool,
    gate: Option<Activation>,
    /// 0 for floats.
    bits: u32,
}

impl Launch for RowProduct {
    const NAME: &'static str = "row_product";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let named = [self.norm.is_some(), self.bias, self.residual].map(usize::from);
        if inputs.len() != 1 + self.weights + named.iter().sum::<usize>() {
            return false;
        }
        let (x, weights) = (&inputs[0], &inputs[1..=self.weights]);
        let (packed, whole) = match &weights[0].dtype {
            DType::QFloat(scheme) => (bits_of(scheme).is_some(), BLOCK),
            _ => (weights[0].is_float(), 1),
        };
        let fits = |weight: &Plain| {
            weight.dtype == weights[0].dtype && weight.width() == x.width() && weight.rows() > 0
        };
        let beside = inputs[1 + self.weights..].iter().all(Plain::is_float);
        let rows = (1..=MAX_ROWS).contains(&x.rows()) && x.rows() * self.weights <= MAX_SUMS;
        let columns = x.width() > 0 && x.width().is_multiple_of(whole);
        x.is_float() && packed && rows && columns && weights.iter().all(fits) && beside
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        let x = &inputs[0];
        let made = if self.gate.is_some() { 1 } else { self.weights };
        let weights = inputs[1..=made].iter();
        weights
            .map(|weight| Plain::new([x.rows(), weight.rows()], x.dtype))
            .collect()
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let (lanes, planes) = lanes::<R>(&inputs[0]);
        self.launch_with(inputs, lanes, planes)
    }
}

/// Units that share a column, and whether they are a plane.
fn lanes<R: CubeRuntime>(tensor: &CubeTensor<R>) -> (u32, bool) {
    let properties = tensor.client.properties();
    let hardware = &properties.hardware;
    let fixed = hardware.plane_size_min == hardware.plane_size_max;
    match properties.features.plane.contains(Plane::Ops) && fixed && hardware.plane_size_min > 1 {
        true => (hardware.plane_size_min, true),
        false => (32, false),
    }
}

impl RowProduct {
    /// With so many units for a column, a plane or not.
    pub(super) fn launch_with<R: CubeRuntime>(
        &self,
        inputs: Vec<CubeTensor<R>>,
        lanes: u32,
        planes: bool,
    ) -> Vec<CubeTensor<R>> {
        let plain: Vec<Plain> = inputs.iter().map(Plain::of).collect();
        let outputs = self.outputs(&plain).into_iter();
        let outputs: Vec<_> = outputs.map(|made| empty(&inputs[0], made)).collect();
        let x = into_contiguous(inputs[0].clone());
        let (weights, scales, bits) = parts(&inputs[1..=self.weights], &x);
        let vector = vector_size(&weights[0], plain[0].width(), bits);
        let (weights, weight_stride) = rows_apart(weights, vector);
        let (scales, scale_stride) = rows_apart(scales, 1);
        let mut rest = inputs[1 + self.weights..].iter().cloned();
        // What is not there is not read.
        let mut named = |there: bool| {
            let found = there.then(|| rest.next()).flatten();
            found.map_or_else(|| x.clone(), into_contiguous)
        };
        let beside = [self.norm.is_some(), self.bias, self.residual].map(&mut named);
        let [norm, bias, residual] = beside;
        let columns = [0, 1, 2].map(|i| plain[1 + i.min(self.weights - 1)].rows());
        let per_cube = (UNITS / lanes) as usize;
        let mut end = 0;
        let ends = [0, 1, 2].map(|i| {
            if i < outputs.len() {
                end += columns[i].div_ceil(per_cube);
            }
            end
        });
        let weight = |i: usize| weights[i.min(self.weights - 1)].clone().into_array_arg();
        let scale = |i: usize| scales[i.min(self.weights - 1)].clone().into_array_arg();
        let made = |i: usize| outputs[i.min(outputs.len() - 1)].clone().into_array_arg();
        let of = |tensor: &CubeTensor<R>| StorageType::from(tensor.dtype);
        let dtypes = [&x, &weights[0], &scales[0], &norm, &bias, &residual].map(of);
        let client = x.client.clone();
        // SAFETY: columns are clamped to the weights' rows, and units stride below the width.
        unsafe {
            row_product::launch_unchecked::<R>(
                &client,
                cubes(end),
                CubeDim::new_2d(lanes, UNITS / lanes),
                vector,
                x.into_array_arg(),
                weight(0),
                weight(1),
                weight(2),
                scale(0),
                scale(1),
                scale(2),
                norm.into_array_arg(),
                bias.into_array_arg(),
                residual.into_array_arg(),
                made(0),
                made(1),
                made(2),
                plain[0].width(),
                weight_stride / vector,
                scale_stride,
                columns[0],
                columns[1],
                columns[2],
                ends[0],
                ends[1],
                ends[2],
                self.norm.map_or(0.0, |norm| norm.eps) as f32,
                self.form(plain[0].rows() as u32, lanes, planes, bits),
                dtypes,
            );
        }
        outputs
    }

    fn form(&self, rows: u32, lanes: u32, planes: bool, bits: u32) -> Form {
        Form {
            rows,
            weights: self.weights as u32,
            lanes,
            planes,
            normed: self.norm.is_some(),
            offset: self.norm.is_some_and(|norm| norm.offset),
            bias: self.bias,
            residual: self.residual,
            gate: self.gate,
            bits,
        }
    }
}

/// Values, scales and bits of an integer of the weights; of floats, which have none, `x` and 0.
fn parts<R: CubeRuntime>(
    weights: &[CubeTensor<R>],
    x: &CubeTensor<R>,
) -> (Vec<CubeTensor<R>>, Vec<CubeTensor<R>>, u32) {
    let mut bits = 0;
    let parts = weights.iter().map(|weight| {
        if let DType::QFloat(scheme) = &weight.dtype {
            bits = bits_of(scheme).unwrap_or(0);
        }
        let whole = || (weight.clone(), x.clone());
        weight.quantized_handles().unwrap_or_else(whole)
    });
    let (values, scales) = parts.unzip();
    (values, scales, bits)
}

/// Elements that a unit reads at once.
fn vector_size<R: CubeRuntime>(weight: &CubeTensor<R>, width: usize, bits: u32) -> usize {
    if bits > 0 {
        // Four words; a word holds the values of one vector of the input, or of two.
        return 4;
    }
    let mut sizes = weight.client.io_optimized_vector_sizes(weight.dtype.size());
    let size = sizes.find(|&size| width.is_multiple_of(size));
    size.unwrap_or(1)
}

/// Tensors `[rows, width]` whose rows are equally far from each other, and how far.
fn rows_apart<R: CubeRuntime>(
    tensors: Vec<CubeTensor<R>>,
    vector: usize,
) -> (Vec<CubeTensor<R>>, usize) {
    let strides = |tensor: &CubeTensor<R>| match tensor.meta.strides()[..] {
        [row, 1] if row % vector == 0 => Some(row),
        _ => None,
    };
    if let Some(stride) = strides(&tensors[0])
        && tensors.iter().all(|tensor| strides(tensor) == Some(stride))
    {
        return (tensors, stride);
    }
    let width = Plain::of(&tensors[0]).width();
    (tensors.into_iter().map(into_contiguous).collect(), width)
}

#[cube(launch_unchecked)]
fn row_product<X: Float, W: Numeric, S: Float, G: Float, B: Float, T: Float, N: Size>(
    input: &Array<Vector<X, N>>,
    weight_0: &Array<Vector<W, N>>,
    weight_1: &Array<Vector<W, N>>,
    weight_2: &Array<Vector<W, N>>,
    scales_0: &Array<S>,
    scales_1: &Array<S>,
    scales_2: &Array<S>,
    norm: &Array<Vector<G, N>>,
    bias: &Array<B>,
    residual: &Array<T>,
    output_0: &mut Array<X>,
    output_1: &mut Array<X>,
    output_2: &mut Array<X>,
    width: usize,
    weight_stride: usize,
    scale_stride: usize,
    columns_0: usize,
    columns_1: usize,
    columns_2: usize,
    end_0: usize,
    end_1: usize,
    end_2: usize,
    eps: f32,
    #[comptime] form: Form,
    #[define(X, W, S, G, B, T)] _dtypes: [StorageType; 6],
) {
    let line = UNIT_POS_Y as usize;
    let lines = CUBE_DIM_Y as usize;
    let cube = CUBE_POS;
    if cube < end_0 {
        let column = cube * lines + line;
        let at = min(column, columns_0 - 1);
        let (row, scale) = (at * weight_stride, at * scale_stride);
        let mut sums = line_sums(
            input, weight_0, scales_0, norm, row, scale, width, eps, form,
        );
        if comptime!(form.gate.is_some()) {
            let ups = line_sums(
                input, weight_1, scales_1, norm, row, scale, width, eps, form,
            );
            #[unroll]
            for r in 0..comptime!(form.rows as usize) {
                sums[r] = value(sums[r], comptime!(form.gate.unwrap())) * ups[r];
            }
        }
        write(&sums, bias, residual, output_0, column, columns_0, form);
    }
    if comptime!(form.weights > 1 && form.gate.is_none()) {
        if cube >= end_0 && cube < end_1 {
            let column = (cube - end_0) * lines + line;
            let at = min(column, columns_1 - 1);
            let (row, scale) = (at * weight_stride, at * scale_stride);
            let sums = line_sums(
                input, weight_1, scales_1, norm, row, scale, width, eps, form,
            );
            write(&sums, bias, residual, output_1, column, columns_1, form);
        }
    }
    if comptime!(form.weights > 2) {
        if cube >= end_1 && cube < end_2 {
            let column = (cube - end_1) * lines + line;
            let at = min(column, columns_2 - 1);
            let (row, scale) = (at * weight_stride, at * scale_stride);
            let sums = line_sums(
                input, weight_2, scales_2, norm, row, scale, width, eps, form,
            );
            write(&sums, bias, residual, output_2, column, columns_2, form);
        }
    }
}

/// The rows' sums of one column, known to the line's first unit.
#[cube]
fn line_sums<X: Float, W: Numeric, S: Float, G: Float, N: Size>(
    input: &Array<Vector<X, N>>,
    weight: &Array<Vector<W, N>>,
    scales: &Array<S>,
    norm: &Array<Vector<G, N>>,
    row: usize,
    scale: usize,
    width: usize,
    eps: f32,
    #[comptime] form: Form,
) -> Array<f32> {
    let rows = comptime!(form.rows as usize);
    let mut sums = Array::<f32>::new(rows);
    let mut squares = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        sums[r] = 0.0f32;
        squares[r] = 0.0f32;
    }
    if comptime!(form.bits == 0) {
        let vectors = width / N::value();
        let mut k = UNIT_POS_X as usize;
        while k < vectors {
            let factors = Vector::<f32, N>::cast_from(weight[row + k]);
            add(
                input,
                norm,
                factors,
                k,
                vectors,
                &mut sums,
                &mut squares,
                form,
            );
            k += comptime!(form.lanes as usize);
        }
    } else {
        let bits = comptime!(form.bits as usize);
        // Vectors of the input that a word stands for.
        let deep = comptime!(8 / bits);
        let vectors = width / 4;
        let chunks = vectors / (4 * deep);
        let mut k = UNIT_POS_X as usize;
        while k < chunks {
            let words = weight[row + k];
            let factor = f32::cast_from(scales[scale + k * 16 * deep / BLOCK]);
            #[unroll]
            for j in 0..comptime!(4usize) {
                let word = u32::cast_from(words[j]);
                #[unroll]
                for h in 0..deep {
                    let mut factors = Vector::<f32, N>::empty();
                    #[unroll]
                    for i in 0..comptime!(4usize) {
                        factors[i] = unpacked(word, comptime!((h * 4 + i) as u32), bits) * factor;
                    }
                    let at = (k * 4 + j) * deep + h;
                    add(
                        input,
                        norm,
                        factors,
                        at,
                        vectors,
                        &mut sums,
                        &mut squares,
                        form,
                    );
                }
            }
            k += comptime!(form.lanes as usize);
        }
    }
    #[unroll]
    for r in 0..rows {
        let mut sum = line_sum(sums[r], form);
        if comptime!(form.normed) {
            let mean = line_sum(squares[r], form) / f32::cast_from(width as u32);
            sum /= (mean + eps).sqrt();
        }
        sums[r] = sum;
    }
    sums
}

/// The signed integer at a place of a word.
#[cube]
fn unpacked(word: u32, #[comptime] place: u32, #[comptime] bits: usize) -> f32 {
    let sign = comptime!(1u32 << (bits - 1));
    let raw = (word >> comptime!(place * bits as u32)) & comptime!((1u32 << bits) - 1);
    f32::cast_from(raw ^ sign) - comptime!(sign as f32)
}

/// Adds the products of one vector of a weight with every row's.
#[cube]
fn add<X: Float, G: Float, N: Size>(
    input: &Array<Vector<X, N>>,
    norm: &Array<Vector<G, N>>,
    factors: Vector<f32, N>,
    at: usize,
    vectors: usize,
    sums: &mut Array<f32>,
    squares: &mut Array<f32>,
    #[comptime] form: Form,
) {
    let mut factors = factors;
    if comptime!(form.normed) {
        let mut weight = Vector::<f32, N>::cast_from(norm[at]);
        if comptime!(form.offset) {
            weight += Vector::new(1.0f32);
        }
        factors *= weight;
    }
    #[unroll]
    for r in 0..comptime!(form.rows as usize) {
        let x = Vector::<f32, N>::cast_from(input[r * vectors + at]);
        #[unroll]
        for i in 0..N::value() {
            sums[r] = fma(x[i], factors[i], sums[r]);
            if comptime!(form.normed) {
                squares[r] = fma(x[i], x[i], squares[r]);
            }
        }
    }
}

/// Sum over the units of a line.
#[cube]
fn line_sum(value: f32, #[comptime] form: Form) -> f32 {
    if comptime!(form.planes) {
        plane_sum(value)
    } else {
        let mut shared = SharedMemory::<f32>::new(UNITS as usize);
        let unit = UNIT_POS;
        // The same memory may serve the sum before.
        sync_cube();
        shared[unit as usize] = value;
        let mut step = comptime!(form.lanes / 2).runtime();
        while step > 0 {
            sync_cube();
            if UNIT_POS_X < step {
                let other = shared[(unit + step) as usize];
                shared[unit as usize] += other;
            }
            step /= 2;
        }
        sync_cube();
        shared[(UNIT_POS_Y * comptime!(form.lanes)) as usize]
    }
}

#[cube]
fn write<X: Float, B: Float, T: Float>(
    sums: &Array<f32>,
    bias: &Array<B>,
    residual: &Array<T>,
    output: &mut Array<X>,
    column: usize,
    columns: usize,
    #[comptime] form: Form,
) {
    if UNIT_POS_X == 0 && column < columns {
        #[unroll]
        for r in 0..comptime!(form.rows as usize) {
            let mut sum = sums[r];
            if comptime!(form.bias) {
                sum += f32::cast_from(bias[column]);
            }
            if comptime!(form.residual) {
                sum += f32::cast_from(residual[r * columns + column]);
            }
            output[r * columns + column] = X::cast_from(sum);
        }
    }
}
