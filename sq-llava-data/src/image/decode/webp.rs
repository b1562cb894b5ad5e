//! WebP: the first frame.

use std::io::Cursor;

use image::RgbImage;
use image::metadata::Orientation;
use image_webp::{DecodingError, WebPDecoder};

use super::{DecodeOptions, Oriented, buffer, check_size, image_of, to_rgb};
use crate::DataError;

/// Width and height, and how its EXIF turns it.
pub(super) fn size(bytes: &[u8]) -> Option<((u32, u32), Orientation)> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).ok()?;
    decoder.set_memory_limit(bytes.len());
    let exif = decoder.exif_metadata().ok().flatten();
    let orientation = exif.and_then(|exif| Orientation::from_exif_chunk(&exif));
    Some((
        decoder.dimensions(),
        orientation.unwrap_or(Orientation::NoTransforms),
    ))
}

/// Decodes a WebP. Its EXIF is read only where it lies within the file.
pub(super) fn decode(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
) -> Result<Oriented, DataError> {
    let damaged = |error: DecodingError| DataError::Image {
        name: name.to_owned(),
        reason: format!("cut short or damaged: {error}"),
    };
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    decoder.set_memory_limit(bytes.len());
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, options)?;
    let alpha = decoder.has_alpha();
    let each = bytes_per_pixel(&mut decoder);
    let mut data = buffer(
        name,
        (width, height),
        each,
        if alpha { 4 } else { 3 },
        options,
    )?;
    let exif = decoder.exif_metadata().ok().flatten();
    decoder.read_image(&mut data).map_err(damaged)?;
    let data = match alpha {
        true => to_rgb(data, |[r, g, b, _]: [u8; 4]| [r, g, b]),
        false => data,
    };
    let image: RgbImage = image_of(name, width, height, data)?;
    let orientation = exif.and_then(|exif| Orientation::from_exif_chunk(&exif));
    Ok((image, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Most bytes that decoding holds for each pixel, the result included: read off `image-webp` 0.2.
fn bytes_per_pixel(decoder: &mut WebPDecoder<Cursor<&[u8]>>) -> u64 {
    match (
        decoder.is_animated(),
        decoder.is_lossy(),
        decoder.has_alpha(),
    ) {
        // The frame, the canvas and the result.
        (true, _, _) => 12,
        // Without alpha a copy with four channels.
        (false, false, true) => 4,
        (false, false, false) => 7,
        // Luma and chroma; alpha comes from a picture of four channels.
        (false, true, false) => 5,
        (false, true, true) => 11,
    }
}
