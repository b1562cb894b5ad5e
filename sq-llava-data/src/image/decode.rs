//! Bytes of a JPEG, PNG, WebP, GIF or BMP to 8-bit RGB, as Pillow's `convert("RGB")` gives it.

mod formats;
mod gif;
mod jpeg;
mod webp;

use std::io::Cursor;

use image::error::ImageError;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::DataError;
use crate::foreign::guarded;

/// Bytes that decoding may hold for each pixel of the largest picture allowed. A format that needs
/// more is decoded up to a smaller size.
const BYTES_PER_PIXEL: u64 = 5;

/// Room for what a PNG says beside its pixels, such as colour profiles.
const PNG_METADATA: u64 = 16 << 20;

/// What decoding may spend, and whether it turns the picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeOptions {
    pub max_pixels: u64,
    pub apply_exif: bool,
}

impl DecodeOptions {
    /// Bytes that decoding may hold.
    fn max_bytes(self) -> u64 {
        let bytes = self.max_pixels.saturating_mul(BYTES_PER_PIXEL);
        bytes.saturating_add(1 << 20)
    }
}

/// A picture as it is stored, and how its EXIF turns it.
type Oriented = (RgbImage, Orientation);

/// A decoded picture and what is known of its file.
#[derive(Debug)]
pub(super) struct Decoded {
    pub image: RgbImage,
    pub format: ImageFormat,
    /// Whether its EXIF turns the picture, applied or not.
    pub turned: bool,
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
    let Some(format) = format_of(bytes) else {
        return Err(fail(match formats::name(bytes) {
            Some(known) => format!(
                "this is {known} data, which is not decoded: convert it to JPEG, PNG, WebP, \
                 GIF or BMP"
            ),
            None => "not a JPEG, PNG, WebP, GIF or BMP image".into(),
        }));
    };
    let mut damage = Vec::new();
    // The one door to the decoders: some panic at damaged files.
    let decoded = guarded(|| match format {
        ImageFormat::Gif => gif::decode(bytes, name, options),
        ImageFormat::Jpeg => jpeg::decode(bytes, name, options, &mut damage),
        ImageFormat::WebP => webp::decode(bytes, name, options),
        _ => decode_other(bytes, format, name, options),
    });
    let (mut image, orientation) = decoded.map_err(fail)??;
    let turned = orientation != Orientation::NoTransforms;
    if turned && options.apply_exif {
        let mut dynamic = DynamicImage::ImageRgb8(image);
        dynamic.apply_orientation(orientation);
        image = dynamic.into_rgb8();
    }
    Ok(Decoded {
        image,
        format,
        turned,
        damage,
    })
}

/// Width and height of a picture as [`decode`] gives it, from its first bytes; `None` where they do
/// not tell.
pub(super) fn size(bytes: &[u8], options: DecodeOptions) -> Option<(u32, u32)> {
    let format = format_of(bytes)?;
    let found = guarded(|| match format {
        ImageFormat::Gif => Some((gif::size(bytes)?, Orientation::NoTransforms)),
        ImageFormat::Jpeg => jpeg::size(bytes, options),
        ImageFormat::WebP => webp::size(bytes),
        ImageFormat::Png if !options.apply_exif => {
            Some((png_size(bytes)?, Orientation::NoTransforms))
        }
        _ => {
            let reader = ImageReader::with_format(Cursor::new(bytes), format);
            let mut decoder = reader.into_decoder().ok()?;
            let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
            Some((decoder.dimensions(), orientation))
        }
    });
    let ((width, height), orientation) = found.ok()??;
    let lies = matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    Some(match options.apply_exif && lies {
        true => (height, width),
        false => (width, height),
    })
}

/// The format, if it is one that is decoded.
fn format_of(bytes: &[u8]) -> Option<ImageFormat> {
    let format = image::guess_format(bytes).ok()?;
    matches!(
        format,
        ImageFormat::Jpeg
            | ImageFormat::Png
            | ImageFormat::WebP
            | ImageFormat::Gif
            | ImageFormat::Bmp
    )
    .then_some(format)
}

/// Whether bytes begin as a picture does, decoded or not.
pub(super) fn begins_as_picture(start: &[u8]) -> bool {
    format_of(start).is_some() || formats::name(start).is_some_and(formats::is_picture)
}

/// PNG and BMP.
fn decode_other(
    bytes: &[u8],
    format: ImageFormat,
    name: &str,
    options: DecodeOptions,
) -> Result<Oriented, DataError> {
    let fail = |reason: String| DataError::Image {
        name: name.to_owned(),
        reason,
    };
    let damaged = |error: ImageError| fail(format!("cut short or damaged: {error}"));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    if format == ImageFormat::Png {
        // The decoder's own limit counts metadata too, which it unpacks before it tells the size.
        let (width, height) = png_size(bytes).unwrap_or((1, 1));
        check_size(name, width, height, options)?;
        let pixels = u64::from(width) * u64::from(height);
        let mut limits = Limits::default();
        let beside = bytes.len() as u64 + PNG_METADATA;
        limits.max_alloc = Some(pixels.saturating_mul(8).saturating_add(beside));
        reader.limits(limits);
    }
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, options)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let colour = decoder.color_type();
    let stored = colour.bytes_per_pixel();
    let mut data = buffer(name, (width, height), stored.into(), stored, options)?;
    decoder.read_image(&mut data).map_err(damaged)?;
    let grey_png = format == ImageFormat::Png && png_colour_type(bytes) == Some(0);
    let data = rgb_of(data, colour, grey_png).map_err(fail)?;
    Ok((image_of(name, width, height, data)?, orientation))
}

