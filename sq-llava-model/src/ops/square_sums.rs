//! Sums of the squares of many tensors' elements, as norms of gradients are made of.

#[cfg(feature = "gpu")]
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, backend::Backend};

/// `N` sums over any number of tensors each: a GPU waits for all of them, makes some in one launch, and
/// all sums come to the host in one copy.
#[derive(Debug)]
pub struct SquareSums<B: Backend, const N: usize> {
    sums: [Option<Tensor<B, 1>>; N],
    #[cfg(feature = "gpu")]
    waiting: [Vec<FloatTensor<B>>; N],
}

impl<B: Backend, const N: usize> SquareSums<B, N> {
    /// Of nothing.
    pub fn new() -> Self {
        Self {
            sums: [const { None }; N],
            #[cfg(feature = "gpu")]
            waiting: [const { Vec::new() }; N],
        }
    }

    /// Adds the squares of a tensor's elements to a sum, in f32.
    pub fn push<const D: usize>(&mut self, sum: usize, values: Tensor<B, D>) {
        let values = values.cast(DType::F32);
        #[cfg(feature = "gpu")]
        let values = {
            use crate::kernels::gpu::{self, Launch};
            let values = gpu::float(values);
            if gpu::is_gpu::<B>() && gpu::SquareSums.accepts(&[gpu::Plain::of(&values)]) {
                self.waiting[sum].push(values);
                return;
            }
            gpu::tensor::<B, D>(values)
        };
        self.add(sum, of(values));
    }

    fn add(&mut self, sum: usize, part: Tensor<B, 1>) {
        let slot = &mut self.sums[sum];
        *slot = Some(match slot.take() {
            Some(before) => before + part,
            None => part,
        });
    }

    /// The sums, 0 of nothing.
    pub fn finish(#[allow(unused_mut)] mut self) -> [f64; N] {
        #[cfg(feature = "gpu")]
        for sum in 0..N {
            if let Some(part) = together::<B>(std::mem::take(&mut self.waiting[sum])) {
                self.add(sum, part);
            }
        }
        let made = self.sums.each_ref().map(Option::is_some);
        let sums: Vec<Tensor<B, 1>> = self.sums.into_iter().flatten().collect();
        if sums.is_empty() {
            return [0.0; N];
        }
        let values = Tensor::cat(sums, 0).into_data();
        let mut values = values.iter::<f64>();
        made.map(|made| made.then(|| values.next()).flatten().unwrap_or(0.0))
    }
}

impl<B: Backend, const N: usize> Default for SquareSums<B, N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Of one tensor. `[1]`
fn of<B: Backend, const D: usize>(values: Tensor<B, D>) -> Tensor<B, 1> {
    #[cfg(feature = "cpu")]
    let values = match crate::kernels::cpu::square_sum(values) {
        Ok(sum) => return sum,
        Err(values) => values,
    };
    values.square().sum()
}

/// Of tensors that the kernel accepts. `[1]`
#[cfg(feature = "gpu")]
fn together<B: Backend>(mut waiting: Vec<FloatTensor<B>>) -> Option<Tensor<B, 1>> {
    use crate::kernels::gpu;
    let mut sum: Option<Tensor<B, 1>> = None;
    while let Some(first) = waiting.first() {
        // A launch runs on one device.
        let device = B::float_device(first);
        let with_first = |tensor: &FloatTensor<B>| B::float_device(tensor) == device;
        let (now, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(with_first);
        waiting = later;
        let Ok(mut parts) = gpu::launch::<B, _>(&gpu::SquareSums, now) else {
            unreachable!("each tensor was accepted")
        };
        let part = gpu::tensor::<B, 1>(parts.swap_remove(0)).sum();
        sum = Some(match sum {
            Some(sum) => {
                let part = part.to_device(&sum.device());
                sum + part
            }
            None => part,
        });
    }
    sum
}
