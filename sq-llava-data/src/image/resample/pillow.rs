//! Resampling equal to Pillow's `Image.resize` bit for bit.
//!
//! Two passes with eight bits between, sums of 32-bit integers, weights with 22 binary digits. As
//! in Pillow 13 the columns come first where the height shrinks much more than the width. Beside
//! the result only a few rows are held, whatever the shape of the picture.

use std::ops::Range;

use image::RgbImage;

use super::{Axis, Kernel, filled};

/// Binary digits of a weight.
const PRECISION: u32 = 32 - 8 - 2;

/// Weights that are held at a time when rows are resampled.
const MOST_WEIGHTS: usize = 1 << 20;

/// How one pixel of the result comes from a line of the picture.
struct Mix {
    /// First pixel of the picture that counts.
    first: usize,
    /// Weights of it and those behind it, times 2²².
    weights: Vec<i32>,
    /// Weight of the background, times 2²².
    outside: i32,
}

impl Mix {
    fn pixels(&self) -> Range<usize> {
        self.first..self.first + self.weights.len()
    }

    /// The sum before any pixel of the picture: the background, and a half to round.
    fn start(&self, background: [u8; 3]) -> [i32; 3] {
        background.map(|value| i32::from(value) * self.outside + (1 << (PRECISION - 1)))
    }
}

impl Kernel {
    fn at(self, x: f64) -> f64 {
        use std::f64::consts::PI;
        let sinc = |x: f64| {
            if x == 0.0 {
                1.0
            } else {
                (x * PI).sin() / (x * PI)
            }
        };
        let distance = x.abs();
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance >= 1.0 => 0.0,
            Self::Hamming => {
                // Pillow's constants are of single precision.
                let [a, b] = [0.54_f32, 0.46].map(f64::from);
                sinc(distance) * (a + b * (distance * PI).cos())
            }
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = distance;
                match x {
                    _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

impl Axis {
    /// The part of the canvas that a pixel of the result is made of, its centre, and the factor
    /// by which the kernel is widened.
    fn window(self, pixel: u64) -> (Range<u32>, f64, f64) {
        let scale = self.scale();
        let widened = scale.max(1.0);
        let center = (pixel as f64 + 0.5) * scale;
        if self.is_copy() {
            return (pixel as u32..pixel as u32 + 1, center, widened);
        }
        let support = self.kernel.reach() * widened;
        // Casts of negative numbers give zero.
        let first = (center - support + 0.5) as u32;
        let last = (center + support + 0.5) as u32;
        (first..last.min(self.canvas), center, widened)
    }

    /// The part of [`Self::window`] that lies in a picture of `length` pixels.
    fn inside(self, window: &Range<u32>, length: u32) -> Range<u32> {
        let picture = self.offset..self.offset + length;
        let first = window.start.clamp(picture.start, picture.end);
        first..window.end.clamp(first, picture.end)
    }

    /// The wanted pixels that depend on a picture of `length` pixels; the others are background.
    fn touching(self, length: u32) -> Range<u32> {
        let touches = |&i: &u32| {
            let (window, ..) = self.window(self.start + u64::from(i));
            !self.inside(&window, length).is_empty()
        };
        let first = (0..self.len).find(touches).unwrap_or(self.len);
        let last = (first..self.len).rev().find(touches);
        first..last.map_or(first, |last| last + 1)
    }

    /// How the wanted pixel `i` comes from a picture of `length` pixels.
    fn mix(self, i: u32, length: u32) -> Mix {
        let (window, center, widened) = self.window(self.start + u64::from(i));
        let factor = 1.0 / widened;
        let at = |x: u32| self.kernel.at((f64::from(x) - center + 0.5) * factor);
        let sum: f64 = window.clone().map(at).sum();
        let one = f64::from(1 << PRECISION);
        let whole = |x: u32| {
            let weight = if sum == 0.0 { at(x) } else { at(x) / sum };
            // Away from zero at a half; the cast cuts off.
            (weight * one + 0.5_f64.copysign(weight)) as i32
        };
        let inside = self.inside(&window, length);
        let before = (window.start..inside.start).map(whole);
        let behind = (inside.end..window.end).map(whole);
        Mix {
            first: (inside.start - self.offset) as usize,
            outside: before.chain(behind).sum(),
            weights: inside.map(whole).collect(),
        }
    }

    /// Wanted pixels whose weights fit [`MOST_WEIGHTS`], at least one.
    fn block(self) -> usize {
        let (window, ..) = self.window(self.start + u64::from(self.len / 2));
        (MOST_WEIGHTS / window.len().max(1)).max(1)
    }
}

/// Whether Pillow resamples the columns first: since version 13, where the height loses more than
/// twice what the width does.
pub(super) fn columns_first(x: Axis, y: Axis) -> bool {
    let lost = |axis: Axis| i128::from(axis.canvas) - i128::from(axis.resized);
    lost(y) > 0 && lost(y) > 2 * lost(x)
}

/// The part `x.len` × `y.len` of a resized picture on its canvas.
pub(in crate::image) fn resample_exactly(
    image: &RgbImage,
    x: Axis,
    y: Axis,
    background: [u8; 3],
) -> RgbImage {
    let mut result = filled(x.len, y.len, background);
    let source = Source { image, background };
    let rows = y.touching(image.height());
    let touched = x.touching(image.width());
    let block = x.block();
    for start in touched.clone().step_by(block) {
        let columns = start..touched.end.min(start.saturating_add(block as u32));
        let mixes: Vec<Mix> = columns.map(|i| x.mix(i, image.width())).collect();
        let mut target = Target {
            line: 3 * x.len as usize,
            part: 3 * start as usize..3 * (start as usize + mixes.len()),
            pixels: result.as_mut(),
        };
        if columns_first(x, y) {
            source.columns_first(&mixes, rows.clone(), y, &mut target);
        } else {
            source.rows_first(&mixes, rows.clone(), y, &mut target);
        }
    }
    result
}

/// What the passes write: some columns of the result.
struct Target<'a> {
    pixels: &'a mut [u8],
    /// Bytes of a row.
    line: usize,
    /// The columns, in bytes.
    part: Range<usize>,
}

impl Target<'_> {
    fn row(&mut self, y: u32) -> &mut [u8] {
        &mut self.pixels[self.line * y as usize..][self.part.clone()]
    }
}

/// What the passes read.
struct Source<'a> {
    image: &'a RgbImage,
    background: [u8; 3],
}

