//! One step of AdamW (Loshchilov & Hutter 2019).

use burn::tensor::{Tensor, backend::Backend};

pub use crate::kernels::adamw::AdamWStep;

impl AdamWStep {
    /// Parameter, first and second moment after the step.
    pub fn apply<B: Backend, const D: usize>(
        &self,
        parameter: Tensor<B, D>,
        first: Tensor<B, D>,
        second: Tensor<B, D>,
        grad: Tensor<B, D>,
    ) -> [Tensor<B, D>; 3] {
        #[cfg(feature = "cpu")]
        let [parameter, first, second, grad] =
            match crate::kernels::cpu::adamw(self, [parameter, first, second, grad]) {
                Ok(results) => return results,
                Err(inputs) => inputs,
            };
        #[cfg(feature = "gpu")]
        let [parameter, first, second, grad] = match on_gpu(self, [parameter, first, second, grad])
        {
            Ok(results) => return results,
            Err(inputs) => inputs,
        };
        self.portable(parameter, first, second, grad)
    }

    /// The operations that every backend has.
    pub(crate) fn portable<B: Backend, const D: usize>(
        &self,
        parameter: Tensor<B, D>,
        first: Tensor<B, D>,
        second: Tensor<B, D>,
        grad: Tensor<B, D>,
    ) -> [Tensor<B, D>; 3] {
        let grad = match self.grad_scale {
            1.0 => grad,
            scale => grad.mul_scalar(scale),
        };
        let first = first * self.beta_1 + grad.clone() * (1.0 - self.beta_1);
        let second = second * self.beta_2 + grad.square() * (1.0 - self.beta_2);
        let [correction_1, correction_2] = self.corrections();
        let scale = (second.clone() / correction_2).sqrt() + self.epsilon;
        let delta = first.clone() / correction_1 / scale;
        let kept = match self.rate * self.weight_decay {
            0.0 => parameter,
            decay => parameter * (1.0 - decay),
        };
        [kept - delta * self.rate, first, second]
    }
}

/// Our kernel, where the tensors are a GPU's; they come back where it does not know them.
#[cfg(feature = "gpu")]
fn on_gpu<B: Backend, const D: usize>(
    step: &AdamWStep,
    tensors: [Tensor<B, D>; 4],
) -> Result<[Tensor<B, D>; 3], [Tensor<B, D>; 4]> {
    use crate::kernels::gpu;
    let fixed = |values: Vec<_>| values.into_iter().map(gpu::tensor).collect::<Vec<_>>();
    match gpu::launch::<B, _>(&gpu::AdamW(*step), tensors.map(gpu::float).into()) {
        Ok(outputs) => match fixed(outputs).try_into() {
            Ok(outputs) => Ok(outputs),
            Err(_) => unreachable!("the launch has three outputs"),
        },
        Err(inputs) => match fixed(inputs).try_into() {
            Ok(inputs) => Err(inputs),
            Err(_) => unreachable!("as many come back as went in"),
        },
    }
}

/// Sum of the squares of all elements, on the device.
pub fn square_sum<B: Backend, const D: usize>(values: Tensor<B, D>) -> Tensor<B, 1> {
    #[cfg(feature = "cpu")]
    let values = match crate::kernels::cpu::square_sum(values) {
        Ok(sum) => return sum,
        Err(values) => values,
    };
    values.square().sum()
}
