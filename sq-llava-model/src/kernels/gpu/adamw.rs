//! A step of AdamW on several tensors in one launch, in place where nothing else holds them.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, cubes, line, writable};
use super::{Launch, Plain};
use crate::kernels::adamw::AdamWStep;

/// Parameter, first moment, second moment and gradient of each tensor, one tensor behind the other
/// → the first three of each after the step; all f32.
#[derive(Debug, Clone)]
pub(crate) struct AdamW(pub AdamWStep);

/// Buffers of one tensor.
const BUFFERS: usize = 4;

/// Tensors of one launch.
pub(super) const TENSORS: usize = 8;

/// Buffers of a launch that are not tensors: shapes and numbers.
const SPARE: usize = 2;

impl Launch for AdamW {
    const NAME: &'static str = "adamw";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let (tensors, rest) = inputs.as_chunks::<BUFFERS>();
        let fits = |tensor: &[Plain; BUFFERS]| {
            let same = |input: &Plain| *input == tensor[0] && input.dtype == DType::F32;
            tensor.iter().all(same) && tensor[0].shape.num_elements() > 0
        };
        !tensors.is_empty() && rest.is_empty() && tensors.iter().all(fits)
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        let (tensors, _) = inputs.as_chunks::<BUFFERS>();
        tensors
            .iter()
            .flat_map(|[written @ .., _]| written.clone())
            .collect()
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let mut tensors = vec![];
        while let (Some(parameter), Some(first), Some(second), Some(grad)) =
            (inputs.next(), inputs.next(), inputs.next(), inputs.next())
        {
            let written = [parameter, first, second].map(writable);
            tensors.push((written, into_contiguous(grad)));
        }
        let Some((_, grad)) = tensors.first() else {
            unreachable!("a launch gets the inputs that it was made for")
        };
        // Browsers take eight buffers, one tensor's.
        let bindings = grad.client.properties().hardware.max_bindings as usize;
        let together = (bindings.saturating_sub(SPARE) / BUFFERS).clamp(1, TENSORS);
        for part in tensors.chunks(together) {
            self.launch_together(part);
        }
        tensors
            .into_iter()
            .flat_map(|(written, _)| written)
            .collect()
    }
}

impl AdamW {
    /// One launch; of each tensor what is written, and the gradient.
    fn launch_together<R: CubeRuntime>(&self, tensors: &[([CubeTensor<R>; 3], CubeTensor<R>)]) {
        let step = &self.0;
        let [correction_1, correction_2] = step.corrections().map(|c| 1.0 / c);
        let written = |i: usize| -> SequenceArg<R, Array<f32>> {
            let tensors = tensors.iter();
            tensors
                .map(|(written, _)| written[i].clone().into_array_arg())
                .collect()
        };
        let grads = tensors.iter();
        let grads: SequenceArg<R, Array<f32>> = grads
            .map(|(_, grad)| grad.clone().into_array_arg())
            .collect();
        let lengths = tensors
            .iter()
            .map(|(_, grad)| Plain::of(grad).shape.num_elements());
        let count = lengths.map(|length| length.div_ceil(UNITS as usize)).sum();
        // SAFETY: units below a tensor's number of elements read and write their own alone.
        unsafe {
            adamw::launch_unchecked::<R>(
                &tensors[0].1.client,
                cubes(count),
                line(),
                written(0),
                written(1),
                written(2),
                grads,
                step.grad_scale,
                step.beta_1,
                step.beta_2,
                correction_1,
                correction_2,
                step.epsilon,
                (1.0 - step.rate * step.weight_decay) as f32,
                step.rate as f32,
                tensors.len(),
            );
        }
    }
}

#[cube(launch_unchecked)]
fn adamw(
    parameters: &mut Sequence<Array<f32>>,
    firsts: &mut Sequence<Array<f32>>,
    seconds: &mut Sequence<Array<f32>>,
    grads: &Sequence<Array<f32>>,
    grad_scale: f32,
    beta_1: f32,
    beta_2: f32,
    correction_1: f32,
    correction_2: f32,
    epsilon: f32,
    keep: f32,
    rate: f32,
    #[comptime] tensors: usize,
) {
    let units = UNITS as usize;
    // The tensor's first cube.
    let mut start = 0usize;
    #[unroll]
    for i in 0..tensors {
        let grad = grads.index(i);
        // Rounded up.
        let filled = grad.len() + (units - 1);
        let end = start + filled / units;
        if CUBE_POS >= start && CUBE_POS < end {
            let at = (CUBE_POS - start) * units + UNIT_POS as usize;
            if at < grad.len() {
                let first = firsts.index_mut(i);
                let second = seconds.index_mut(i);
                let parameter = parameters.index_mut(i);
                let slope = grad[at] * grad_scale;
                let mean = beta_1 * first[at] + (1.0f32 - beta_1) * slope;
                let square = beta_2 * second[at] + (1.0f32 - beta_2) * slope * slope;
                let delta = mean * correction_1 / ((square * correction_2).sqrt() + epsilon);
                first[at] = mean;
                second[at] = square;
                parameter[at] = parameter[at] * keep - rate * delta;
            }
        }
        start = end;
    }
}
