//! JPEG, to the byte what libjpeg-turbo (and so Pillow) decodes.

use image::RgbImage;
use image::metadata::Orientation;
use libjpeg_turbo_rs::{
    ColorSpace, ComponentInfo, DecodeLimits, DecodeWarning, Decoder, JpegError, PixelFormat,
};

use super::{DecodeOptions, check_size, turn};
use crate::DataError;

/// Real progressive files have about ten; a file of thousands is made to keep us busy.
const MAX_SCANS: usize = 500;

/// Decodes a JPEG. Damaged data is decoded as far as it goes, with a `damage` for each place, as
/// libjpeg does; a file without an end is refused, as Pillow does.
pub(super) fn decode(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
    damage: &mut Vec<String>,
) -> Result<RgbImage, DataError> {
    let fail = |reason: String| DataError::Image {
        name: name.to_owned(),
        reason,
    };
    let damaged = |error: JpegError| fail(format!("JPEG cannot be decoded: {error}"));
    if !has_end(bytes) {
        return Err(fail("JPEG is cut short: it has no end marker".into()));
    }
    let limits = DecodeLimits {
        // `check_size` says it better, and comes before the pixels.
        max_pixels: u64::MAX,
        max_scans: MAX_SCANS,
        max_memory: Some(options.max_bytes()),
        ..DecodeLimits::default()
    };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(damaged)?;
    let header = decoder.header();
    check_size(name, header.width.into(), header.height.into(), options)?;
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
    let orientation = decoder
        .exif_orientation()
        .filter(|_| options.apply_exif)
        .and_then(Orientation::from_exif)
        .unwrap_or(Orientation::NoTransforms);

    let decoded = decoder.decode_image().map_err(damaged)?;
    for warning in &decoded.warnings {
        // Such a picture would be all grey.
        if let DecodeWarning::UnsupportedRecovered { detail } = warning {
            return Err(fail(format!("JPEG is not supported: {detail}")));
        }
        damage.push(format!("JPEG is damaged: {warning}"));
    }
    let (width, height) = (decoded.width as u32, decoded.height as u32);
    let data = if four_inks {
        rgb_of_inks(&decoded.data)
    } else {
        decoded.data
    };
    RgbImage::from_raw(width, height, data)
        .map(|image| turn(image, orientation))
        .ok_or_else(|| fail(format!("JPEG gave too few pixels for {width}x{height}")))
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
fn rgb_of_inks(inks: &[u8]) -> Vec<u8> {
    inks.chunks_exact(4)
        .flat_map(|ink| {
            let black = u32::from(ink[3]);
            [ink[0], ink[1], ink[2]].map(|colour| {
                // Rounded colour · black / 255.
                let product = u32::from(colour) * black + 128;
                (((product >> 8) + product) >> 8) as u8
            })
        })
        .collect()
}

/// Whether the marker segments of a JPEG run up to an end-of-image marker.
fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2; // behind the start-of-image marker
    while let Some(found) = bytes.get(at..).and_then(|rest| find_byte(rest, 0xff)) {
        at += found + 1;
        match bytes.get(at) {
            Some(0xd9) => return true,
            // Another fill byte may itself start the marker.
            Some(0xff) => {}
            // Stuffed data, restarts and other markers without a length.
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            // A segment with its length; thumbnails with an end marker of their own lie in such.
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(length) => at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
            None => return false,
        }
    }
    false
}

fn find_byte(bytes: &[u8], byte: u8) -> Option<usize> {
    bytes.iter().position(|b| *b == byte)
}
