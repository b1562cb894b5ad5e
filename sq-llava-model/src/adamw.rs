//! One step of AdamW (Loshchilov & Hutter 2019).

use burn::tensor::{Tensor, backend::Backend};

/// Numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub rate: f64,
    /// Decay rate of the first moment.
    pub beta_1: f32,
    /// Decay rate of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps with these moments, this one included.
    pub time: usize,
    /// Factor of the gradient: what clipping leaves of it.
    pub grad_scale: f32,
}

impl AdamWStep {
    /// `1 − βᵗ` of both moments.
    pub(crate) fn corrections(&self) -> [f32; 2] {
        let time = i32::try_from(self.time).unwrap_or(i32::MAX);
        [self.beta_1, self.beta_2].map(|beta| 1.0 - beta.powi(time))
    }

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
            match crate::cpu::adamw(self, [parameter, first, second, grad]) {
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

/// Sum of the squares of all elements, on the device.
pub fn square_sum<B: Backend, const D: usize>(values: Tensor<B, D>) -> Tensor<B, 1> {
    #[cfg(feature = "cpu")]
    let values = match crate::cpu::square_sum(values) {
        Ok(sum) => return sum,
        Err(values) => values,
    };
    values.square().sum()
}
