//! What a unit computes: its part of a column of the result, for all rows.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::super::activation::value;
use super::super::device::UNITS;
use super::super::sum::line_sum;
use super::{BLOCK, Form};

#[cube(launch_unchecked)]
pub(super) fn row_product<X: Float, W: Numeric, S: Float, G: Float, B: Float, T: Float, N: Size>(
    input: &Array<Vector<X, N>>,
    weight_0: &Array<Vector<W, N>>,
    weight_1: &Array<Vector<W, N>>,
    weight_2: &Array<Vector<W, N>>,
    scales_0: &Array<S>,
    scales_1: &Array<S>,
    scales_2: &Array<S>,
    norm: &Array<Vector<G, N>>,
    bias: &Array<B>,
    residual: &Array<T>,
    output_0: &mut Array<X>,
    output_1: &mut Array<X>,
    output_2: &mut Array<X>,
    width: usize,
    weight_stride: usize,
    scale_stride: usize,
    columns_0: usize,
    columns_1: usize,
    columns_2: usize,
    end_0: usize,
    end_1: usize,
    end_2: usize,
    eps: f32,
    #[comptime] form: Form,
    #[define(X, W, S, G, B, T)] _dtypes: [StorageType; 6],
) {
    let line = UNIT_POS_Y as usize;
    let lines = CUBE_DIM_Y as usize;
    let cube = CUBE_POS;
    // Planes add up without it.
    let mut shared =
        SharedMemory::<f32>::new(comptime!(if form.planes { 1 } else { UNITS as usize }));
    if cube < end_0 {
        let column = cube * lines + line;
        let at = min(column, columns_0 - 1);
        let (row, scale) = (at * weight_stride, at * scale_stride);
        let mut sums = line_sums(
            input,
            weight_0,
            scales_0,
            norm,
            &mut shared,
            row,
            scale,
            width,
            eps,
            form,
        );
        if comptime!(form.gate.is_some()) {
            let ups = line_sums(
                input,
                weight_1,
                scales_1,
                norm,
                &mut shared,
                row,
                scale,
                width,
                eps,
                form,
            );
            #[unroll]
            for r in 0..comptime!(form.rows as usize) {
                sums[r] = value(sums[r], comptime!(form.gate.unwrap())) * ups[r];
            }
        }
        write(&sums, bias, residual, output_0, column, columns_0, form);
    }
    if comptime!(form.weights > 1 && form.gate.is_none()) {
        if cube >= end_0 && cube < end_1 {
            let column = (cube - end_0) * lines + line;
            let at = min(column, columns_1 - 1);
            let (row, scale) = (at * weight_stride, at * scale_stride);
            let sums = line_sums(
                input,
                weight_1,
                scales_1,
                norm,
                &mut shared,
                row,
                scale,
                width,
                eps,
                form,
            );
            write(&sums, bias, residual, output_1, column, columns_1, form);
        }
    }
    if comptime!(form.weights > 2) {
        if cube >= end_1 && cube < end_2 {
            let column = (cube - end_1) * lines + line;
            let at = min(column, columns_2 - 1);
            let (row, scale) = (at * weight_stride, at * scale_stride);
            let sums = line_sums(
                input,
                weight_2,
                scales_2,
                norm,
                &mut shared,
                row,
                scale,
                width,
                eps,
                form,
            );
            write(&sums, bias, residual, output_2, column, columns_2, form);
        }
    }
}

