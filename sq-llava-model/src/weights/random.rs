//! Random weights in the target dtype, to develop with models whose checkpoint is not at hand.

use burn::module::{Module, Param};
use burn::tensor::{
    DType, Distribution, Element, FloatDType, Tensor, TensorData, backend::Backend,
};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use sq_llava_data::mix::{fnv1a, splitmix64};

use super::layout::canonical;
use super::write::file_dtype;
use crate::error::ModelError;
use crate::kernels::blocks::is_native;
use crate::ops::params::{ParamMapper, ParamPath, map_params};
use crate::ops::settle::settle;
use crate::sq_llava::SqLlava;

/// Values drawn at a time.
const CHUNK: usize = 4096;
/// Half width of a uniform draw of deviation 0.02, that of LLaMA's and CLIP's initialisation.
const BOUND: f32 = 0.034_641_016;

/// Fills every parameter tensor by tensor, directly in `dtype`: norms with ones, biases with
/// zeros, the rest with uniform numbers of deviation 0.02. The values depend on the seed and the
/// parameter's name alone, except on devices with a memory of their own: these draw them with
/// their own generator.
///
/// # Errors
/// If `dtype` is not f32, f16 or bf16.
pub fn init_random<B: Backend>(
    model: SqLlava<B>,
    dtype: FloatDType,
    seed: u64,
) -> Result<SqLlava<B>, ModelError> {
    if !is_native::<B>() {
        model
            .devices()
            .iter()
            .for_each(|device| B::seed(device, seed));
    }
    let mut drawer = Drawer {
        dtype: file_dtype(dtype)?,
        seed,
    };
    Ok(map_params(model, &mut drawer))
}

struct Drawer {
    dtype: DType,
    seed: u64,
}

impl<B: Backend> ParamMapper<B> for Drawer {
    fn map<const D: usize>(
        &mut self,
        path: &ParamPath,
        param: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>> {
        let name = canonical(&path.fields());
        let shape: Vec<usize> = param.lazy_shape().to_vec();
        let count = shape.iter().product();
        let draw = if name.ends_with("bias") || name.ends_with("sim_beta") {
            Draw::Constant(0.0)
        } else if D == 1 && !name.ends_with("class_embedding") || name.ends_with("sim_alpha") {
            Draw::Constant(1.0)
        } else {
            // With the name, so that no two tensors are alike.
            Draw::Uniform(splitmix64(self.seed ^ fnv1a(name.as_bytes())))
        };
        let device = param.lazy_device();
        if !is_native::<B>() {
            let values = B::memory_persistent_allocations(&device, shape, |shape| match draw {
                Draw::Constant(value) => Tensor::full(shape, value, (&device, self.dtype)),
                Draw::Uniform(_) => {
                    let bounds = Distribution::Uniform(f64::from(-BOUND), f64::from(BOUND));
                    Tensor::random(shape, bounds, (&device, self.dtype))
                }
            });
            return Param::initialized(param.id, values);
        }
        let data = match self.dtype {
            DType::F16 => fill(count, f16::ZERO, draw, |v, out| {
                out.convert_from_f32_slice(v)
            }),
            DType::BF16 => fill(count, bf16::ZERO, draw, |v, out| {
                out.convert_from_f32_slice(v)
            }),
            _ => fill(count, 0.0f32, draw, |v, out| out.copy_from_slice(v)),
        };
        let data = TensorData {
            shape: shape.into(),
            ..data
        };
        Param::initialized(param.id, settle(data, &device, self.dtype))
    }
}

#[derive(Clone, Copy)]
enum Draw {
    Constant(f32),
    Uniform(u64),
}

/// `count` values on all cores; what a chunk holds does not depend on their number.
fn fill<T: Element + Send>(
    count: usize,
    zero: T,
    draw: Draw,
    narrow: impl Fn(&[f32], &mut [T]) + Sync,
) -> TensorData {
    let mut out = vec![zero; count];
    let chunks = out.par_chunks_mut(CHUNK).enumerate();
    chunks.for_each(|(chunk, out)| {
        let mut wide = [0.0f32; CHUNK];
        let wide = &mut wide[..out.len()];
        match draw {
            Draw::Constant(value) => wide.fill(value),
            Draw::Uniform(seed) => uniform(splitmix64(seed ^ chunk as u64), wide),
        }
        narrow(wide, out);
    });
    TensorData::new(out, [count])
}

/// Uniform numbers in ±[`BOUND`]: xorshift64 (Marsaglia 2003), four 16-bit draws a step.
fn uniform(seed: u64, out: &mut [f32]) {
    let mut state = seed | 1;
    for values in out.chunks_mut(4) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for (i, value) in values.iter_mut().enumerate() {
            let bits = (state >> (16 * i)) as u16 as i16;
            *value = f32::from(bits) * (BOUND / 32768.0);
        }
    }
}
