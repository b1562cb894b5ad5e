//! Activation functions, alone and as the gate of a product.

use burn_flex::FlexTensor;

use super::Kernel;
use super::level::{Level, vectorised};
use super::math::{normal, sigmoid, tanh};
use super::pieces;
use super::view::{contiguous, elements, filled};
use crate::kernels::activation::Activation;

/// `√(2/π)`.
const ROOT: f32 = 0.797_884_6;

/// Value and slope of an activation.
trait Function {
    fn value<L: Level>(x: f32) -> f32;
    fn slope<L: Level>(x: f32) -> f32;
}

struct Silu;
struct QuickGelu;
struct Gelu;
struct TanhGelu;
struct Relu;

impl Function for Silu {
    #[inline(always)]
    fn value<L: Level>(x: f32) -> f32 {
        x * sigmoid::<L>(x)
    }
    #[inline(always)]
    fn slope<L: Level>(x: f32) -> f32 {
        let s = sigmoid::<L>(x);
        s * (1.0 + x * (1.0 - s))
    }
}

impl Function for QuickGelu {
    #[inline(always)]
    fn value<L: Level>(x: f32) -> f32 {
        x * sigmoid::<L>(1.702 * x)
    }
    #[inline(always)]
    fn slope<L: Level>(x: f32) -> f32 {
        let s = sigmoid::<L>(1.702 * x);
        s * (1.0 + 1.702 * x * (1.0 - s))
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn value<L: Level>(x: f32) -> f32 {
        x * normal::<L>(x).0
    }
    #[inline(always)]
    fn slope<L: Level>(x: f32) -> f32 {
        let (cdf, density) = normal::<L>(x);
        cdf + x * density
    }
}

impl Function for TanhGelu {
    #[inline(always)]
    fn value<L: Level>(x: f32) -> f32 {
        0.5 * x * (1.0 + tanh::<L>(ROOT * (x + 0.044_715 * x * x * x)))
    }
    #[inline(always)]
    fn slope<L: Level>(x: f32) -> f32 {
        let t = tanh::<L>(ROOT * (x + 0.044_715 * x * x * x));
        let inner = ROOT * (1.0 + 3.0 * 0.044_715 * x * x);
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    }
}

impl Function for Relu {
    #[inline(always)]
    fn value<L: Level>(x: f32) -> f32 {
        x.max(0.0)
    }
    #[inline(always)]
    fn slope<L: Level>(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

#[inline(always)]
fn value_loop<L: Level, F: Function>(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = F::value::<L>(x);
    }
}

#[inline(always)]
fn slope_loop<L: Level, F: Function>(x: &mut [f32], grad: &[f32]) {
    for (x, &grad) in x.iter_mut().zip(grad) {
        *x = grad * F::slope::<L>(*x);
    }
}

#[inline(always)]
fn gated_loop<L: Level, F: Function>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = F::value::<L>(gate) * up;
    }
}

#[inline(always)]
fn gated_back_loop<L: Level, F: Function>(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    for ((gate, up), &grad) in gate.iter_mut().zip(up).zip(grad) {
        let (x, y) = (*gate, *up);
        *gate = grad * y * F::slope::<L>(x);
        *up = grad * F::value::<L>(x);
    }
}

/// One loop for each function, so that none asks which it is inside.
macro_rules! each {
    ($which:expr, $loop:ident, $L:ident, $($arg:expr),*) => {
        match $which {
            Activation::Silu => $loop::<$L, Silu>($($arg),*),
            Activation::QuickGelu => $loop::<$L, QuickGelu>($($arg),*),
            Activation::Gelu => $loop::<$L, Gelu>($($arg),*),
            Activation::GeluPytorchTanh => $loop::<$L, TanhGelu>($($arg),*),
            Activation::Relu => $loop::<$L, Relu>($($arg),*),
        }
    };
}

vectorised! {
    fn values<L>(which: Activation, x: &[f32], out: &mut [f32]) {
        each!(which, value_loop, L, x, out)
    }

    /// The input's gradient in its place.
    fn slopes<L>(which: Activation, x: &mut [f32], grad: &[f32]) {
        each!(which, slope_loop, L, x, grad)
    }

    pub(super) fn gated<L>(which: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        each!(which, gated_loop, L, gate, up, out)
    }

    /// The inputs' gradients in their places.
    fn gated_back<L>(which: Activation, gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
        each!(which, gated_back_loop, L, gate, up, grad)
    }
}

/// `f(x)`.
#[derive(Debug)]
pub(crate) struct Pointwise(pub(crate) Activation);

impl Kernel<1> for Pointwise {
    type Saved = FlexTensor;

    fn forward(&self, [input]: [FlexTensor; 1]) -> FlexTensor {
        self.of(&contiguous(input))
    }

    fn forward_saving(&self, [input]: [FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, FlexTensor) {
        let input = contiguous(input);
        (self.of(&input), input)
    }

    fn backward(
        &self,
        input: FlexTensor,
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let grad = contiguous(grad);
        let g = elements(&grad);
        let d_x = pieces::over(input, 1, |at, x| {
            let end = at + x.len();
            slopes(self.0, x, &g[at..end]);
        });
        [Some(d_x)]
    }
}

impl Pointwise {
    fn of(&self, input: &FlexTensor) -> FlexTensor {
        let x = elements(input);
        let out = pieces::rows(x.len(), 1, |at, out| {
            values(self.0, &x[at..at + out.len()], out);
        });
        filled(out, input.layout().shape().clone())
    }
}

/// `f(gate) · up`.
#[derive(Debug)]
pub(crate) struct Gated(pub(crate) Activation);

impl Kernel<2> for Gated {
    type Saved = [FlexTensor; 2];

    fn forward(&self, inputs: [FlexTensor; 2]) -> FlexTensor {
        self.of(&inputs.map(contiguous))
    }

    fn forward_saving(
        &self,
        inputs: [FlexTensor; 2],
        _: [bool; 2],
    ) -> (FlexTensor, [FlexTensor; 2]) {
        let inputs = inputs.map(contiguous);
        (self.of(&inputs), inputs)
    }

    fn backward(
        &self,
        [gate, up]: [FlexTensor; 2],
        grad: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let grad = contiguous(grad);
        let g = elements(&grad);
        let [d_gate, d_up] = pieces::over2([gate, up], 1, |at, gate, up| {
            let end = at + gate.len();
            gated_back(self.0, gate, up, &g[at..end]);
        });
        [wanted[0].then_some(d_gate), wanted[1].then_some(d_up)]
    }
}

impl Gated {
    fn of(&self, [gate, up]: &[FlexTensor; 2]) -> FlexTensor {
        let (x, y) = (elements(gate), elements(up));
        let out = pieces::rows(x.len(), 1, |at, out| {
            let end = at + out.len();
            gated(self.0, &x[at..end], &y[at..end], out);
        });
        filled(out, gate.layout().shape().clone())
    }
}
