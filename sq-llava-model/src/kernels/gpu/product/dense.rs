//! A matrix of packed integers as floats, for products of many rows.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::columns::unpacked;
use super::{BLOCK, bits_of, parts, rows_apart};
use crate::kernels::gpu::device::{UNITS, cubes, empty, line};
use crate::kernels::gpu::{Launch, Plain};

/// Integers of one vector that is written.
const VECTOR: usize = 4;

/// Packed integers `[rows, width]` → the same in floats, each the product of integer and scale in f32,
/// rounded once.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// Dtype of the floats.
    pub dtype: DType,
}

impl Launch for Dense {
    const NAME: &'static str = "dense";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let [weight] = inputs else {
            return false;
        };
        let packed = match &weight.dtype {
            DType::QFloat(scheme) => bits_of(scheme).is_some(),
            _ => false,
        };
        packed && weight.rows() > 0 && weight.width().is_multiple_of(BLOCK)
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![Plain::new(inputs[0].shape.clone(), self.dtype)]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let plain = Plain::of(&inputs[0]);
        let output = empty(&inputs[0], Plain::new(plain.shape.clone(), self.dtype));
        let (words, scales, bits) = parts(&inputs, &inputs[0]);
        let (words, word_stride) = rows_apart(words, 1);
        let (scales, scale_stride) = rows_apart(scales, 1);
        let count = plain.shape.num_elements() * bits as usize / 32;
        let dtypes = [words[0].dtype, scales[0].dtype, self.dtype].map(StorageType::from);
        // SAFETY: a unit below the number of words reads its word and writes what that holds.
        unsafe {
            dense::launch_unchecked::<R>(
                &output.client.clone(),
                cubes(count.div_ceil(UNITS as usize)),
                line(),
                VECTOR,
                words[0].clone().into_array_arg(),
                scales[0].clone().into_array_arg(),
                output.clone().into_array_arg(),
                plain.width(),
                word_stride,
                scale_stride,
                count,
                bits,
                dtypes,
            );
        }
        vec![output]
    }
}

#[cube(launch_unchecked)]
fn dense<W: Numeric, S: Float, F: Float, N: Size>(
    words: &Array<W>,
    scales: &Array<S>,
    output: &mut Array<Vector<F, N>>,
    width: usize,
    word_stride: usize,
    scale_stride: usize,
    count: usize,
    #[comptime] bits: u32,
    #[define(W, S, F)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS < count {
        let bits = comptime!(bits as usize);
        let held = comptime!(32 / bits);
        let across = width / held;
        let row = ABSOLUTE_POS / across;
        let at = ABSOLUTE_POS % across;
        let word = u32::cast_from(words[row * word_stride + at]);
        let factor = f32::cast_from(scales[row * scale_stride + at * held / BLOCK]);
        let to = (row * width + at * held) / 4;
        #[unroll]
        for h in 0..comptime!(held / 4) {
            let mut values = Vector::<F, N>::empty();
            #[unroll]
            for i in 0..comptime!(4usize) {
                let value = unpacked(word, comptime!((h * 4 + i) as u32), bits) * factor;
                values[i] = F::cast_from(value);
            }
            output[to + h] = values;
        }
    }
}
