//! GIF: the first frame.

use image::RgbImage;
use image::metadata::Orientation;

use super::{DecodeOptions, Oriented, check_size};
use crate::DataError;

/// Width and height of the canvas, which grows to hold the first frame.
pub(super) fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut decoder = gif::DecodeOptions::new().read_info(bytes).ok()?;
    let screen = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().ok()??;
    Some((
        u32::from(screen.0).max(u32::from(frame.left) + u32::from(frame.width)),
        u32::from(screen.1).max(u32::from(frame.top) + u32::from(frame.height)),
    ))
}

/// First frame of a GIF on its canvas. What the frame leaves free has the transparent colour, or
/// colour 0, and the canvas grows to hold the frame: both as in Pillow's `GifImagePlugin`.
pub(super) fn decode(
    bytes: &[u8],
    name: &str,
    options: DecodeOptions,
) -> Result<Oriented, DataError> {
    let fail = |reason: String| DataError::Image {
        name: name.to_owned(),
        reason,
    };
    let damaged = |error: gif::DecodingError| fail(format!("cut short or damaged: {error}"));
    let mut setup = gif::DecodeOptions::new();
    setup.set_color_output(gif::ColorOutput::Indexed);
    setup.set_memory_limit(match options.max_bytes().try_into() {
        Ok(limit) => gif::MemoryLimit::Bytes(limit),
        Err(_) => gif::MemoryLimit::Unlimited,
    });
    let mut decoder = setup.read_info(bytes).map_err(damaged)?;
    let (screen_width, screen_height) = (decoder.width(), decoder.height());
    let frame = decoder
        .next_frame_info()
        .map_err(damaged)?
        .ok_or_else(|| fail("GIF without a picture".into()))?;
    let (left, top) = (u32::from(frame.left), u32::from(frame.top));
    let (frame_width, frame_height) = (u32::from(frame.width), u32::from(frame.height));
    let transparent = frame.transparent;
    let local_palette = frame.palette.clone();
    let width = u32::from(screen_width).max(left + frame_width);
    let height = u32::from(screen_height).max(top + frame_height);
    check_size(name, width, height, options)?;
    check_size(name, frame_width, frame_height, options)?;

    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(damaged)?;
    let palette = local_palette.or_else(|| decoder.global_palette().map(<[u8]>::to_vec));
    let colour = |index: u8| match &palette {
        Some(palette) => match palette.get(3 * usize::from(index)..3 * usize::from(index) + 3) {
            Some(rgb) => image::Rgb([rgb[0], rgb[1], rgb[2]]),
            None => image::Rgb([0; 3]),
        },
        // Without any palette the indices are shades of grey.
        None => image::Rgb([index; 3]),
    };
    let mut canvas = RgbImage::from_pixel(width, height, colour(transparent.unwrap_or(0)));
    for (y, row) in (top..).zip(indices.chunks_exact(frame_width as usize)) {
        for (x, index) in (left..).zip(row) {
            canvas.put_pixel(x, y, colour(*index));
        }
    }
    Ok((canvas, Orientation::NoTransforms))
}
