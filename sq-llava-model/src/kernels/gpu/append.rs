//! One new token's queries, keys and values: rotated, and put into the cache, in one launch.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::device::{UNITS, cubes, empty, line};
use super::{Launch, Plain};

/// Queries `[rows, heads · dim]`, keys and values `[rows, kv_heads · dim]`, the cache's buffers of
/// keys and values `[rows, kv_heads, capacity, dim]`, and, where it rotates, cosines and sines
/// `[rows or 1, 1, 1, rotated]` → rotated queries `[rows, heads, 1, dim]` and the buffers, which are
/// written in place where nothing else holds them.
#[derive(Debug, Clone)]
pub(crate) struct Append {
    /// Tokens that the cache holds.
    pub past: usize,
    /// Whether cosines and sines are inputs.
    pub rotates: bool,
}

impl Launch for Append {
    const NAME: &'static str = "append";

    fn accepts(&self, inputs: &[Plain]) -> bool {
        let [queries, keys, values, kept, kept_values, angles @ ..] = inputs else {
            return false;
        };
        let [rows, heads, capacity, dim] = kept.shape.dims::<4>();
        let width = |plain: &Plain| plain.width() == heads * dim && plain.rows() == rows;
        let whole = queries.width().is_multiple_of(dim) && queries.rows() == rows;
        let fits = width(keys) && width(values) && kept == kept_values && self.past < capacity;
        let turns = match angles {
            [cos, sin] => {
                let each = cos.rows() == 1 || cos.rows() == rows;
                let even = cos.width() <= dim && cos.width().is_multiple_of(2);
                cos == sin && each && even && self.rotates
            }
            _ => angles.is_empty() && !self.rotates,
        };
        inputs.iter().all(Plain::is_float) && keys.dtype == values.dtype && whole && fits && turns
    }

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        let (queries, kept) = (&inputs[0], &inputs[3]);
        let dim = kept.width();
        let heads = queries.width() / dim;
        let turned = Plain::new([queries.rows(), heads, 1, dim], queries.dtype);
        vec![turned, kept.clone(), kept.clone()]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let plain: Vec<Plain> = inputs.iter().map(Plain::of).collect();
        let turned = empty(&inputs[0], self.outputs(&plain).swap_remove(0));
        let mut inputs = inputs.into_iter();
        let mut next = || match inputs.next() {
            Some(input) => input,
            None => unreachable!("a launch gets the inputs that it was made for"),
        };
        let [queries, keys, values] = [next(), next(), next()].map(into_contiguous);
        let [kept, kept_values] = [next(), next()]
            .map(into_contiguous)
            .map(|buffer| match buffer.can_mut() {
                true => buffer,
                false => buffer.copy(),
            });
        let (cos, sin) = match self.rotates {
            true => (into_contiguous(next()), into_contiguous(next())),
            // Not read.
            false => (queries.clone(), queries.clone()),
        };
        let [rows, kv_heads, capacity, dim] = plain[3].shape.dims::<4>();
        let heads = plain[0].width() / dim;
        let rotated = if self.rotates { plain[5].width() } else { 0 };
        let own = rows > 1 && self.rotates && plain[5].shape[0] == rows;
        let elements = rows * (heads + 2 * kv_heads) * dim;
        let of = |tensor: &CubeTensor<R>| StorageType::from(tensor.dtype);
        let dtypes = [&queries, &keys, &kept, &cos].map(of);
        let client = queries.client.clone();
        // SAFETY: a unit below the number of entries reads and writes its own, inside a head.
        unsafe {
            append::launch_unchecked::<R>(
                &client,
                cubes(elements.div_ceil(UNITS as usize)),
                line(),
                queries.into_array_arg(),
                keys.into_array_arg(),
                values.into_array_arg(),
                cos.into_array_arg(),
                sin.into_array_arg(),
                turned.clone().into_array_arg(),
                kept.clone().into_array_arg(),
                kept_values.clone().into_array_arg(),
                elements,
                heads,
                kv_heads,
                dim,
                rotated,
                capacity,
                self.past,
                own,
                dtypes,
            );
        }
        vec![turned, kept, kept_values]
    }
}

#[cube(launch_unchecked)]
fn append<Q: Float, K: Float, C: Float, A: Float>(
    queries: &Array<Q>,
    keys: &Array<K>,
    values: &Array<K>,
    cos: &Array<A>,
    sin: &Array<A>,
    turned: &mut Array<Q>,
    kept: &mut Array<C>,
    kept_values: &mut Array<C>,
    elements: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    rotated: usize,
    capacity: usize,
    past: usize,
    #[comptime] own: bool,
    #[define(Q, K, C, A)] _dtypes: [StorageType; 4],
) {
    if ABSOLUTE_POS < elements {
        let entry = ABSOLUTE_POS % dim;
        let head = ABSOLUTE_POS / dim % (heads + 2 * kv_heads);
        let row = ABSOLUTE_POS / (dim * (heads + 2 * kv_heads));
        let mut angle = entry;
        if own {
            angle += row * rotated;
        }
        if head < heads {
            let from = (row * heads + head) * dim;
            let value = rotate(queries, cos, sin, from, entry, rotated, angle);
            turned[from + entry] = Q::cast_from(value);
        } else if head < heads + kv_heads {
            let head = head - heads;
            let from = (row * kv_heads + head) * dim;
            let value = rotate(keys, cos, sin, from, entry, rotated, angle);
            let to = ((row * kv_heads + head) * capacity + past) * dim;
            kept[to + entry] = C::cast_from(value);
        } else {
            let head = head - heads - kv_heads;
            let from = (row * kv_heads + head) * dim;
            let to = ((row * kv_heads + head) * capacity + past) * dim;
            kept_values[to + entry] = C::cast_from(values[from + entry]);
        }
    }
}

/// An entry of a head, rotated with its partner.
#[cube]
fn rotate<F: Float, A: Float>(
    heads: &Array<F>,
    cos: &Array<A>,
    sin: &Array<A>,
    from: usize,
    entry: usize,
    rotated: usize,
    angle: usize,
) -> f32 {
    let mut value = f32::cast_from(heads[from + entry]);
    if entry < rotated {
        let half = rotated / 2;
        let mut other = 0.0f32;
        if entry < half {
            other -= f32::cast_from(heads[from + entry + half]);
        } else {
            other += f32::cast_from(heads[from + entry - half]);
        }
        value = value * f32::cast_from(cos[angle]) + other * f32::cast_from(sin[angle]);
    }
    value
}
