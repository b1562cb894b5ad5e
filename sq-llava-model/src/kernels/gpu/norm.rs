//! Root-mean-square normalisation, a cube for each row.

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, contiguous, cubes, empty, line};
use super::sum::line_sum;
use super::{Device, Kernel, Launch, Plain};

/// `x / rms(x) · w` of `[.., hidden]` and `[hidden]`, in the dtype of `x`.
#[derive(Debug, Clone)]
pub(crate) struct RmsNormKernel {
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the factor is one more than the weight.
    pub offset: bool,
}

impl Kernel<2> for RmsNormKernel {
    fn accepts(&self, [x, weight]: &[Plain; 2]) -> bool {
        x.is_float() && weight.is_float() && weight.width() == x.width() && x.rows() > 0
    }

    fn forward<D: Device>(&self, inputs: [FloatTensor<D>; 2]) -> FloatTensor<D> {
        let mut outputs = D::launch(&Forward(self.clone()), inputs.into());
        outputs.swap_remove(0)
    }

    fn forward_saving<D: Device>(
        &self,
        [x, weight]: [FloatTensor<D>; 2],
        _: [bool; 2],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        let mut outputs = D::launch(&Forward(self.clone()), vec![x.clone(), weight.clone()]);
        let inverse = outputs.swap_remove(1);
        (outputs.swap_remove(0), vec![x, weight, inverse])
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<D>>; 2] {
        let [x, weight, inverse] = match <[_; 3]>::try_from(saved) {
            Ok(saved) => saved,
            Err(_) => unreachable!("three were saved"),
        };
        let slope = wanted[1].then(|| {
            let inputs = vec![x.clone(), inverse.clone(), grad.clone()];
            let dtype = Plain::of(&weight).dtype;
            let sums = D::float_sum_dim(D::launch_one(&WeightSlope, inputs), 0);
            let slope = D::float_reshape(sums, Plain::of(&weight).shape);
            match dtype {
                DType::F32 => slope,
                other => D::float_cast(slope, other.into()),
            }
        });
        let inputs = vec![x, weight, inverse, grad];
        let input = wanted[0].then(|| D::launch_one(&InputSlope(self.clone()), inputs));
        [input, slope]
    }
}

/// The result and 1 / rms of each row.
#[derive(Debug, Clone)]
pub(super) struct Forward(pub RmsNormKernel);

impl Launch for Forward {
    const NAME: &'static str = "rms_norm";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![
            inputs[0].clone(),
            Plain::new([inputs[0].rows()], DType::F32),
        ]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight] = contiguous(inputs);
        let plain = Plain::of(&x);
        let output = empty(&x, plain.clone());
        let inverse = empty(&x, Plain::new([plain.rows()], DType::F32));
        let dtypes = [x.dtype.into(), weight.dtype.into()];
        let client = x.client.clone();
        // SAFETY: the kernel goes over rows below the number of rows, columns below the width.
        unsafe {
            forward::launch_unchecked::<R>(
                &client,
                cubes(plain.rows()),
                line(),
                x.into_array_arg(),
                weight.into_array_arg(),
                output.clone().into_array_arg(),
                inverse.clone().into_array_arg(),
                plain.rows(),
                plain.width(),
                self.0.eps as f32,
                self.0.offset,
                dtypes,
            );
        }
        vec![output, inverse]
    }
}

#[cube(launch_unchecked)]
fn forward<F: Float, W: Float>(
    input: &Array<F>,
    weight: &Array<W>,
    output: &mut Array<F>,
    inverse: &mut Array<f32>,
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] offset: bool,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * width;
        let mut squares = 0.0f32;
        let mut at = UNIT_POS as usize;
        while at < width {
            let x = f32::cast_from(input[start + at]);
            squares += x * x;
            at += UNITS as usize;
        }
        let mut shared = SharedMemory::<f32>::new(UNITS as usize);
        let mean = line_sum(&mut shared, squares, UNITS) / f32::cast_from(width as u32);
        let factor = 1.0f32 / (mean + eps).sqrt();
        let mut at = UNIT_POS as usize;
        while at < width {
            let x = f32::cast_from(input[start + at]);
            let mut w = f32::cast_from(weight[at]);
            if offset {
                w += 1.0f32;
            }
            output[start + at] = F::cast_from(x * factor * w);
            at += UNITS as usize;
        }
        if UNIT_POS == 0 {
            inverse[row] = factor;
        }
    }
}

/// The input's gradient.
#[derive(Debug, Clone)]
pub(super) struct InputSlope(pub RmsNormKernel);

