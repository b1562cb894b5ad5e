//! Softmax of the scores of a block of queries and its gradient, a cube for each query and head, in
//! the place of the scores.

use std::ops::Range;

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};
use cubecl::prelude::*;

use super::super::device::{UNITS, cubes, line, writable};
use super::super::sum::{line_max, line_sum};
use super::super::{Launch, Plain};
use super::Seen;

/// Scores `[batch, kv_heads, group · block, keys]`: products of queries and keys before scale, soft
/// limit and mask.
#[derive(Debug, Clone)]
pub(in crate::kernels::gpu) struct Scores {
    /// Keys that a query sees.
    pub seen: Seen,
    /// Heads of a sample.
    pub heads: usize,
    /// Queries of a head, those of other blocks included.
    pub queries: usize,
    /// Keys before that of the first query.
    pub past: usize,
    /// These queries.
    pub block: Range<usize>,
    /// Factor of the scores.
    pub scale: f32,
    /// Soft limit.
    pub softcap: Option<f32>,
}

impl Scores {
    fn form(&self) -> Form {
        Form {
            seen: self.seen,
            capped: self.softcap.is_some(),
        }
    }

    fn place<R: CubeRuntime>(&self) -> PlaceLaunch<R> {
        PlaceLaunch::new(
            self.heads * self.block.len(),
            self.block.len(),
            self.block.start,
            self.past,
            self.queries,
            self.scale,
            self.softcap.unwrap_or(1.0),
        )
    }
}

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    seen: Seen,
    capped: bool,
}

/// Where rows of scores stand, and what scores are multiplied with.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Place {
    /// Rows of a sample.
    sample: usize,
    /// Rows of a head.
    block: usize,
    /// Query of the first row of a head.
    start: usize,
    past: usize,
    queries: usize,
    scale: f32,
    softcap: f32,
}

/// The weights of the keys, in the place of their scores where nothing else holds them.
#[derive(Debug, Clone)]
pub(in crate::kernels::gpu) struct Softmax(pub Scores);

impl Launch for Softmax {
    const NAME: &'static str = "attention_softmax";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        vec![inputs[0].clone()]
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let Some(scores) = inputs.next().map(writable) else {
            unreachable!("a launch gets the inputs that it was made for")
        };
        // What is not there is not read.
        let firsts = inputs
            .next()
            .map_or_else(|| scores.clone(), into_contiguous);
        let plain = Plain::of(&scores);
        let dtypes = [scores.dtype.into(), firsts.dtype.into()];
        // SAFETY: the kernel goes over rows below the number of rows, columns below the width.
        unsafe {
            softmax::launch_unchecked::<R>(
                &scores.client.clone(),
                cubes(plain.rows()),
                line(),
                scores.clone().into_array_arg(),
                firsts.into_array_arg(),
                plain.rows(),
                plain.width(),
                self.0.place(),
                self.0.form(),
                dtypes,
            );
        }
        vec![scores]
    }
}

/// Scores and the gradients of their weights → weights and gradients of the scores, in the same
/// places.
#[derive(Debug, Clone)]
pub(in crate::kernels::gpu) struct Slopes(pub Scores);

impl Launch for Slopes {
    const NAME: &'static str = "attention_slopes";

    fn outputs(&self, inputs: &[Plain]) -> Vec<Plain> {
        inputs[..2].to_vec()
    }

    fn launch<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let (Some(scores), Some(grads)) = (inputs.next(), inputs.next()) else {
            unreachable!("a launch gets the inputs that it was made for")
        };
        let (scores, grads) = (writable(scores), writable(grads));
        let firsts = inputs
            .next()
            .map_or_else(|| scores.clone(), into_contiguous);
        let plain = Plain::of(&scores);
        let dtypes = [scores.dtype.into(), grads.dtype.into(), firsts.dtype.into()];
        // SAFETY: the kernel goes over rows below the number of rows, columns below the width.
        unsafe {
            slopes::launch_unchecked::<R>(
                &scores.client.clone(),
                cubes(plain.rows()),
                line(),
                scores.clone().into_array_arg(),
                grads.clone().into_array_arg(),
                firsts.into_array_arg(),
                plain.rows(),
                plain.width(),
                self.0.place(),
                self.0.form(),
                dtypes,
            );
        }
        vec![scores, grads]
    }
}

