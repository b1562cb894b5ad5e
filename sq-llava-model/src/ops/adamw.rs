//! One step of AdamW (Loshchilov & Hutter 2019).

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive, backend::Backend};

pub use crate::kernels::adamw::AdamWStep;

impl AdamWStep {
    /// Parameter, first and second moment after the step, alone.
    pub fn apply<B: Backend, const D: usize>(
        &self,
        parameter: Tensor<B, D>,
        first: Tensor<B, D>,
        second: Tensor<B, D>,
        grad: Tensor<B, D>,
    ) -> [Tensor<B, D>; 3] {
        let mut steps = AdamWSteps::new();
        let number = steps.push(*self, [parameter, first, second, grad]);
        match steps.apply().take(number) {
            Some(moved) => moved,
            None => unreachable!("it was pushed"),
        }
    }

    /// The step at once, on other backends than those of GPUs.
    fn at_once<B: Backend, const D: usize>(&self, tensors: [Tensor<B, D>; 4]) -> [Tensor<B, D>; 3] {
        #[cfg(feature = "cpu")]
        let tensors = match crate::kernels::cpu::adamw(self, tensors) {
            Ok(results) => return results,
            Err(inputs) => inputs,
        };
        let [parameter, first, second, grad] = tensors;
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

/// Steps of several tensors: a GPU waits for all of them and makes some in one launch.
#[derive(Debug)]
pub struct AdamWSteps<B: Backend> {
    results: Vec<Option<[FloatTensor<B>; 3]>>,
    #[cfg(feature = "gpu")]
    waiting: Vec<Waiting<B>>,
}

/// A step that is not yet made: its number, and parameter, moments and gradient.
#[cfg(feature = "gpu")]
type Waiting<B> = (usize, AdamWStep, [FloatTensor<B>; 4]);

/// Parameter, first and second moment of each tensor after its step.
#[derive(Debug)]
pub struct Stepped<B: Backend> {
    results: Vec<Option<[FloatTensor<B>; 3]>>,
}

impl<B: Backend> AdamWSteps<B> {
    /// None.
    pub fn new() -> Self {
        Self {
            results: vec![],
            #[cfg(feature = "gpu")]
            waiting: vec![],
        }
    }

    /// Adds a step on a parameter, its moments and its gradient, and tells its number. Where nothing
    /// is gained by waiting it is made at once.
    pub fn push<const D: usize>(&mut self, step: AdamWStep, tensors: [Tensor<B, D>; 4]) -> usize {
        let number = self.results.len();
        #[cfg(feature = "gpu")]
        let tensors = {
            use crate::kernels::gpu::{self, Launch};
            let tensors = tensors.map(gpu::float);
            let accepts = || gpu::AdamW(step).accepts(&tensors.each_ref().map(gpu::Plain::of));
            if gpu::is_gpu::<B>() && accepts() {
                self.waiting.push((number, step, tensors));
                self.results.push(None);
                return number;
            }
            tensors.map(gpu::tensor::<B, D>)
        };
        let moved = step.at_once(tensors);
        let moved = moved.map(|tensor| tensor.into_primitive().tensor());
        self.results.push(Some(moved));
        number
    }

    /// Makes those that wait.
    pub fn apply(self) -> Stepped<B> {
        #[cfg(feature = "gpu")]
        let results = {
            let mut results = self.results;
            let mut waiting = self.waiting;
            while let Some((_, step, [first, ..])) = waiting.first() {
                // A launch has one set of numbers, and runs on one device.
                let (step, device) = (*step, B::float_device(first));
                let with_first = |(_, other, [tensor, ..]): &Waiting<B>| {
                    *other == step && B::float_device(tensor) == device
                };
                let (now, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(with_first);
                waiting = later;
                let now = now
                    .into_iter()
                    .map(|(number, _, tensors)| (number, tensors));
                let (numbers, tensors): (Vec<_>, Vec<_>) = now.unzip();
                for (number, moved) in numbers.into_iter().zip(together::<B>(step, tensors)) {
                    results[number] = Some(moved);
                }
            }
            results
        };
        #[cfg(not(feature = "gpu"))]
        let results = self.results;
        Stepped { results }
    }
}

impl<B: Backend> Default for AdamWSteps<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> Stepped<B> {
    /// Parameter, first and second moment of the step that [`AdamWSteps::push`] gave the number;
    /// once.
    pub fn take<const D: usize>(&mut self, number: usize) -> Option<[Tensor<B, D>; 3]> {
        let moved = self.results.get_mut(number)?.take()?;
        Some(moved.map(|tensor| Tensor::from_primitive(TensorPrimitive::Float(tensor))))
    }
}

/// The kernel on tensors that it accepts.
#[cfg(feature = "gpu")]
fn together<B: Backend>(
    step: AdamWStep,
    tensors: Vec<[FloatTensor<B>; 4]>,
) -> Vec<[FloatTensor<B>; 3]> {
    use crate::kernels::gpu;
    let inputs = tensors.into_iter().flatten().collect();
    let Ok(outputs) = gpu::launch::<B, _>(&gpu::AdamW(step), inputs) else {
        unreachable!("each tensor was accepted")
    };
    let mut outputs = outputs.into_iter();
    let mut moved = vec![];
    while let (Some(parameter), Some(first), Some(second)) =
        (outputs.next(), outputs.next(), outputs.next())
    {
        moved.push([parameter, first, second]);
    }
    moved
}