/// Refuses a picture without pixels or with too many.
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

/// A buffer of `stored` bytes a pixel, unless decoding, with `each` bytes a pixel in all,
/// would hold more than is allowed.
fn buffer(
    name: &str,
    (width, height): (u32, u32),
    each: u64,
    stored: u8,
    options: DecodeOptions,
) -> Result<Vec<u8>, DataError> {
    let fail = |reason: String| DataError::Image {
        name: name.to_owned(),
        reason,
    };
    let pixels = u64::from(width) * u64::from(height);
    let (needed, allowed) = (pixels.saturating_mul(each), options.max_bytes());
    if needed > allowed {
        return Err(fail(format!(
            "{width}x{height} in this format takes {needed} bytes to decode, above the limit of \
             {allowed}; shrink it, or raise `max_pixels` if it is to be trusted"
        )));
    }
    let bytes = usize::try_from(pixels).ok();
    let bytes = bytes.and_then(|pixels| pixels.checked_mul(stored.into()));
    let too_many = || fail(format!("{width}x{height} pixels do not fit in memory"));
    Ok(vec![0; bytes.ok_or_else(too_many)?])
}

fn image_of(name: &str, width: u32, height: u32, data: Vec<u8>) -> Result<RgbImage, DataError> {
    RgbImage::from_raw(width, height, data).ok_or_else(|| DataError::Image {
        name: name.to_owned(),
        reason: format!("the decoder gave too few pixels for {width}x{height}"),
    })
}

/// RGB of pixels of `N` bytes. Pixels of three bytes and more shrink where they lie.
fn to_rgb<const N: usize>(mut data: Vec<u8>, rgb: impl Fn([u8; N]) -> [u8; 3]) -> Vec<u8> {
    if N < 3 {
        let (pixels, _) = data.as_chunks::<N>();
        return pixels.iter().flat_map(|pixel| rgb(*pixel)).collect();
    }
    let pixels = data.len() / N;
    for index in 0..pixels {
        let mut pixel = [0; N];
        pixel.copy_from_slice(&data[N * index..N * (index + 1)]);
        data[3 * index..3 * (index + 1)].copy_from_slice(&rgb(pixel));
    }
    data.truncate(3 * pixels);
    data
}

/// Pillow's `convert("RGB")`: transparency is dropped, not blended. Of sixteen bits the upper
/// eight are kept, except that grey PNGs (mode `I;16`) are clipped to 255.
fn rgb_of(data: Vec<u8>, colour: ColorType, grey_png: bool) -> Result<Vec<u8>, String> {
    let high = |low: u8, up: u8| (u16::from_ne_bytes([low, up]) >> 8) as u8;
    let grey = |low: u8, up: u8| match grey_png {
        true => u16::from_ne_bytes([low, up]).min(255) as u8,
        false => high(low, up),
    };
    Ok(match colour {
        ColorType::Rgb8 => data,
        ColorType::L8 => to_rgb(data, |[v]: [u8; 1]| [v; 3]),
        ColorType::La8 => to_rgb(data, |[v, _]: [u8; 2]| [v; 3]),
        ColorType::Rgba8 => to_rgb(data, |[r, g, b, _]: [u8; 4]| [r, g, b]),
        ColorType::L16 => to_rgb(data, |[a, b]: [u8; 2]| [grey(a, b); 3]),
        ColorType::La16 => to_rgb(data, |[a, b, _, _]: [u8; 4]| [grey(a, b); 3]),
        ColorType::Rgb16 => to_rgb(data, |p: [u8; 6]| {
            [high(p[0], p[1]), high(p[2], p[3]), high(p[4], p[5])]
        }),
        ColorType::Rgba16 => to_rgb(data, |p: [u8; 8]| {
            [high(p[0], p[1]), high(p[2], p[3]), high(p[4], p[5])]
        }),
        other => return Err(format!("pixels of type {other:?} are not supported")),
    })
}

/// Width and height of a PNG: in IHDR, which always comes first.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let (sides, _) = bytes.get(16..24)?.as_chunks::<4>();
    Some((u32::from_be_bytes(sides[0]), u32::from_be_bytes(sides[1])))
}

/// Colour type of a PNG: byte 25, in IHDR.
fn png_colour_type(bytes: &[u8]) -> Option<u8> {
    bytes.get(25).copied()
}

#[cfg(test)]
mod tests;
