//! Rotary positions, a unit for each pair of entries.

use burn::tensor::ops::FloatTensor;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, cubes, empty, line};
use super::{Device, Kernel, Launch, Plain, fixed};

/// The first `rotated` entries of heads `[batch, heads, tokens, width]` turned by angles whose
/// cosines and sines are `[batch or 1, 1, tokens, rotated]`; the others stay.
#[derive(Debug, Clone)]
pub(crate) struct Rotate;

impl Kernel<3> for Rotate {
    fn accepts(&self, [x, cos, sin]: &[Plain; 3]) -> bool {
        let known = x.is_float() && cos.is_float() && cos == sin && x.shape.num_elements() > 0;
        if !known || x.shape.num_dims() != 4 || cos.shape.num_dims() != 4 {
            return false;
        }
        let [batch, _, tokens, width] = x.shape.dims::<4>();
        let [b, one, t, d] = cos.shape.dims::<4>();
        (b == 1 || b == batch) && one == 1 && t == tokens && d <= width && d.is_multiple_of(2)
    }

    fn forward<D: Device>(&self, inputs: [FloatTensor<D>; 3]) -> FloatTensor<D> {
        D::launch_one(&Turn { back: false }, inputs.into())
    }

    fn forward_saving<D: Device>(
        &self,
        [x, cos, sin]: [FloatTensor<D>; 3],
        _: [bool; 3],
    ) -> (FloatTensor<D>, Vec<FloatTensor<D>>) {
        let saved = vec![cos.clone(), sin.clone()];
        (self.forward::<D>([x, cos, sin]), saved)
    }

    fn backward<D: Device>(
        &self,
        saved: Vec<FloatTensor<D>>,
        grad: FloatTensor<D>,
        [wanted, ..]: [bool; 3],
    ) -> [Option<FloatTensor<D>>; 3] {
        let inputs = std::iter::once(grad).chain(saved).collect();
        let input = wanted.then(|| D::launch_one(&Turn { back: true }, inputs));
        // Angles are made of positions, which take no gradient.
        [input, None, None]
    }
}

/// Forwards, or the gradient.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    /// The gradient.
    pub back: bool,
}

impl Launch for Turn {
    const NAME: &'static str = "rotate";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, cos, sin] = fixed(inputs);
        let (cos, sin) = (into_contiguous(cos), into_contiguous(sin));
        let plain = Plain::of(&x);
        let output = empty(&x, plain.clone());
        // A unit for each pair, and one for each entry that stays.
        let angles = Plain::of(&cos);
        let units = plain.width() - angles.width() / 2;
        let elements = plain.rows() * units;
        let shared = angles.shape[0] == 1;
        let dtypes = [x.dtype.into(), cos.dtype.into()];
        let client = x.client.clone();
        // SAFETY: units below the number of pairs and staying entries read and write those alone.
        unsafe {
            turn::launch_unchecked::<R>(
                &client,
                cubes(elements.div_ceil(UNITS as usize)),
                line(),
                // Heads come as a view of tokens: read by strides, not copied.
                x.into_tensor_arg(),
                cos.into_array_arg(),
                sin.into_array_arg(),
                output.clone().into_tensor_arg(),
                elements,
                angles.width() / 2,
                self.back,
                shared,
                dtypes,
            );
        }
        vec![output]
    }
}

#[cube(launch_unchecked)]
fn turn<F: Float, A: Float>(
    input: &Tensor<F>,
    cos: &Array<A>,
    sin: &Array<A>,
    output: &mut Tensor<F>,
    elements: usize,
    half: usize,
    #[comptime] back: bool,
    #[comptime] shared: bool,
    #[define(F, A)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < elements {
        let width = input.shape(3);
        let units = width - half;
        let unit = ABSOLUTE_POS % units;
        let row = ABSOLUTE_POS / units;
        let token = row % input.shape(2);
        let head = row / input.shape(2) % input.shape(1);
        let sample = row / (input.shape(2) * input.shape(1));
        let from = sample * input.stride(0) + head * input.stride(1) + token * input.stride(2);
        let step = input.stride(3);
        let to = row * width;
        if unit < half {
            let mut angle = token;
            if !shared {
                angle += sample * input.shape(2);
            }
            let angle = angle * 2 * half + unit;
            let low = f32::cast_from(input[from + unit * step]);
            let high = f32::cast_from(input[from + (unit + half) * step]);
            let (cos_low, cos_high) = (
                f32::cast_from(cos[angle]),
                f32::cast_from(cos[angle + half]),
            );
            let (sin_low, sin_high) = (
                f32::cast_from(sin[angle]),
                f32::cast_from(sin[angle + half]),
            );
            if back {
                output[to + unit] = F::cast_from(low * cos_low + high * sin_high);
                output[to + unit + half] = F::cast_from(high * cos_high - low * sin_low);
            } else {
                output[to + unit] = F::cast_from(low * cos_low - high * sin_low);
                output[to + unit + half] = F::cast_from(high * cos_high + low * sin_high);
            }
        } else {
            output[to + unit + half] = input[from + (unit + half) * step];
        }
    }
}
