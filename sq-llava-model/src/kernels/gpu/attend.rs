//! Attention of one new token, in chunks of keys that are computed side by side and then combined.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, contiguous, cubes, empty, line};
use super::sum::{line_max, line_sum};
use super::{Launch, Plain};

/// Keys of a chunk: one for each unit.
pub(super) const CHUNK: usize = UNITS as usize;

/// Largest head.
const MAX_DIM: usize = 256;

/// One query of each head `[rows, heads, 1, dim]` on the first `keys` keys and values of buffers
/// `[rows, kv_heads, capacity, dim]` → `[rows, heads · dim]`. All keys are seen.
#[derive(Debug, Clone)]
pub(crate) struct Attend {
    /// Keys that the buffers hold.
    pub keys: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Soft limit c: `c · tanh(score / c)`.
    pub softcap: Option<f32>,
}

impl Launch for Attend {
    const NAME: &'static str = "attend";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let [query, keys, values] = inputs else {
            return false;
        };
        if query.shape.num_dims() != 4 || keys.shape.num_dims() != 4 {
            return false;
        }
        let [rows, heads, queries, dim] = query.shape.dims::<4>();
        let [others, kv_heads, capacity, width] = keys.shape.dims::<4>();
        let floats = query.is_float() && keys.is_float();
        let shapes = keys == values && others == rows && width == dim && queries == 1;
        let grouped = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        let held = (1..=capacity).contains(&self.keys);
        floats && shapes && grouped && held && (1..=MAX_DIM).contains(&dim)
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        let [rows, heads, _, dim] = inputs[0].shape.dims::<4>();
        vec![Plain::new([rows, heads * dim], inputs[0].dtype)]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [query, keys, values] = contiguous(inputs);
        let (asked, held) = (Plain::of(&query), Plain::of(&keys));
        let [rows, heads, _, dim] = asked.shape.dims::<4>();
        let [_, kv_heads, capacity, _] = held.shape.dims::<4>();
        let output = empty(
            &query,
            self.outputs(std::slice::from_ref(&asked)).swap_remove(0),
        );
        let chunks = self.keys.div_ceil(CHUNK);
        // Sums that are not yet divided, and behind them the largest score and the sum of weights.
        let parts = match chunks {
            // Written at once.
            1 => output.clone(),
            _ => empty(
                &query,
                Plain::new([rows * heads * chunks, dim + 2], DType::F32),
            ),
        };
        let client = query.client.clone();
        let mut sizes = client.io_optimized_vector_sizes(keys.dtype.size());
        let vector = sizes.find(|&size| dim.is_multiple_of(size)).unwrap_or(1);
        let form = Form {
            dim: dim as u32,
            whole: chunks == 1,
            capped: self.softcap.is_some(),
        };
        let dtypes = [query.dtype.into(), keys.dtype.into(), parts.dtype.into()];
        let result = output.dtype.into();
        // SAFETY: keys are below the number held, entries below the head's width.
        unsafe {
            attend::launch_unchecked::<R>(
                &client,
                cubes(rows * heads * chunks),
                line(),
                vector,
                query.into_array_arg(),
                keys.into_array_arg(),
                values.into_array_arg(),
                parts.clone().into_array_arg(),
                rows * heads * chunks,
                heads,
                heads / kv_heads,
                self.keys,
                capacity,
                chunks,
                self.scale,
                self.softcap.unwrap_or(1.0),
                form,
                dtypes,
            );
            if chunks > 1 {
                combine::launch_unchecked::<R>(
                    &client,
                    cubes((rows * heads * dim).div_ceil(UNITS as usize)),
                    line(),
                    parts.into_array_arg(),
                    output.clone().into_array_arg(),
                    rows * heads * dim,
                    dim,
                    chunks,
                    result,
                );
            }
        }
        vec![output]
    }
}

/// What the kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    dim: u32,
    /// Whether a cube sees all keys and divides by the sum of weights itself.
    whole: bool,
    capped: bool,
}

