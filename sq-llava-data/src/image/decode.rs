//! Bytes of a JPEG, PNG, WebP, GIF or BMP to 8-bit RGB, as Pillow's `convert("RGB")` gives it.

mod gif;
mod jpeg;

use std::io::Cursor;

use image::error::ImageError;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::DataError;

/// What decoding may spend, and whether it turns the picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeOptions {
    pub max_pixels: u64,
    pub apply_exif: bool,
}

impl DecodeOptions {
    /// Bytes that one decoder may allocate: sixteen-bit RGBA and as much again for its own work.
    fn max_bytes(self) -> u64 {
        self.max_pixels.saturating_mul(16).saturating_add(1 << 20)
    }
}

/// A decoded picture and what is known of its file.
#[derive(Debug)]
pub(super) struct Decoded {
    pub image: RgbImage,
    pub format: ImageFormat,
    /// Faults that decoding went past.
    pub damage: Vec<String>,
}

/// Decodes a picture; the format is told by the content.
pub(super) fn decode(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
) -> Result<Decoded, DataError> {
    let fail = |reason: String| DataError::Image {
        name: name.to_owned(),
        reason,
    };
    if bytes.is_empty() {
        return Err(fail("the file is empty".into()));
    }
    let format = match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Jpeg
            | ImageFormat::Png
            | ImageFormat::WebP
            | ImageFormat::Gif
            | ImageFormat::Bmp),
        ) => format,
        Ok(other) => {
            return Err(fail(format!(
                "{other:?} is not supported: convert it to JPEG, PNG, WebP, GIF or BMP"
            )));
        }
        Err(_) => return Err(fail("not a JPEG, PNG, WebP, GIF or BMP image".into())),
    };
    let mut damage = Vec::new();
    let image = match format {
        ImageFormat::Gif => gif::decode(bytes, name, options),
        ImageFormat::Jpeg => jpeg::decode(bytes, name, options, &mut damage),
        _ => decode_other(bytes, format, name, options),
    };
    Ok(Decoded {
        image: image?,
        format,
        damage,
    })
}

/// PNG, WebP and BMP.
fn decode_other(
    bytes: &[u8],
    format: ImageFormat,
    name: &str,
    options: DecodeOptions,
) -> Result<RgbImage, DataError> {
    let fail = |reason: String| DataError::Image {
        name: name.to_owned(),
        reason,
    };
    let damaged = |error: ImageError| fail(format!("cut short or damaged: {error}"));

    let mut limits = Limits::default();
    limits.max_alloc = Some(options.max_bytes());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, options)?;
    let orientation = if options.apply_exif {
        decoder.orientation().map_err(damaged)?
    } else {
        Orientation::NoTransforms
    };
    let decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let grey_png = format == ImageFormat::Png && png_colour_type(bytes) == Some(0);
    let rgb = to_rgb(decoded, grey_png).map_err(fail)?;
    Ok(turn(rgb, orientation))
}

fn turn(image: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let mut turned = DynamicImage::ImageRgb8(image);
    turned.apply_orientation(orientation);
    turned.into_rgb8()
}

fn check_size(
    name: &str,
    width: u32,
    height: u32,
    options: DecodeOptions,
) -> Result<(), DataError> {
    if width == 0 || height == 0 {
        return Err(DataError::Image {
            name: name.to_owned(),
            reason: format!("it has no pixels ({width}x{height})"),
        });
    }
    if u64::from(width) * u64::from(height) > options.max_pixels {
        return Err(DataError::ImageTooLarge {
            name: name.to_owned(),
            width,
            height,
            max_pixels: options.max_pixels,
        });
    }
    Ok(())
}

/// Pillow's `convert("RGB")`: transparency is dropped, not blended. Of sixteen bits the upper
/// eight are kept, except that grey PNGs (mode `I;16`) are clipped to 255.
fn to_rgb(decoded: DynamicImage, grey_png: bool) -> Result<RgbImage, String> {
    let (width, height) = (decoded.width(), decoded.height());
    let high = |v: u16| (v >> 8) as u8;
    let clip = |v: u16| v.min(255) as u8;
    let grey16 = if grey_png { clip } else { high };
    let data: Vec<u8> = match decoded {
        DynamicImage::ImageRgb8(rgb) => return Ok(rgb),
        DynamicImage::ImageLuma8(l) => l.as_raw().iter().flat_map(|v| [*v; 3]).collect(),
        DynamicImage::ImageLumaA8(la) => la.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageRgba8(rgba) => rgba
            .pixels()
            .flat_map(|p| [p.0[0], p.0[1], p.0[2]])
            .collect(),
        DynamicImage::ImageLuma16(l) => l.as_raw().iter().flat_map(|v| [grey16(*v); 3]).collect(),
        DynamicImage::ImageLumaA16(la) => la.pixels().flat_map(|p| [grey16(p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(rgb) => rgb.as_raw().iter().map(|v| high(*v)).collect(),
        DynamicImage::ImageRgba16(rgba) => rgba
            .pixels()
            .flat_map(|p| [high(p.0[0]), high(p.0[1]), high(p.0[2])])
            .collect(),
        other => {
            return Err(format!(
                "pixels of type {:?} are not supported",
                other.color()
            ));
        }
    };
    // Every arm above yields three bytes a pixel.
    RgbImage::from_raw(width, height, data)
        .ok_or_else(|| format!("{width}x{height} pixels do not fit in memory"))
}

/// Colour type of a PNG: byte 25, in IHDR, which always comes first.
fn png_colour_type(bytes: &[u8]) -> Option<u8> {
    bytes.get(25).copied()
}

#[cfg(test)]
mod tests;
