//! Products of a few rows with weights of floats or of packed integers, as in decoding: each weight
//! is read once, integers become floats in registers, sums are f32.
//!
//! A line of units, one plane where the device has planes of one size, makes one column of the
//! result for all rows.

mod columns;
mod dense;

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::features::Plane;
use cubecl::prelude::*;
use cubecl::quant::scheme::{QuantScheme, QuantStore, QuantValue};

use super::device::{UNITS, cubes, empty};
use super::{Launch, Plain};
use crate::kernels::activation::Activation;
use columns::row_product;
pub(crate) use dense::Dense;

/// Rows that are multiplied at once; more are a matter for matrix units.
pub(crate) const MAX_ROWS: usize = 8;

/// Weights that one launch multiplies with.
const MAX_WEIGHTS: usize = 3;

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
        let single = self.weights == 1 || !(self.bias || self.residual);
        let gated = self.gate.is_none() || self.weights == 2;
        let known = (1..=MAX_WEIGHTS).contains(&self.weights) && single && gated;
        if !known || inputs.len() != 1 + self.weights + named.iter().sum::<usize>() {
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
        let alike = self.gate.is_none() || weights[0].rows() == weights[1].rows();
        let made = weights[0].rows();
        let mut beside = inputs[1 + self.weights..].iter();
        let floats = beside.clone().all(Plain::is_float);
        let normed = self.norm.is_none() || beside.next().is_some_and(|n| n.width() == x.width());
        let biased = !self.bias || beside.next().is_some_and(|bias| bias.width() == made);
        let is_sum = |other: &Plain| other.rows() == x.rows() && other.width() == made;
        let beside = !self.residual || beside.next().is_some_and(is_sum);
        let beside = floats && normed && biased && beside;
        let rows = (1..=MAX_ROWS).contains(&x.rows());
        let columns = x.width() > 0 && x.width().is_multiple_of(whole);
        x.is_float() && packed && rows && columns && weights.iter().all(fits) && alike && beside
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
