//! Label maps: PNGs whose values are the numbers of masks.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

use super::LabelMap;

/// Reads a grey or palette PNG: the value of a pixel, or its place in the palette, is its mask's
/// number; 0 is no mask.
pub(super) fn read(bytes: &[u8], (height, width): (u32, u32)) -> Result<LabelMap, String> {
    let damaged = |error: png::DecodingError| format!("cut short or damaged: {error}");
    let pixels = height as usize * width as usize;
    let limits = Limits {
        bytes: pixels
            .saturating_mul(4)
            .saturating_add(bytes.len())
            .saturating_add(1 << 20),
    };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let info = reader.info();
    if (info.height, info.width) != (height, width) {
        return Err(format!(
            "it has {}x{} pixels and its picture {width}x{height}: write masks in the picture's \
             own size",
            info.width, info.height
        ));
    }
    let (colour, depth) = reader.output_color_type();
    if !matches!(colour, ColorType::Grayscale | ColorType::Indexed) {
        return Err(format!(
            "its colours are {colour:?}: a label map is grey (of 8 or 16 bits) or has a palette, \
             and its values are the numbers of the masks"
        ));
    }
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let line = reader.output_line_size(width).ok_or("it is too large")?;
    let mut data = vec![0; size];
    reader.next_frame(&mut data).map_err(damaged)?;
    let mut labels = Vec::with_capacity(pixels);
    for line in data.chunks_exact(line).take(height as usize) {
        unpack(line, depth, width as usize, &mut labels);
    }
    if labels.len() != pixels {
        return Err("cut short or damaged: pixels are missing".into());
    }
    Ok(LabelMap {
        width: width as usize,
        labels,
    })
}

/// The values of a row.
fn unpack(line: &[u8], depth: BitDepth, width: usize, labels: &mut Vec<u16>) {
    let bits = match depth {
        BitDepth::Sixteen => {
            let pairs = line.as_chunks().0.iter().take(width);
            return labels.extend(pairs.map(|&pair| u16::from_be_bytes(pair)));
        }
        BitDepth::Eight => 8,
        BitDepth::Four => 4,
        BitDepth::Two => 2,
        BitDepth::One => 1,
    };
    let mask = (1u16 << bits) - 1;
    // The first pixel is in the highest bits.
    let values = line.iter().flat_map(|&byte| {
        let shifts = (0..8 / bits).rev();
        shifts.map(move |place| (u16::from(byte) >> (place * bits)) & mask)
    });
    labels.extend(values.take(width));
}