impl Source<'_> {
    fn row(&self, y: usize) -> &[u8] {
        let length = 3 * self.image.width() as usize;
        &self.image.as_raw()[length * y..][..length]
    }

    /// Each row of the picture becomes as short as the result; of those, as many are held as one
    /// row of the result needs.
    fn rows_first(&self, mixes: &[Mix], rows: Range<u32>, y: Axis, target: &mut Target<'_>) {
        let length = 3 * mixes.len();
        let mut short = Vec::new();
        let mut held = 0..0;
        let mut sums = Vec::new();
        for row in rows {
            let mix = y.mix(row, self.image.height());
            let wanted = mix.pixels();
            let gone = wanted.start.min(held.end) - held.start;
            short.drain(..length * gone);
            held.start += gone;
            if held.is_empty() {
                held = wanted.start..wanted.start;
            }
            for y in held.end..wanted.end {
                let at = short.len();
                short.resize(at + length, 0);
                mix_pixels(self.row(y), mixes, self.background, &mut short[at..]);
            }
            held.end = held.end.max(wanted.end);
            let rows = short.chunks_exact(length);
            mix_rows(rows, &mix, self.background, &mut sums, target.row(row));
        }
    }

    /// The columns that count are mixed to a row, which then becomes as short as the result.
    fn columns_first(&self, mixes: &[Mix], rows: Range<u32>, y: Axis, target: &mut Target<'_>) {
        let first = mixes.iter().map(|mix| mix.first).min().unwrap_or(0);
        let last = mixes.iter().map(|mix| mix.pixels().end).max().unwrap_or(0);
        let mut mixed = vec![0; 3 * last];
        let mut sums = Vec::new();
        for row in rows {
            let mix = y.mix(row, self.image.height());
            let rows = mix.pixels().map(|y| &self.row(y)[3 * first..3 * last]);
            let to = &mut mixed[3 * first..];
            mix_rows(rows, &mix, self.background, &mut sums, to);
            mix_pixels(&mixed, mixes, self.background, target.row(row));
        }
    }
}

/// A row of the result from a row of the picture.
fn mix_pixels(row: &[u8], mixes: &[Mix], background: [u8; 3], to: &mut [u8]) {
    for (mix, to) in mixes.iter().zip(to.chunks_exact_mut(3)) {
        let [mut red, mut green, mut blue] = mix.start(background);
        let pixels = row[3 * mix.first..].chunks_exact(3);
        for (pixel, weight) in pixels.zip(&mix.weights) {
            red += i32::from(pixel[0]) * weight;
            green += i32::from(pixel[1]) * weight;
            blue += i32::from(pixel[2]) * weight;
        }
        to.copy_from_slice(&[red, green, blue].map(byte));
    }
}

/// A row from some rows of the same length.
fn mix_rows<'a>(
    rows: impl Iterator<Item = &'a [u8]>,
    mix: &Mix,
    background: [u8; 3],
    sums: &mut Vec<i32>,
    to: &mut [u8],
) {
    sums.clear();
    sums.extend(mix.start(background).iter().cycle().take(to.len()));
    for (row, weight) in rows.zip(&mix.weights) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += i32::from(*value) * weight;
        }
    }
    for (to, sum) in to.iter_mut().zip(&*sums) {
        *to = byte(*sum);
    }
}

/// Without the binary digits of the weights.
fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests;
