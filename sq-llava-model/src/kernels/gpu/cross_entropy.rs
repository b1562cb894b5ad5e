//! Cross-entropy of rows of logits, a cube for each row: no table of probabilities is made, and
//! the gradient takes the logits' place.

use std::sync::Arc;

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, contiguous, cubes, empty, line, writable};
use super::sum::{line_max, line_sum};
use super::{Device, Kernel, Launch, Plain, fixed};

/// `log Σ_j e^{x_j} − x_id` for each row of logits `[n, vocabulary]` and its id → `[n]`, f32.
#[derive(Debug, Clone)]
pub(crate) struct CrossEntropyKernel(Arc<[u32]>);

impl CrossEntropyKernel {
    /// An id that is negative or behind any vocabulary is accepted by none.
    pub fn new(ids: &[i64]) -> Self {
        let place = |&id: &i64| u32::try_from(id).unwrap_or(u32::MAX);
        Self(ids.iter().map(place).collect())
    }

    /// The ids on the device.
    fn ids<R: CubeRuntime>(&self, beside: &CubeTensor<R>) -> ArrayArg<R> {
        let handle = beside
            .client
            .create_from_slice(bytemuck::cast_slice(&self.0));
        // SAFETY: as many were just written.
        unsafe { ArrayArg::from_raw_parts(handle, self.0.len()) }
    }
}

impl Kernel<1> for CrossEntropyKernel {
    fn accepts(&self, [logits]: &[Plain; 1]) -> bool {
        let inside = |&id: &u32| (id as usize) < logits.width();
        let rows = logits.shape.num_dims() == 2 && logits.rows() == self.0.len();
        logits.is_float() && rows && !self.0.is_empty() && self.0.iter().all(inside)
    }

    fn forward<D: Device>(&self, inputs: [FloatTensor<D>; 1]) -> FloatTensor<D> {
        D::launch(&Losses(self.clone()), inputs.into()).swap_remove(0)
    }

    fn forward_saving<D: Device>(
        &self,
        [logits]: [FloatTensor<D>; 1],
        _: [bool; 1],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        let mut outputs = D::launch(&Losses(self.clone()), vec![logits.clone()]);
        let log_sums = outputs.swap_remove(1);
        (outputs.swap_remove(0), vec![logits, log_sums])
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        _: [bool; 1],
    ) -> [Option<FloatTensor<D>>; 1] {
        let mut inputs = saved;
        inputs.push(grad);
        [Some(D::launch_one(&Slopes(self.clone()), inputs))]
    }
}

/// Losses and the logarithms of the rows' sums.
#[derive(Debug, Clone)]
pub(super) struct Losses(pub CrossEntropyKernel);

impl Launch for Losses {
    const NAME: &'static str = "cross_entropy";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![Plain::new([inputs[0].rows()], DType::F32); 2]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [logits] = contiguous(inputs);
        let plain = Plain::of(&logits);
        let [losses, log_sums] =
            [(); 2].map(|()| empty(&logits, Plain::new([plain.rows()], DType::F32)));
        let ids = self.0.ids(&logits);
        let (client, dtype) = (logits.client.clone(), logits.dtype.into());
        // SAFETY: the kernel goes over rows below the number of rows, columns below the width, and
        // ids were found to be below it.
        unsafe {
            losses_of::launch_unchecked::<R>(
                &client,
                cubes(plain.rows()),
                line(),
                logits.into_array_arg(),
                ids,
                losses.clone().into_array_arg(),
                log_sums.clone().into_array_arg(),
                plain.rows(),
                plain.width(),
                dtype,
            );
        }
        vec![losses, log_sums]
    }
}

#[cube(launch_unchecked)]
fn losses_of<F: Float>(
    logits: &Array<F>,
    ids: &Array<u32>,
    losses: &mut Array<f32>,
    log_sums: &mut Array<f32>,
    rows: usize,
    width: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * width;
        let mut shared = SharedMemory::<f32>::new(UNITS as usize);
        let mut largest = f32::new(-3.0e38);
        let mut at = UNIT_POS as usize;
        while at < width {
            largest = max(largest, f32::cast_from(logits[start + at]));
            at += UNITS as usize;
        }
        let largest = line_max(&mut shared, largest, UNITS);
        let mut sum = 0.0f32;
        let mut at = UNIT_POS as usize;
        while at < width {
            sum += (f32::cast_from(logits[start + at]) - largest).exp();
            at += UNITS as usize;
        }
        let log_sum = largest + line_sum(&mut shared, sum, UNITS).ln();
        if UNIT_POS == 0 {
            let own = f32::cast_from(logits[start + ids[row] as usize]);
            losses[row] = log_sum - own;
            log_sums[row] = log_sum;
        }
    }
}

/// Logits, logarithms of sums and the losses' gradients → the logits' gradient, in their place
/// where nothing else holds them.
#[derive(Debug, Clone)]
pub(super) struct Slopes(pub CrossEntropyKernel);

impl Launch for Slopes {
    const NAME: &'static str = "cross_entropy_slopes";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [logits, log_sums, grad] = fixed(inputs);
        let logits = writable(logits);
        let plain = Plain::of(&logits);
        let [log_sums, grad] = [log_sums, grad].map(into_contiguous);
        let ids = self.0.ids(&logits);
        let dtypes = [logits.dtype.into(), grad.dtype.into()];
        let elements = plain.shape.num_elements();
        // SAFETY: units below the number of logits read and write their own alone.
        unsafe {
            slopes_of::launch_unchecked::<R>(
                &logits.client.clone(),
                cubes(elements.div_ceil(UNITS as usize)),
                line(),
                logits.clone().into_array_arg(),
                ids,
                log_sums.into_array_arg(),
                grad.into_array_arg(),
                elements,
                plain.width(),
                dtypes,
            );
        }
        vec![logits]
    }
}

/// `g · (softmax − one-hot)`.
#[cube(launch_unchecked)]
fn slopes_of<F: Float, G: Float>(
    logits: &mut Array<F>,
    ids: &Array<u32>,
    log_sums: &Array<f32>,
    grad: &Array<G>,
    elements: usize,
    width: usize,
    #[define(F, G)] _dtypes: [StorageType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < elements {
        let row = at / width;
        let mut slope = (f32::cast_from(logits[at]) - log_sums[row]).exp();
        if at % width == ids[row] as usize {
            slope -= 1.0f32;
        }
        logits[at] = F::cast_from(slope * f32::cast_from(grad[row]));
    }
}