/// The rows' sums of one column, known to the line's first unit.
#[cube]
fn line_sums<X: Float, W: Numeric, S: Float, G: Float, N: Size>(
    input: &Array<Vector<X, N>>,
    weight: &Array<Vector<W, N>>,
    scales: &Array<S>,
    norm: &Array<Vector<G, N>>,
    shared: &mut SharedMemory<f32>,
    row: usize,
    scale: usize,
    width: usize,
    eps: f32,
    #[comptime] form: Form,
) -> Array<f32> {
    let rows = comptime!(form.rows as usize);
    let mut sums = Array::<f32>::new(rows);
    let mut squares = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        sums[r] = 0.0f32;
        squares[r] = 0.0f32;
    }
    if comptime!(form.bits == 0) {
        let vectors = width / N::value();
        let mut k = UNIT_POS_X as usize;
        while k < vectors {
            let factors = Vector::<f32, N>::cast_from(weight[row + k]);
            add(
                input,
                norm,
                factors,
                k,
                vectors,
                &mut sums,
                &mut squares,
                form,
            );
            k += comptime!(form.lanes as usize);
        }
    } else {
        let bits = comptime!(form.bits as usize);
        // Vectors of the input that a word stands for.
        let deep = comptime!(8 / bits);
        let vectors = width / 4;
        let chunks = vectors / (4 * deep);
        let mut k = UNIT_POS_X as usize;
        while k < chunks {
            let words = weight[row + k];
            let factor = f32::cast_from(scales[scale + k * 16 * deep / BLOCK]);
            #[unroll]
            for j in 0..comptime!(4usize) {
                let word = u32::cast_from(words[j]);
                #[unroll]
                for h in 0..deep {
                    let mut factors = Vector::<f32, N>::empty();
                    #[unroll]
                    for i in 0..comptime!(4usize) {
                        factors[i] = unpacked(word, comptime!((h * 4 + i) as u32), bits) * factor;
                    }
                    let at = (k * 4 + j) * deep + h;
                    add(
                        input,
                        norm,
                        factors,
                        at,
                        vectors,
                        &mut sums,
                        &mut squares,
                        form,
                    );
                }
            }
            k += comptime!(form.lanes as usize);
        }
    }
    #[unroll]
    for r in 0..rows {
        let mut sum = column_sum(shared, sums[r], form);
        if comptime!(form.normed) {
            let mean = column_sum(shared, squares[r], form) / f32::cast_from(width as u32);
            sum /= (mean + eps).sqrt();
        }
        sums[r] = sum;
    }
    sums
}

/// The signed integer at a place of a word.
#[cube]
pub(super) fn unpacked(word: u32, #[comptime] place: u32, #[comptime] bits: usize) -> f32 {
    let sign = comptime!(1u32 << (bits - 1));
    let raw = (word >> comptime!(place * bits as u32)) & comptime!((1u32 << bits) - 1);
    f32::cast_from(raw ^ sign) - comptime!(sign as f32)
}

/// Adds the products of one vector of a weight with every row's.
#[cube]
fn add<X: Float, G: Float, N: Size>(
    input: &Array<Vector<X, N>>,
    norm: &Array<Vector<G, N>>,
    factors: Vector<f32, N>,
    at: usize,
    vectors: usize,
    sums: &mut Array<f32>,
    squares: &mut Array<f32>,
    #[comptime] form: Form,
) {
    let mut factors = factors;
    if comptime!(form.normed) {
        let mut weight = Vector::<f32, N>::cast_from(norm[at]);
        if comptime!(form.offset) {
            weight += Vector::new(1.0f32);
        }
        factors *= weight;
    }
    #[unroll]
    for r in 0..comptime!(form.rows as usize) {
        let x = Vector::<f32, N>::cast_from(input[r * vectors + at]);
        #[unroll]
        for i in 0..N::value() {
            sums[r] = fma(x[i], factors[i], sums[r]);
            if comptime!(form.normed) {
                squares[r] = fma(x[i], x[i], squares[r]);
            }
        }
    }
}

/// Sum over the units that share a column.
#[cube]
fn column_sum(shared: &mut SharedMemory<f32>, value: f32, #[comptime] form: Form) -> f32 {
    if comptime!(form.planes) {
        plane_sum(value)
    } else {
        line_sum(shared, value, form.lanes)
    }
}

#[cube]
fn write<X: Float, B: Float, T: Float>(
    sums: &Array<f32>,
    bias: &Array<B>,
    residual: &Array<T>,
    output: &mut Array<X>,
    column: usize,
    columns: usize,
    #[comptime] form: Form,
) {
    if UNIT_POS_X == 0 && column < columns {
        #[unroll]
        for r in 0..comptime!(form.rows as usize) {
            let mut sum = sums[r];
            if comptime!(form.bias) {
                sum += f32::cast_from(bias[column]);
            }
            if comptime!(form.residual) {
                sum += f32::cast_from(residual[r * columns + column]);
            }
            output[r * columns + column] = X::cast_from(sum);
        }
    }
}
