//! The soft limit of scores, and its slope.

use super::super::level::vectorised;
use super::super::math::tanh;

vectorised! {
    /// `c · tanh(s / c)` in place of each score.
    pub(super) fn limit<L>(scores: &mut [f32], cap: f32) {
        for score in scores {
            *score = cap * tanh::<L>(*score / cap);
        }
    }

    /// Gradients of scores from those of the limited ones: times `1 − (f(s) / c)²`.
    pub(super) fn limit_back<L>(limited: &[f32], grads: &mut [f32], cap: f32) {
        for (grad, &limited) in grads.iter_mut().zip(limited) {
            let t = limited / cap;
            *grad *= 1.0 - t * t;
        }
    }
}
