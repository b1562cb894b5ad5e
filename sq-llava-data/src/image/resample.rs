//! Resampling with antialiasing, equal to Pillow's `Image.resize`.
//!
//! The kernel (for bicubic Catmull-Rom's, a = −0.5) is widened by the scale when shrinking. As in
//! Pillow rows come first, then columns, with eight bits between. Only the part of the result that
//! is asked for is computed, and the padded square never exists as a whole: a picture of one row
//! and sixty thousand columns would need ten gigabytes. Weights have 15 binary digits, so that a
//! few in a thousand values differ from Pillow's by one; [`resample_exactly`] has Pillow's 22, and
//! takes over where Pillow begins with the columns, which would differ by more.

mod pillow;

use std::ops::Range;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use pillow::columns_first;
pub(super) use pillow::resample_exactly;

/// Bytes of padded rows that are held at a time.
const BLOCK_BYTES: usize = 4 << 20;

/// The kernel of a resize, by Pillow's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Lanczos with three lobes.
    Lanczos,
    /// A triangle.
    Bilinear,
    /// Catmull-Rom's cubic.
    Bicubic,
    /// The mean of what a pixel covers.
    Box,
    /// A triangle with the sharpness of bicubic.
    Hamming,
}

impl Kernel {
    /// By its number in `PIL.Image.Resampling`.
    pub(super) fn of(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            4 => Some(Self::Box),
            5 => Some(Self::Hamming),
            _ => None,
        }
    }

    /// Its number in `PIL.Image.Resampling`.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Lanczos => 1,
            Self::Bilinear => 2,
            Self::Bicubic => 3,
            Self::Box => 4,
            Self::Hamming => 5,
        }
    }

    fn filter(self) -> FilterType {
        match self {
            Self::Lanczos => FilterType::Lanczos3,
            Self::Bilinear => FilterType::Bilinear,
            Self::Bicubic => FilterType::CatmullRom,
            Self::Box => FilterType::Box,
            Self::Hamming => FilterType::Hamming,
        }
    }

    /// How far it reaches to each side, in pixels of the result.
    fn reach(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Box => 0.5,
        }
    }
}

/// One dimension of a resize, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    /// The kernel.
    pub kernel: Kernel,
    /// Length of the canvas that is resized.
    pub canvas: u32,
    /// Where the picture begins on the canvas; the rest is background.
    pub offset: u32,
    /// Length after the resize.
    pub resized: u64,
    /// First pixel of the result that is wanted.
    pub start: u64,
    /// How many are wanted.
    pub len: u32,
}

impl Axis {
    fn scale(self) -> f64 {
        f64::from(self.canvas) / self.resized as f64
    }

    fn is_copy(self) -> bool {
        u64::from(self.canvas) == self.resized
    }

    /// Begin and length of the wanted part, on the canvas.
    fn source(self) -> (f64, f64) {
        // The product comes first: at the ends of the canvas the quotient is then exact.
        let at = |v: u64| v as f64 * f64::from(self.canvas) / self.resized as f64;
        let begin = at(self.start);
        (begin, at(self.start + u64::from(self.len)) - begin)
    }

    /// How far from its centre a pixel of the result looks on the canvas, and one more.
    fn support(self) -> f64 {
        if self.is_copy() {
            0.0
        } else {
            self.kernel.reach() * self.scale().max(1.0) + 1.0
        }
    }

    /// The same with only those wanted pixels that depend on the picture's `length` (a few more,
    /// never less). The others are background: of a narrow picture's square that is most of it.
    fn touched(self, length: u32) -> Self {
        let first = (f64::from(self.offset) - self.support()) / self.scale();
        let last = (f64::from(self.offset + length) + self.support()) / self.scale();
        let end = self.start + u64::from(self.len);
        // Casts of negative numbers give zero.
        let start = (first.floor() as u64).clamp(self.start, end);
        let stop = (last.ceil() as u64).clamp(start, end);
        Self {
            start,
            // At most the old length.
            len: (stop - start) as u32,
            ..self
        }
    }

    /// Pixels of the canvas that the wanted part depends on (a little more, never less).
    fn needed(self) -> Range<u32> {
        let support = self.support();
        let (begin, len) = self.source();
        let first = (begin - support).floor().max(0.0) as u32;
        let last = (begin + len + support).ceil().min(f64::from(self.canvas)) as u32;
        first..last
    }
}

/// The part `x.len` × `y.len` of a resized picture on its canvas, the rest of which is background.
pub(super) type Resample = fn(&RgbImage, Axis, Axis, [u8; 3]) -> RgbImage;

/// The part `x.len` × `y.len` of a resized picture on its canvas.
pub(super) fn resample(image: &RgbImage, x: Axis, y: Axis, background: [u8; 3]) -> RgbImage {
    if columns_first(x, y) {
        return resample_exactly(image, x, y, background);
    }
    let (touched_x, touched_y) = (x.touched(image.width()), y.touched(image.height()));
    if touched_x.len == 0 || touched_y.len == 0 {
        return filled(x.len, y.len, background);
    }
    let part = resample_touched(image, touched_x, touched_y, background);
    if part.dimensions() == (x.len, y.len) {
        return part;
    }
    let mut result = filled(x.len, y.len, background);
    let (left, top) = (touched_x.start - x.start, touched_y.start - y.start);
    // Both are within `len`, so they fit i64.
    image::imageops::replace(&mut result, &part, left as i64, top as i64);
    result
}

