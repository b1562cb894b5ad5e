//! JPEG, to the byte what libjpeg-turbo (and so Pillow) decodes.

use image::metadata::Orientation;
use libjpeg_turbo_rs::{
    ColorSpace, ComponentInfo, DecodeLimits, DecodeWarning, Decoder, JpegError, PixelFormat,
};

use super::{DecodeOptions, Oriented, check_size, image_of, to_rgb};
use crate::DataError;

/// Real progressive files have about ten; a file of thousands is made to keep us busy.
const MAX_SCANS: usize = 500;

/// Bytes that decoding may hold for each pixel of the largest picture allowed: the result and the
/// planes of three components.
const BYTES_PER_PIXEL: u64 = 6;

/// Pixels that a byte can stand for at most: each block of 64 takes a code of one bit or more.
const PIXELS_PER_BYTE: u64 = 512;

/// Decodes a JPEG. Damaged data is decoded as far as it goes, with a `damage` for each place, as
/// libjpeg does; a file without an end is refused, as Pillow does.
pub(super) fn decode(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
    damage: &mut Vec<String>,
) -> Result<Oriented, DataError> {
    let fail = |reason: String| DataError::Image {
        name: name.to_owned(),
        reason,
    };
    let damaged = |error: JpegError| fail(format!("JPEG cannot be decoded: {error}"));
    if !has_end(bytes) {
        return Err(fail("JPEG is cut short: it has no end marker".into()));
    }
    let mut decoder = Decoder::new_with_limits(bytes, limits(options)).map_err(damaged)?;
    let header = decoder.header();
    let (width, height) = (u32::from(header.width), u32::from(header.height));
    check_size(name, width, height, options)?;
    let pixels = u64::from(width) * u64::from(height);
    if is_huffman_coded(bytes) && pixels > PIXELS_PER_BYTE * bytes.len() as u64 {
        return Err(fail(format!(
            "JPEG is cut short: {} bytes cannot hold {width}x{height}",
            bytes.len()
        )));
    }
    if header.precision != 8 {
        let bits = header.precision;
        return Err(fail(format!(
            "JPEG of {bits} bits a sample is not supported"
        )));
    }
    let four_inks = matches!(
        decoder.jpeg_color_space(),
        ColorSpace::Cmyk | ColorSpace::Ycck
    );
    if !sampling_is_supported(&header.components, four_inks) {
        return Err(fail("JPEG of this chroma sampling is not supported".into()));
    }
    decoder.set_output_format(if four_inks {
        PixelFormat::Cmyk
    } else {
        PixelFormat::Rgb
    });
    decoder.set_lenient(true);
    let orientation = orientation(&decoder);

    let decoded = decoder.decode_image().map_err(damaged)?;
    note_damage(&decoded.warnings, damage).map_err(fail)?;
    let (width, height) = (decoded.width as u32, decoded.height as u32);
    let data = match four_inks {
        true => to_rgb(decoded.data, rgb_of_ink),
        false => decoded.data,
    };
    Ok((image_of(name, width, height, data)?, orientation))
}

fn note_damage(warnings: &[DecodeWarning], damage: &mut Vec<String>) -> Result<(), String> {
    for warning in warnings {
        // Such a picture would be all grey.
        if let DecodeWarning::UnsupportedRecovered { detail } = warning {
            return Err(format!("JPEG is not supported: {detail}"));
        }
        damage.push(format!("JPEG is damaged: {warning}"));
    }
    Ok(())
}

/// Width and height, and how its EXIF turns it.
pub(super) fn size(bytes: &[u8], options: DecodeOptions) -> Option<((u32, u32), Orientation)> {
    let decoder = Decoder::new_with_limits(bytes, limits(options)).ok()?;
    let header = decoder.header();
    let size = (u32::from(header.width), u32::from(header.height));
    Some((size, orientation(&decoder)))
}

fn limits(options: DecodeOptions) -> DecodeLimits {
    DecodeLimits {
        // `check_size` says it better, and comes before the pixels.
        max_pixels: u64::MAX,
        max_scans: MAX_SCANS,
        max_memory: Some(options.max_pixels.saturating_mul(BYTES_PER_PIXEL)),
        ..DecodeLimits::default()
    }
}

fn orientation(decoder: &Decoder<'_>) -> Orientation {
    let exif = decoder.exif_orientation();
    let found = exif.and_then(Orientation::from_exif);
    found.unwrap_or(Orientation::NoTransforms)
}

/// Whether the pixels are in Huffman codes, and not in the arithmetic ones, which may be shorter.
fn is_huffman_coded(bytes: &[u8]) -> bool {
    markers(bytes)
        .find(|marker| matches!(marker, 0xc0..=0xc3 | 0xc9..=0xcb))
        .is_some_and(|marker| marker <= 0xc3)
}

/// Whether every component divides the most finely sampled one (libjpeg asks this too), which of
/// four must be the first and the black one: the decoder panics at others.
fn sampling_is_supported(components: &[ComponentInfo], four_inks: bool) -> bool {
    let widest = components.iter().map(|c| c.horizontal_sampling).max();
    let highest = components.iter().map(|c| c.vertical_sampling).max();
    let (Some(widest), Some(highest)) = (widest, highest) else {
        return false;
    };
    components.iter().enumerate().all(|(i, c)| {
        let (h, v) = (c.horizontal_sampling, c.vertical_sampling);
        let whole = h > 0 && v > 0 && widest % h == 0 && highest % v == 0;
        let full = h == widest && v == highest;
        whole && (full || !four_inks || !matches!(i, 0 | 3))
    })
}

/// CMYK as Adobe stores it (0 is full ink), by Pillow's formula; Pillow takes every CMYK JPEG so.
fn rgb_of_ink([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|colour| {
        // Rounded colour · black / 255.
        let product = u32::from(colour) * u32::from(black) + 128;
        (((product >> 8) + product) >> 8) as u8
    })
}

/// Whether the marker segments of a JPEG run up to an end-of-image marker.
fn has_end(bytes: &[u8]) -> bool {
    markers(bytes).any(|marker| marker == 0xd9)
}

/// The markers after the start-of-image marker that begin a segment or end the image. Thumbnails
/// with markers of their own lie within a segment.
fn markers(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut at = 2;
    std::iter::from_fn(move || {
        loop {
            let found = bytes.get(at..)?.iter().position(|byte| *byte == 0xff)?;
            at += found + 1;
            match *bytes.get(at)? {
                // Another fill byte may itself start the marker.
                0xff => {}
                // Stuffed data, restarts and other markers without a length.
                0x00 | 0x01 | 0xd0..=0xd8 => at += 1,
                marker => {
                    at += 1;
                    // The end has no length, every other segment has one.
                    if marker != 0xd9 {
                        let length = bytes.get(at..at + 2)?;
                        at += usize::from(u16::from_be_bytes([length[0], length[1]]));
                    }
                    return Some(marker);
                }
            }
        }
    })
}
