//! A step of AdamW in one pass over memory, in place where nothing else holds the tensors.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, Tensor};
use burn_flex::FlexTensor;

use super::level::vectorised;
use super::math::dot;
use super::team::share_each;
use super::view::{contiguous, elements, filled, whole};
use super::{float, pieces, same, tensor};
use crate::kernels::adamw::AdamWStep;

/// Elements that a thread takes at once.
const PIECE: usize = 16 * 1024;

vectorised! {
    fn squares<L>(values: &[f32]) -> f32 {
        dot::<L>(values, values)
    }

    fn update<L>(
        step: &AdamWStep,
        parameter: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        grad: &[f32],
    ) {
        let (beta_1, beta_2) = (step.beta_1, step.beta_2);
        let [correction_1, correction_2] = step.corrections().map(|c| 1.0 / c);
        let (keep, rate) = (1.0 - step.rate * step.weight_decay, step.rate);
        let (keep, rate) = (keep as f32, rate as f32);
        let n = parameter.len();
        let (first, second, grad) = (&mut first[..n], &mut second[..n], &grad[..n]);
        for i in 0..n {
            let g = grad[i] * step.grad_scale;
            let m = beta_1 * first[i] + (1.0 - beta_1) * g;
            let v = beta_2 * second[i] + (1.0 - beta_2) * g * g;
            let delta = m * correction_1 / ((v * correction_2).sqrt() + step.epsilon);
            first[i] = m;
            second[i] = v;
            parameter[i] = parameter[i] * keep - rate * delta;
        }
    }
}

/// `[parameter, first moment, second moment]` after the step; the inputs back, with the gradient
/// last, where they are not flex's f32 tensors.
pub(crate) fn adamw<B: Backend, const D: usize>(
    step: &AdamWStep,
    tensors: [Tensor<B, D>; 4],
) -> Result<[Tensor<B, D>; 3], [Tensor<B, D>; 4]> {
    if tensors.iter().any(|t| t.dtype() != DType::F32) {
        return Err(tensors);
    }
    let tensors = match same::<_, [FlexTensor; 4]>(tensors.map(float)) {
        Ok(tensors) => tensors,
        Err(tensors) => return Err(tensors.map(tensor)),
    };
    let [mut parameter, mut first, mut second, grad] = tensors.map(whole);
    let pieces = parameter
        .storage_mut::<f32>()
        .chunks_mut(PIECE)
        .zip(first.storage_mut::<f32>().chunks_mut(PIECE))
        .zip(second.storage_mut::<f32>().chunks_mut(PIECE))
        .zip(grad.storage::<f32>().chunks(PIECE));
    let mut pieces: Vec<_> = pieces.collect();
    share_each(&mut pieces, |(((parameter, first), second), grad)| {
        update(step, parameter, first, second, grad);
    });
    Ok([parameter, first, second].map(|result| match same(result) {
        Ok(primitive) => tensor(primitive),
        Err(_) => unreachable!("the types were found equal on the way in"),
    }))
}

/// Sum of squares; `Err` where the tensor is not flex's in f32.
pub(crate) fn square_sum<B: Backend, const D: usize>(
    values: Tensor<B, D>,
) -> Result<Tensor<B, 1>, Tensor<B, D>> {
    if values.dtype() != DType::F32 {
        return Err(values);
    }
    let values = match same::<_, FlexTensor>(float(values)) {
        Ok(values) => contiguous(values),
        Err(values) => return Err(tensor(values)),
    };
    let all = elements(&values);
    let sum = pieces::sums(all.len(), 1, 1, |from, to, out| {
        out[0] += squares(&all[from..to]);
    });
    match same(filled(sum, Shape::from(vec![1]))) {
        Ok(primitive) => Ok(tensor(primitive)),
        Err(_) => unreachable!("the types were found equal on the way in"),
    }
}
