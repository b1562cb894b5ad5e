//! Concatenation of tensors.

use burn::tensor::{Tensor, backend::Backend};

/// [`Tensor::cat`], safe beside other threads' backward passes.
///
/// burn-autodiff 0.21 lets go of the parts before the result refers to them, and the end of any
/// backward pass takes nodes that nothing refers to out of every graph: their gradients would be
/// lost. So the parts are held until the result is there.
pub fn cat<B: Backend, const D: usize>(parts: Vec<Tensor<B, D>>, dim: usize) -> Tensor<B, D> {
    let _held = parts.clone();
    Tensor::cat(parts, dim)
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use burn::backend::Autodiff;
    use burn_flex::Flex;

    use super::*;

    type Ad = Autodiff<Flex>;

    #[test]
    fn gradients_arrive_while_another_thread_ends_its_passes() {
        let device = Default::default();
        let done = AtomicBool::new(false);
        let lost = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let other = Tensor::<Ad, 1>::ones([1], &device).require_grad();
                    (other.clone() * other).sum().backward();
                }
            });
            let leaf = Tensor::<Ad, 1>::ones([200_000], &device).require_grad();
            let lost = |_: &usize| {
                let parts = (1..5).map(|i| leaf.clone() * i as f32).collect();
                let grads = cat(parts, 0).sum().backward();
                let sum = leaf.grad(&grads).map(|grad| grad.slice(0..1).into_scalar());
                sum != Some(10.0)
            };
            let lost = (0..50).filter(lost).count();
            done.store(true, Ordering::Relaxed);
            lost
        });
        assert_eq!(lost, 0);
    }
}