#[cube(launch_unchecked)]
fn softmax<F: Float, A: Float>(
    scores: &mut Array<F>,
    firsts: &Array<A>,
    rows: usize,
    width: usize,
    place: Place,
    #[comptime] form: Form,
    #[define(F, A)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * width;
        let first = first_key(firsts, place, row, form);
        let end = behind_last_key(place, row, width, form);
        let mut shared = SharedMemory::<f32>::new(UNITS as usize);
        let largest = largest_score(scores, &mut shared, start + first, start + end, place, form);
        let mut sum = 0.0f32;
        let mut at = first + UNIT_POS as usize;
        while at < end {
            let score = scored(f32::cast_from(scores[start + at]), place, form);
            sum += (score - largest).exp();
            at += UNITS as usize;
        }
        let total = line_sum(&mut shared, sum, UNITS);
        let mut at = UNIT_POS as usize;
        while at < width {
            let mut weight = 0.0f32;
            if at >= first {
                if at < end {
                    let score = scored(f32::cast_from(scores[start + at]), place, form);
                    weight = (score - largest).exp() / total;
                }
            }
            scores[start + at] = F::cast_from(weight);
            at += UNITS as usize;
        }
    }
}

/// With weights w and their gradients g: `w · (g − Σ w g)`, times the derivative of scale and limit.
#[cube(launch_unchecked)]
fn slopes<F: Float, G: Float, A: Float>(
    scores: &mut Array<F>,
    grads: &mut Array<G>,
    firsts: &Array<A>,
    rows: usize,
    width: usize,
    place: Place,
    #[comptime] form: Form,
    #[define(F, G, A)] _dtypes: [StorageType; 3],
) {
    let row = CUBE_POS;
    if row < rows {
        let start = row * width;
        let first = first_key(firsts, place, row, form);
        let end = behind_last_key(place, row, width, form);
        let mut shared = SharedMemory::<f32>::new(UNITS as usize);
        let largest = largest_score(scores, &mut shared, start + first, start + end, place, form);
        let mut sum = 0.0f32;
        let mut products = 0.0f32;
        let mut at = first + UNIT_POS as usize;
        while at < end {
            let score = scored(f32::cast_from(scores[start + at]), place, form);
            let weight = (score - largest).exp();
            sum += weight;
            products += weight * f32::cast_from(grads[start + at]);
            at += UNITS as usize;
        }
        let total = line_sum(&mut shared, sum, UNITS);
        let mean = line_sum(&mut shared, products, UNITS) / total;
        let mut at = UNIT_POS as usize;
        while at < width {
            let mut weight = 0.0f32;
            let mut slope = 0.0f32;
            if at >= first {
                if at < end {
                    let score = scored(f32::cast_from(scores[start + at]), place, form);
                    weight = (score - largest).exp() / total;
                    slope = weight * (f32::cast_from(grads[start + at]) - mean) * place.scale;
                    if comptime!(form.capped) {
                        let bent = score / place.softcap;
                        slope *= 1.0f32 - bent * bent;
                    }
                }
            }
            scores[start + at] = F::cast_from(weight);
            grads[start + at] = G::cast_from(slope);
            at += UNITS as usize;
        }
    }
}

/// The largest score of the products from one place on to before another.
#[cube]
fn largest_score<F: Float>(
    products: &Array<F>,
    shared: &mut SharedMemory<f32>,
    from: usize,
    to: usize,
    place: Place,
    #[comptime] form: Form,
) -> f32 {
    let mut largest = f32::new(-3.0e38);
    let mut at = from + UNIT_POS as usize;
    while at < to {
        let score = scored(f32::cast_from(products[at]), place, form);
        largest = max(largest, score);
        at += UNITS as usize;
    }
    line_max(shared, largest, UNITS)
}

/// A product of query and key as a score.
#[cube]
fn scored(product: f32, place: Place, #[comptime] form: Form) -> f32 {
    let mut score = product * place.scale;
    if comptime!(form.capped) {
        score = place.softcap * (score / place.softcap).tanh();
    }
    score
}

#[cube]
fn first_key<A: Float>(
    firsts: &Array<A>,
    place: Place,
    row: usize,
    #[comptime] form: Form,
) -> usize {
    let mut first = 0usize.runtime();
    if comptime!(form.seen == Seen::FromFirst) {
        let query = place.start + row % place.block;
        let at = row / place.sample * place.queries + query;
        first = u32::cast_from(firsts[at]) as usize;
    }
    first
}

#[cube]
fn behind_last_key(place: Place, row: usize, width: usize, #[comptime] form: Form) -> usize {
    let mut end = width;
    if comptime!(form.seen != Seen::All) {
        end = place.past + place.start + row % place.block + 1;
    }
    end
}