/// The same for a part that depends on the picture.
fn resample_touched(image: &RgbImage, x: Axis, y: Axis, background: [u8; 3]) -> RgbImage {
    let rows = y.needed();
    let narrow = resample_rows(image, x, y.offset, rows.clone(), background);
    if y.is_copy() {
        return narrow;
    }
    let mut result = RgbImage::new(x.len, y.len);
    let (begin, len) = y.source();
    let (begin, height) = (begin - f64::from(rows.start), f64::from(narrow.height()));
    let part = Part {
        left: 0.0,
        top: begin,
        width: f64::from(x.len),
        height: len.min(height - begin),
    };
    let source = Pixels {
        width: narrow.width(),
        height: narrow.height(),
        bytes: narrow.as_raw(),
    };
    let target = PixelsMut {
        width: x.len,
        height: y.len,
        bytes: &mut result,
    };
    convolve(source, part, target, y.kernel);
    result
}

/// First pass: the given rows of the canvas, each `x.len` pixels long.
fn resample_rows(
    image: &RgbImage,
    x: Axis,
    top: u32,
    rows: Range<u32>,
    background: [u8; 3],
) -> RgbImage {
    let mut result = filled(x.len, rows.len() as u32, background);
    // Rows of the canvas that the picture covers.
    let covered = rows.start.max(top)..rows.end.min(top + image.height());
    if covered.is_empty() || image.width() == 0 {
        return result;
    }
    let columns = x.needed();
    let width = columns.len();
    let source_row = 3 * image.width() as usize;
    let target_row = 3 * x.len as usize;
    // Part of the needed columns that the picture covers, and where it is in the picture.
    let first = columns.start.max(x.offset);
    let last = columns.end.min(x.offset + image.width());
    if first >= last {
        return result;
    }
    let whole = width == image.width() as usize && first == x.offset;
    let block_rows = if whole {
        covered.len()
    } else {
        (BLOCK_BYTES / (3 * width)).clamp(1, covered.len())
    };
    let mut padded = if whole {
        Vec::new()
    } else {
        background.repeat(width * block_rows)
    };
    for block in covered.clone().step_by(block_rows) {
        let count = block_rows.min((covered.end - block) as usize);
        let source = &image.as_raw()[source_row * (block - top) as usize..][..source_row * count];
        let pixels = if whole {
            source
        } else {
            let take = 3 * (first - x.offset) as usize..3 * (last - x.offset) as usize;
            let put = 3 * (first - columns.start) as usize;
            let rows = padded.chunks_exact_mut(3 * width);
            for (to, from) in rows.zip(source.chunks_exact(source_row)) {
                to[put..put + take.len()].copy_from_slice(&from[take.clone()]);
            }
            &padded[..3 * width * count]
        };
        let at = target_row * (block - rows.start) as usize;
        let target = &mut result.as_mut()[at..at + target_row * count];
        let source = Pixels {
            width: width as u32,
            height: count as u32,
            bytes: pixels,
        };
        first_pass(source, x, target);
    }
    result
}

/// Rows of the needed columns to rows of `x.len` pixels.
fn first_pass(source: Pixels<'_>, x: Axis, target: &mut [u8]) {
    if x.is_copy() {
        target.copy_from_slice(source.bytes);
        return;
    }
    let (begin, len) = x.source();
    let begin = begin - f64::from(x.needed().start);
    let part = Part {
        left: begin,
        top: 0.0,
        width: len.min(f64::from(source.width) - begin),
        height: f64::from(source.height),
    };
    let target = PixelsMut {
        width: x.len,
        height: source.height,
        bytes: target,
    };
    convolve(source, part, target, x.kernel);
}

/// RGB pixels, row by row.
struct Pixels<'a> {
    width: u32,
    height: u32,
    bytes: &'a [u8],
}

/// Where RGB pixels go.
struct PixelsMut<'a> {
    width: u32,
    height: u32,
    bytes: &'a mut [u8],
}

/// A rectangle of an image, which may begin and end within a pixel.
struct Part {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// One pass from a part of `source` into `target`.
fn convolve(source: Pixels<'_>, part: Part, target: PixelsMut<'_>, kernel: Kernel) {
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(kernel.filter()))
        .crop(part.left, part.top, part.width, part.height);
    // The buffers are as long as the sizes say and the part lies inside: the callers cut it so.
    let source = TypedImageRef::<U8x3>::from_buffer(source.width, source.height, source.bytes)
        .expect("three bytes a pixel");
    let mut target = TypedImage::<U8x3>::from_buffer(target.width, target.height, target.bytes)
        .expect("three bytes a pixel");
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .expect("a part inside the source");
}

/// An image of one colour.
pub(super) fn filled(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
    RgbImage::from_pixel(width, height, image::Rgb(colour))
}