#[cube(launch_unchecked)]
fn attend<Q: Float, K: Float, P: Float, N: Size>(
    query: &Array<Vector<Q, N>>,
    keys: &Array<Vector<K, N>>,
    values: &Array<Vector<K, N>>,
    parts: &mut Array<P>,
    pieces: usize,
    heads: usize,
    group: usize,
    count: usize,
    capacity: usize,
    chunks: usize,
    scale: f32,
    softcap: f32,
    #[comptime] form: Form,
    #[define(Q, K, P)] _dtypes: [StorageType; 3],
) {
    let piece = CUBE_POS;
    if piece < pieces {
        let dim = comptime!(form.dim as usize);
        let n = N::value().comptime();
        let vectors = comptime!(dim / n);
        let head = piece / chunks;
        let first = piece % chunks * CHUNK;
        let row = head / heads;
        let kv_head = row * (heads / group) + head % heads / group;
        let start = kv_head * capacity + first;
        let unit = UNIT_POS as usize;
        let held = min(count - first, CHUNK);

        let mut score = f32::new(-3.0e38);
        if unit < held {
            score = dot(
                query,
                keys,
                head * vectors,
                (start + unit) * vectors,
                vectors,
            ) * scale;
            if comptime!(form.capped) {
                score = softcap * (score / softcap).tanh();
            }
        }
        let mut shared = SharedMemory::<f32>::new(CHUNK);
        let largest = line_max(&mut shared, score, UNITS);
        let mut weight = 0.0f32;
        if unit < held {
            weight = (score - largest).exp();
        }
        let mut weights = SharedMemory::<f32>::new(CHUNK);
        weights[unit] = weight;
        let total = line_sum(&mut shared, weight, UNITS);

        // Each unit takes one vector of the head for some of the keys.
        let groups = comptime!(CHUNK / vectors);
        let mut sums = SharedMemory::<f32>::new(CHUNK * n);
        let column = unit % vectors;
        let mut key = unit / vectors;
        let mut sum = Vector::<f32, N>::new(0.0f32);
        if key < groups {
            while key < held {
                let value = Vector::<f32, N>::cast_from(values[(start + key) * vectors + column]);
                sum += value * Vector::new(weights[key]);
                key += groups;
            }
        }
        #[unroll]
        for i in 0..n {
            sums[unit * n + i] = sum[i];
        }
        sync_cube();
        if unit < dim {
            let mut entry = 0.0f32;
            for g in 0..groups {
                entry += sums[g * dim + unit];
            }
            if comptime!(form.whole) {
                parts[piece * dim + unit] = P::cast_from(entry / total);
            } else {
                parts[piece * (dim + 2) + unit] = P::cast_from(entry);
            }
        }
        if comptime!(!form.whole) {
            if unit == 0 {
                parts[piece * (dim + 2) + dim] = P::cast_from(largest);
                parts[piece * (dim + 2) + dim + 1] = P::cast_from(total);
            }
        }
    }
}

#[cube]
fn dot<Q: Float, K: Float, N: Size>(
    query: &Array<Vector<Q, N>>,
    keys: &Array<Vector<K, N>>,
    asked: usize,
    held: usize,
    #[comptime] vectors: usize,
) -> f32 {
    let mut sums = Vector::<f32, N>::new(0.0f32);
    for i in 0..vectors {
        let key = Vector::<f32, N>::cast_from(keys[held + i]);
        sums += Vector::<f32, N>::cast_from(query[asked + i]) * key;
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..N::value() {
        sum += sums[i];
    }
    sum
}

/// Chunks of a head as one.
#[cube(launch_unchecked)]
fn combine<Q: Float>(
    parts: &Array<f32>,
    output: &mut Array<Q>,
    elements: usize,
    dim: usize,
    chunks: usize,
    #[define(Q)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < elements {
        let entry = ABSOLUTE_POS % dim;
        let first = ABSOLUTE_POS / dim * chunks;
        let mut largest = f32::new(-3.0e38);
        for chunk in 0..chunks {
            largest = max(largest, parts[(first + chunk) * (dim + 2) + dim]);
        }
        let mut sum = 0.0f32;
        let mut total = 0.0f32;
        for chunk in 0..chunks {
            let part = (first + chunk) * (dim + 2);
            let weight = (parts[part + dim] - largest).exp();
            sum += parts[part + entry] * weight;
            total += parts[part + dim + 1] * weight;
        }
        output[ABSOLUTE_POS] = Q::cast_from(sum / total);
    }
}
