//! A step of AdamW on one tensor in one launch, in place where nothing else holds the tensors.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, cubes, line};
use super::{Launch, Plain};
use crate::kernels::adamw::AdamWStep;

/// Parameter, first moment, second moment and gradient → the first three after the step; all f32.
#[derive(Debug, Clone)]
pub(crate) struct AdamW(pub AdamWStep);

impl Launch for AdamW {
    const NAME: &'static str = "adamw";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let same = |input: &Plain| *input == inputs[0] && input.dtype == DType::F32;
        inputs.len() == 4 && inputs.iter().all(same) && inputs[0].shape.num_elements() > 0
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        inputs[..3].to_vec()
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs;
        let grad = inputs.pop().map(into_contiguous);
        let written = inputs.into_iter().map(|input| {
            // A view of something else is copied by the first of these.
            let input = into_contiguous(input);
            match input.can_mut() && input.is_contiguous_buffer() {
                true => input,
                false => input.copy(),
            }
        });
        let (written, Some(grad)) = (written.collect::<Vec<_>>(), grad) else {
            unreachable!("a launch gets the inputs that it was made for")
        };
        let elements = Plain::of(&grad).shape.num_elements();
        let step = &self.0;
        let [correction_1, correction_2] = step.corrections().map(|c| 1.0 / c);
        let of = |i: usize| written[i].clone().into_array_arg();
        // SAFETY: units below the number of elements read and write their own element alone.
        unsafe {
            adamw::launch_unchecked::<R>(
                &grad.client.clone(),
                cubes(elements.div_ceil(UNITS as usize)),
                line(),
                of(0),
                of(1),
                of(2),
                grad.into_array_arg(),
                elements,
                step.grad_scale,
                step.beta_1,
                step.beta_2,
                correction_1,
                correction_2,
                step.epsilon,
                (1.0 - step.rate * step.weight_decay) as f32,
                step.rate as f32,
            );
        }
        written
    }
}

#[cube(launch_unchecked)]
fn adamw(
    parameter: &mut Array<f32>,
    first: &mut Array<f32>,
    second: &mut Array<f32>,
    grad: &Array<f32>,
    elements: usize,
    grad_scale: f32,
    beta_1: f32,
    beta_2: f32,
    correction_1: f32,
    correction_2: f32,
    epsilon: f32,
    keep: f32,
    rate: f32,
) {
    let at = ABSOLUTE_POS;
    if at < elements {
        let slope = grad[at] * grad_scale;
        let mean = beta_1 * first[at] + (1.0f32 - beta_1) * slope;
        let square = beta_2 * second[at] + (1.0f32 - beta_2) * slope * slope;
        let delta = mean * correction_1 / ((square * correction_2).sqrt() + epsilon);
        first[at] = mean;
        second[at] = square;
        parameter[at] = parameter[at] * keep - rate * delta;
    }
}
