//! Activation functions, alone and as the gate of a product.
#![allow(unstable_name_collisions)] // `erf` is CubeCL's, whatever the standard library adds.

use burn::tensor::ops::FloatTensor;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, contiguous, cubes, empty, line};
use super::{Device, Kernel, Launch, Plain};
use crate::kernels::activation::Activation;

/// An activation function, element by element.
#[derive(Debug, Clone)]
pub(crate) struct Pointwise(pub Activation);

/// `f(gate) · up`, element by element.
#[derive(Debug, Clone)]
pub(crate) struct Gated(pub Activation);

impl Kernel<1> for Pointwise {
    fn accepts(&self, [x]: &[Plain; 1]) -> bool {
        x.is_float() && x.shape.num_elements() > 0
    }

    fn forward<D: Device>(&self, inputs: [FloatTensor<D>; 1]) -> FloatTensor<D> {
        D::launch_one(&Elements(self.0, Work::Value), inputs.into())
    }

    fn forward_saving<D: Device>(
        &self,
        [x]: [FloatTensor<D>; 1],
        _: [bool; 1],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        (self.forward::<D>([x.clone()]), vec![x])
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        [wanted]: [bool; 1],
    ) -> [Option<FloatTensor<D>>; 1] {
        let inputs = saved.into_iter().chain([grad]).collect();
        [wanted.then(|| D::launch_one(&Elements(self.0, Work::Slope), inputs))]
    }
}

impl Kernel<2> for Gated {
    fn accepts(&self, [gate, up]: &[Plain; 2]) -> bool {
        gate.is_float() && gate == up && gate.shape.num_elements() > 0
    }

    fn forward<D: Device>(&self, inputs: [FloatTensor<D>; 2]) -> FloatTensor<D> {
        D::launch_one(&Elements(self.0, Work::Gated), inputs.into())
    }

    fn forward_saving<D: Device>(
        &self,
        [gate, up]: [FloatTensor<D>; 2],
        _: [bool; 2],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        let output = self.forward::<D>([gate.clone(), up.clone()]);
        (output, vec![gate, up])
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<D>>; 2] {
        let inputs = saved.into_iter().chain([grad]).collect();
        let found = D::launch(&Elements(self.0, Work::GatedSlopes), inputs);
        match <[_; 2]>::try_from(found) {
            Ok([gate, up]) => [wanted[0].then_some(gate), wanted[1].then_some(up)],
            Err(_) => unreachable!("the launch has two outputs"),
        }
    }
}

/// What is computed of each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// `f(x)`
    Value,
    /// `f'(x) · g` of x and g.
    Slope,
    /// `f(x) · u` of x and u.
    Gated,
    /// `f'(x) · u · g` and `f(x) · g` of x, u and g.
    GatedSlopes,
}

#[derive(Debug, Clone)]
pub(super) struct Elements(pub Activation, pub Work);

impl Launch for Elements {
    const NAME: &'static str = "activation";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        match self.1 {
            Work::GatedSlopes => vec![inputs[0].clone(), inputs[0].clone()],
            _ => vec![inputs[0].clone()],
        }
    }

    fn launch<R: CubeRuntime>(&self, mut inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let plain = Plain::of(&inputs[0]);
        // What is not there is not read.
        let last = inputs
            .last()
            .map_or_else(|| inputs[0].clone(), Clone::clone);
        inputs.resize(3, last);
        let [x, second, third] = contiguous(inputs);
        let outputs: Vec<_> = self
            .outputs(std::slice::from_ref(&plain))
            .into_iter()
            .map(|output| empty(&x, output))
            .collect();
        let elements = plain.shape.num_elements();
        let dtypes = [x.dtype.into(), second.dtype.into(), third.dtype.into()];
        let client = x.client.clone();
        let extra = outputs.last().cloned().unwrap_or_else(|| x.clone());
        // SAFETY: units below the number of elements read and write their own element alone.
        unsafe {
            elements_of::launch_unchecked::<R>(
                &client,
                cubes(elements.div_ceil(UNITS as usize)),
                line(),
                x.into_array_arg(),
                second.into_array_arg(),
                third.into_array_arg(),
                outputs[0].clone().into_array_arg(),
                extra.into_array_arg(),
                elements,
                self.0,
                self.1,
                dtypes,
            );
        }
        outputs
    }
}

#[cube(launch_unchecked)]
fn elements_of<F: Float, S: Float, T: Float>(
    input: &Array<F>,
    second: &Array<S>,
    third: &Array<T>,
    output: &mut Array<F>,
    extra: &mut Array<F>,
    elements: usize,
    #[comptime] act: Activation,
    #[comptime] work: Work,
    #[define(F, S, T)] _dtypes: [StorageType; 3],
) {
    let at = ABSOLUTE_POS;
    if at < elements {
        let x = f32::cast_from(input[at]);
        match work {
            Work::Value => {
                output[at] = F::cast_from(value(x, act));
            }
            Work::Slope => {
                output[at] = F::cast_from(slope(x, act) * f32::cast_from(second[at]));
            }
            Work::Gated => {
                output[at] = F::cast_from(value(x, act) * f32::cast_from(second[at]));
            }
            Work::GatedSlopes => {
                let up = f32::cast_from(second[at]);
                let grad = f32::cast_from(third[at]);
                output[at] = F::cast_from(slope(x, act) * up * grad);
                extra[at] = F::cast_from(value(x, act) * grad);
            }
        }
    }
}

/// `√(2/π)`.
const ROOT: f32 = 0.797_884_6;
/// `1/√(2π)`.
const DENSITY: f32 = 0.398_942_3;

/// `f(x)`.
#[cube]
pub(super) fn value(x: f32, #[comptime] act: Activation) -> f32 {
    match act {
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(1.702f32 * x),
        Activation::Gelu => x * normal(x),
        Activation::GeluPytorchTanh => x * sigmoid(2.0f32 * ROOT * (x + 0.044_715f32 * x * x * x)),
        Activation::Relu => max(x, 0.0f32),
    }
}

/// `f'(x)`.
#[cube]
fn slope(x: f32, #[comptime] act: Activation) -> f32 {
    match act {
        Activation::Silu => {
            let s = sigmoid(x);
            s * (1.0f32 + x * (1.0f32 - s))
        }
        Activation::QuickGelu => {
            let s = sigmoid(1.702f32 * x);
            s * (1.0f32 + 1.702f32 * x * (1.0f32 - s))
        }
        Activation::Gelu => normal(x) + x * DENSITY * (-0.5f32 * x * x).exp(),
        Activation::GeluPytorchTanh => {
            // (1 + tanh u) / 2 = σ(2u)
            let s = sigmoid(2.0f32 * ROOT * (x + 0.044_715f32 * x * x * x));
            let inner = 2.0f32 * ROOT * (1.0f32 + 3.0f32 * 0.044_715f32 * x * x);
            s + x * s * (1.0f32 - s) * inner
        }
        Activation::Relu => f32::cast_from(x > 0.0f32),
    }
}

#[cube]
fn sigmoid(x: f32) -> f32 {
    // The exponential of a large number is infinite, its reciprocal zero, as it should be; some
    // drivers do without infinity.
    1.0f32 / (1.0f32 + (-max(x, -87.0f32)).exp())
}

/// Distribution function of the normal distribution.
#[cube]
fn normal(x: f32) -> f32 {
    0.5f32 * (1.0f32 + (x * 0.707_106_77f32).erf())
}
