//! Sums of the squares of several tensors' elements in one launch, as the norm of all gradients needs.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, cubes, empty, line};
use super::sum::line_sum;
use super::{Launch, Plain};

/// Elements that one cube sums.
const CHUNK: usize = 16 * UNITS as usize;

/// Tensors of one launch.
pub(super) const TENSORS: usize = 16;

/// Buffers of a launch that are not inputs: the sums, shapes and numbers.
const SPARE: usize = 3;

/// Tensors of any shapes in f32 → the sum of squares of each chunk of each, `[chunks of all]`
#[derive(Debug, Clone)]
pub(crate) struct SquareSums;

/// Cubes that a tensor takes.
fn chunks(plain: &Plain) -> usize {
    plain.shape.num_elements().div_ceil(CHUNK)
}

impl Launch for SquareSums {
    const NAME: &'static str = "square_sums";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let fits = |plain: &Plain| plain.dtype == DType::F32 && plain.shape.num_elements() > 0;
        !inputs.is_empty() && inputs.iter().all(fits)
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        let all: usize = inputs.iter().map(chunks).sum();
        vec![Plain::new([all], DType::F32)]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let plain: Vec<Plain> = inputs.iter().map(Plain::of).collect();
        let sums = empty(&inputs[0], self.outputs(&plain).swap_remove(0));
        let bindings = sums.client.properties().hardware.max_bindings as usize;
        let together = bindings.saturating_sub(SPARE).clamp(1, TENSORS);
        let mut before = 0;
        for (inputs, plain) in inputs.chunks(together).zip(plain.chunks(together)) {
            let count = plain.iter().map(chunks).sum();
            let values = inputs.iter().cloned().map(into_contiguous);
            let values: SequenceArg<R, Array<f32>> =
                values.map(|tensor| tensor.into_array_arg()).collect();
            // SAFETY: a cube reads below its tensor's number of elements and writes its own sum.
            unsafe {
                square_sums::launch_unchecked::<R>(
                    &sums.client,
                    cubes(count),
                    line(),
                    values,
                    sums.clone().into_array_arg(),
                    before,
                    inputs.len(),
                );
            }
            before += count;
        }
        vec![sums]
    }
}

#[cube(launch_unchecked)]
fn square_sums(
    values: &Sequence<Array<f32>>,
    sums: &mut Array<f32>,
    before: usize,
    #[comptime] tensors: usize,
) {
    let mut sum = 0.0f32;
    // The tensor's first cube.
    let mut start = 0usize;
    #[unroll]
    for i in 0..tensors {
        let own = values.index(i);
        // Rounded up.
        let filled = own.len() + (CHUNK - 1);
        let end = start + filled / CHUNK;
        if CUBE_POS >= start && CUBE_POS < end {
            let first = (CUBE_POS - start) * CHUNK;
            let mut behind = first + CHUNK;
            if behind > own.len() {
                behind = own.len();
            }
            let mut at = first + UNIT_POS as usize;
            while at < behind {
                let value = own[at];
                sum += value * value;
                at += UNITS as usize;
            }
        }
        start = end;
    }
    let mut shared = SharedMemory::<f32>::new(UNITS as usize);
    let whole = line_sum(&mut shared, sum, UNITS);
    if UNIT_POS == 0 && CUBE_POS < start {
        sums[before + CUBE_POS] = whole;
    }
}