impl Launch for InputSlope {
    const NAME: &'static str = "rms_norm_input_slope";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight, inverse, grad] = contiguous(inputs);
        let plain = Plain::of(&x);
        let output = empty(&x, plain.clone());
        let dtypes = [x.dtype.into(), weight.dtype.into(), grad.dtype.into()];
        let client = x.client.clone();
        // SAFETY: the kernel goes over rows below the number of rows, columns below the width.
        unsafe {
            input_slope::launch_unchecked::<R>(
                &client,
                cubes(plain.rows()),
                line(),
                x.into_array_arg(),
                weight.into_array_arg(),
                inverse.into_array_arg(),
                grad.into_array_arg(),
                output.clone().into_array_arg(),
                plain.rows(),
                plain.width(),
                self.0.offset,
                dtypes,
            );
        }
        vec![output]
    }
}

/// With n = x · r: `r · (g w − n · mean(g w n))`.
#[cube(launch_unchecked)]
fn input_slope<F: Float, W: Float, G: Float>(
    input: &Array<F>,
    weight: &Array<W>,
    inverse: &Array<f32>,
    grad: &Array<G>,
    output: &mut Array<F>,
    rows: usize,
    width: usize,
    #[comptime] offset: bool,
    #[define(F, W, G)] _dtypes: [StorageType; 3],
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * width;
        let factor = inverse[row];
        let mut products = 0.0f32;
        let mut at = UNIT_POS as usize;
        while at < width {
            let mut w = f32::cast_from(weight[at]);
            if offset {
                w += 1.0f32;
            }
            let normal = f32::cast_from(input[start + at]) * factor;
            products += f32::cast_from(grad[start + at]) * w * normal;
            at += UNITS as usize;
        }
        let mut shared = SharedMemory::<f32>::new(UNITS as usize);
        let mean = line_sum(&mut shared, products, UNITS) / f32::cast_from(width as u32);
        let mut at = UNIT_POS as usize;
        while at < width {
            let mut w = f32::cast_from(weight[at]);
            if offset {
                w += 1.0f32;
            }
            let normal = f32::cast_from(input[start + at]) * factor;
            let slope = f32::cast_from(grad[start + at]) * w - normal * mean;
            output[start + at] = F::cast_from(slope * factor);
            at += UNITS as usize;
        }
    }
}

/// Rows whose part of the weight's gradient one unit adds up.
const CHUNK: usize = 64;

/// The weight's gradient by chunks of rows. `[chunks, hidden]`, f32
#[derive(Debug, Clone)]
pub(super) struct WeightSlope;

impl Launch for WeightSlope {
    const NAME: &'static str = "rms_norm_weight_slope";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        let chunks = inputs[0].rows().div_ceil(CHUNK);
        vec![Plain::new([chunks, inputs[0].width()], DType::F32)]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, inverse, grad] = contiguous(inputs);
        let plain = Plain::of(&x);
        let output = empty(
            &x,
            self.outputs(std::slice::from_ref(&plain)).swap_remove(0),
        );
        let elements = Plain::of(&output).shape.num_elements();
        let dtypes = [x.dtype.into(), grad.dtype.into()];
        let client = x.client.clone();
        // SAFETY: a unit below the number of outputs reads rows and columns of the inputs alone.
        unsafe {
            weight_slope::launch_unchecked::<R>(
                &client,
                cubes(elements.div_ceil(UNITS as usize)),
                line(),
                x.into_array_arg(),
                inverse.into_array_arg(),
                grad.into_array_arg(),
                output.clone().into_array_arg(),
                plain.rows(),
                plain.width(),
                elements,
                dtypes,
            );
        }
        vec![output]
    }
}

#[cube(launch_unchecked)]
fn weight_slope<F: Float, G: Float>(
    input: &Array<F>,
    inverse: &Array<f32>,
    grad: &Array<G>,
    output: &mut Array<f32>,
    rows: usize,
    width: usize,
    elements: usize,
    #[define(F, G)] _dtypes: [StorageType; 2],
) {
    let place = ABSOLUTE_POS;
    if place < elements {
        let column = place % width;
        let mut row = place / width * CHUNK;
        let mut end = row + CHUNK;
        if end > rows {
            end = rows;
        }
        let mut sum = 0.0f32;
        while row < end {
            let at = row * width + column;
            let normal = f32::cast_from(input[at]) * inverse[row];
            sum += f32::cast_from(grad[at]) * normal;
            row += 1;
        }
        output[place] = sum;
    }
}
