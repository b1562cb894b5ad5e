//! The likeliest token of each row of logits, so that one number a row comes to the host.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, contiguous, cubes, empty, line};
use super::{Launch, Plain};

/// In place of an id: no token may be chosen.
pub(crate) const NONE_LEFT: i64 = -1;

/// In place of an id: a logit is NaN or infinite.
pub(crate) const NOT_FINITE: i64 = -2;

/// Logits `[n, vocabulary]` and, of each token, whether it is never chosen (0 or 1) `[vocabulary]`
/// → the place of the largest logit in each row, the first of equals, or one of the numbers above.
/// `[n]`, i32
#[derive(Debug, Clone)]
pub(crate) struct Likeliest;

impl Launch for Likeliest {
    const NAME: &'static str = "likeliest";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let [logits, barred] = inputs else {
            return false;
        };
        let small = i32::try_from(logits.width()).is_ok();
        let fits = logits.shape.num_dims() == 2 && barred.shape.num_elements() == logits.width();
        logits.is_float() && barred.is_float() && small && fits && logits.shape.num_elements() > 0
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![Plain::new([inputs[0].rows()], DType::I32)]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [logits, barred] = contiguous(inputs);
        let plain = Plain::of(&logits);
        let output = empty(&logits, Plain::new([plain.rows()], DType::I32));
        let dtypes = [logits.dtype.into(), barred.dtype.into()];
        // SAFETY: the kernel goes over rows below the number of rows, columns below the width.
        unsafe {
            likeliest::launch_unchecked::<R>(
                &logits.client.clone(),
                cubes(plain.rows()),
                line(),
                logits.into_array_arg(),
                barred.into_array_arg(),
                output.clone().into_array_arg(),
                plain.rows(),
                plain.width(),
                dtypes,
            );
        }
        vec![output]
    }
}

#[cube(launch_unchecked)]
fn likeliest<F: Float, M: Float>(
    logits: &Array<F>,
    barred: &Array<M>,
    output: &mut Array<i32>,
    rows: usize,
    width: usize,
    #[define(F, M)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * width;
        let unit = UNIT_POS as usize;
        let mut best = 0.0f32;
        let mut place = i32::new(-1);
        let mut infinite = 0u32;
        let mut at = unit;
        while at < width {
            let logit = f32::cast_from(logits[start + at]);
            // By its bits: compilers may take numbers for finite.
            if u32::reinterpret(logit) & 0x7f80_0000u32 == 0x7f80_0000u32 {
                infinite = 1u32;
            }
            if f32::cast_from(barred[at]) == 0.0f32 && (place < 0 || logit > best) {
                best = logit;
                place = at as i32;
            }
            at += UNITS as usize;
        }
        let mut values = SharedMemory::<f32>::new(UNITS as usize);
        let mut places = SharedMemory::<i32>::new(UNITS as usize);
        let mut wrong = SharedMemory::<u32>::new(UNITS as usize);
        values[unit] = best;
        places[unit] = place;
        wrong[unit] = infinite;
        let mut step = comptime!(UNITS as usize / 2).runtime();
        while step > 0 {
            sync_cube();
            if unit < step {
                let (value, other) = (values[unit + step], places[unit + step]);
                let own = places[unit];
                let equal = value == values[unit] && other < own;
                if other >= 0 && (own < 0 || value > values[unit] || equal) {
                    values[unit] = value;
                    places[unit] = other;
                }
                wrong[unit] = wrong[unit] | wrong[unit + step];
            }
            step /= 2;
        }
        if unit == 0 {
            let mut chosen = places[0];
            if wrong[0] == 1u32 {
                chosen = i32::new(-2);
            }
            output[row] = chosen;
        }
    }
}
