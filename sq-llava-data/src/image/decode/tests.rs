//! Expected pixels are those of Pillow 13.0.0 (libjpeg-turbo, libwebp 1.6.0): `convert("RGB")`.

use std::io::Cursor;

use image::{ImageBuffer, ImageFormat, Luma, LumaA, Rgba, RgbaImage};

use super::*;

/// A picture under tests/images. Those that are whole were made by Pillow.
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/", $name))
    };
}

mod damaged;

const OPTIONS: DecodeOptions = DecodeOptions {
    max_pixels: 1 << 20,
    apply_exif: false,
};

fn rgb(bytes: &[u8]) -> RgbImage {
    decode(bytes, "test", OPTIONS).unwrap().image
}

fn encode<P, C>(image: &ImageBuffer<P, C>, format: ImageFormat) -> Vec<u8>
where
    P: image::PixelWithColorType,
    [P::Subpixel]: image::EncodableLayout,
    C: std::ops::Deref<Target = [P::Subpixel]>,
{
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG of one row, by hand: every depth, colour type and further chunk.
fn png(width: u32, depth: u8, colour: u8, extra: &[(&[u8; 4], &[u8])], row: &[u8]) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), 1_u32.to_be_bytes()].concat();
    header.extend([depth, colour, 0, 0, 0]);
    // zlib with one stored block: the filter byte and the row.
    let mut raw = vec![0];
    raw.extend(row);
    let len = raw.len() as u16;
    let mut data = vec![0x78, 0x01, 1];
    data.extend(len.to_le_bytes());
    data.extend((!len).to_le_bytes());
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in &raw {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    data.extend(raw);
    data.extend((b << 16 | a).to_be_bytes());

    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], content: &[u8]| {
        bytes.extend((content.len() as u32).to_be_bytes());
        let checked = [kind, content].concat();
        let mut crc = !0_u32;
        for byte in &checked {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
            }
        }
        bytes.extend(checked);
        bytes.extend((!crc).to_be_bytes());
    };
    chunk(b"IHDR", &header);
    for (kind, content) in extra {
        chunk(kind, content);
    }
    chunk(b"IDAT", &data);
    chunk(b"IEND", &[]);
    bytes
}

fn big_endian(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

fn grey(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|v| [*v; 3]).collect()
}

const STEPS: [u16; 12] = [
    0, 1, 127, 128, 129, 255, 256, 257, 1000, 32767, 32768, 65535,
];

#[test]
fn sixteen_bit_grey_is_clipped() {
    let clipped = grey(&[0, 1, 127, 128, 129, 255, 255, 255, 255, 255, 255, 255]);
    let row = big_endian(&STEPS);
    assert_eq!(rgb(&png(12, 16, 0, &[], &row)).into_raw(), clipped);
    let transparency = [0, 128];
    let bytes = png(12, 16, 0, &[(b"tRNS", &transparency)], &row);
    assert_eq!(rgb(&bytes).into_raw(), clipped);
    let image = ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![129_u16, 1000]).unwrap();
    let bytes = encode(&image, ImageFormat::Png);
    assert_eq!(rgb(&bytes).into_raw(), grey(&[129, 255]));
}

#[test]
fn other_sixteen_bit_pictures_keep_the_upper_byte() {
    let row = big_endian(&STEPS);
    assert_eq!(
        rgb(&png(4, 16, 2, &[], &row)).into_raw(),
        [0, 0, 0, 0, 0, 0, 1, 1, 3, 127, 128, 255]
    );
    assert_eq!(
        rgb(&png(6, 16, 4, &[], &row)).into_raw(),
        grey(&[0, 0, 0, 1, 3, 128])
    );
    assert_eq!(
        rgb(&png(3, 16, 6, &[], &row)).into_raw(),
        [0, 0, 0, 0, 0, 1, 3, 127, 128]
    );
}

#[test]
fn shallow_grey_is_scaled() {
    let one = rgb(&png(8, 1, 0, &[], &[0xa5]));
    assert_eq!(one.into_raw(), grey(&[255, 0, 255, 0, 0, 255, 0, 255]));
    let two = rgb(&png(4, 2, 0, &[], &[0x1b]));
    assert_eq!(two.into_raw(), grey(&[0, 85, 170, 255]));
    let four = rgb(&png(4, 4, 0, &[], &[0x1b, 0x7f]));
    assert_eq!(four.into_raw(), grey(&[17, 187, 119, 255]));
}

#[test]
fn palettes_are_expanded_and_transparency_is_dropped() {
    let palette = [10, 20, 30, 40, 50, 60, 70, 80, 90];
    let extra: [(&[u8; 4], &[u8]); 2] = [(b"PLTE", &palette), (b"tRNS", &[0, 128])];
    // Index 3 is not in the palette: black.
    assert_eq!(
        rgb(&png(4, 2, 3, &extra, &[0x1b])).into_raw(),
        [10, 20, 30, 40, 50, 60, 70, 80, 90, 0, 0, 0]
    );
    assert_eq!(
        rgb(&png(3, 8, 3, &extra[..1], &[2, 0, 1])).into_raw(),
        [70, 80, 90, 10, 20, 30, 40, 50, 60]
    );
    let extra: [(&[u8; 4], &[u8]); 1] = [(b"tRNS", &[0, 10, 0, 20, 0, 30])];
    assert_eq!(
        rgb(&png(2, 8, 2, &extra, &[10, 20, 30, 40, 50, 60])).into_raw(),
        [10, 20, 30, 40, 50, 60]
    );
}

#[test]
fn alpha_is_dropped() {
    let la = ImageBuffer::<LumaA<u8>, _>::from_raw(2, 1, vec![10, 0, 20, 255]).unwrap();
    let bytes = encode(&la, ImageFormat::Png);
    assert_eq!(rgb(&bytes).into_raw(), grey(&[10, 20]));
    let rgba = RgbaImage::from_raw(2, 1, vec![10, 20, 30, 0, 40, 50, 60, 255]).unwrap();
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
        let decoded = rgb(&encode(&rgba, format)).into_raw();
        assert_eq!(decoded, [10, 20, 30, 40, 50, 60], "{format:?}");
    }
}

#[test]
fn animated_webp_gives_its_first_frame() {
    // Pillow: [p.getpixel(q) for q in ((0,0), (1,1), (3,3), (7,7))].
    let image = rgb(fixture!("animated.webp"));
    assert_eq!(image.dimensions(), (8, 8));
    for (x, y, pixel) in [
        (0, 0, [90, 80, 70]),
        (1, 1, [0, 0, 0]),
        (3, 3, [200, 30, 10]),
        (7, 7, [0, 0, 0]),
    ] {
        assert_eq!(image.get_pixel(x, y).0, pixel, "{x},{y}");
    }
}

/// A GIF of colours 10,20,30 / 200,0,0 / 0,200,0 / 0,0,200 on a 3×2 screen with background 3.
fn gif_file(frames: &[([u16; 4], Option<u8>, &[u8])]) -> Vec<u8> {
    let palette = [10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200];
    let mut bytes = b"GIF89a\x03\0\x02\0\x81\x03\0".to_vec();
    bytes.extend(palette);
    for (place, transparent, indices) in frames {
        let flag = u8::from(transparent.is_some());
        bytes.extend([
            0x21,
            0xf9,
            4,
            flag,
            10,
            0,
            transparent.unwrap_or(0),
            0,
            0x2c,
        ]);
        bytes.extend(place.iter().flat_map(|v| v.to_le_bytes()));
        bytes.push(0);
        // LZW that clears its table before each index, so that every code has three bits.
        let codes = indices.iter().flat_map(|i| [4, *i]).chain([5]);
        let (mut bits, mut count, mut packed) = (0_u32, 0, Vec::new());
        for code in codes {
            bits |= u32::from(code) << count;
            count += 3;
            while count >= 8 {
                packed.push(bits as u8);
                bits >>= 8;
                count -= 8;
            }
        }
        packed.push(bits as u8);
        bytes.extend([2, packed.len() as u8]);
        bytes.extend(packed);
        bytes.push(0);
    }
    bytes.push(0x3b);
    bytes
}

#[test]
fn gif_frames_lie_on_their_canvas() {
    const A: [u8; 3] = [10, 20, 30];
    const R: [u8; 3] = [200, 0, 0];
    const G: [u8; 3] = [0, 200, 0];
    const B: [u8; 3] = [0, 0, 200];
    let full: &[u8] = &[0, 1, 2, 3, 0, 1];
    let check = |frames: &[([u16; 4], Option<u8>, &[u8])], pixels: &[[u8; 3]]| {
        assert_eq!(rgb(&gif_file(frames)).into_raw(), pixels.concat());
    };
    check(&[([0, 0, 3, 2], None, full)], &[A, R, G, B, A, R]);
    check(&[([0, 0, 3, 2], Some(1), full)], &[A, R, G, B, A, R]);
    let second: &[u8] = &[1; 6];
    check(
        &[([0, 0, 3, 2], None, full), ([0, 0, 3, 2], None, second)],
        &[A, R, G, B, A, R],
    );
    check(&[([1, 1, 2, 1], None, &[1, 2])], &[A, A, A, A, R, G]);
    check(&[([1, 1, 2, 1], Some(2), &[1, 2])], &[G, G, G, G, R, G]);
    // A frame larger than the screen enlarges the canvas.
    check(
        &[([2, 1, 2, 2], None, &[1, 2, 3, 1])],
        &[A, A, A, A, A, A, R, G, A, A, B, R],
    );
}

#[test]
fn jpeg_colour_spaces() {
    let first_and_last = |bytes: &[u8]| {
        let image = rgb(bytes);
        (image.get_pixel(0, 0).0, image.get_pixel(15, 7).0)
    };
    let cmyk = fixture!("cmyk.jpg");
    let expected = ([216, 137, 49], [42, 180, 126]);
    assert_eq!(first_and_last(cmyk), expected);
    // Byte 11 after "Adobe" is the colour transform: 2 means YCCK.
    let adobe = cmyk.windows(5).position(|w| w == b"Adobe").unwrap();
    let mut ycck = cmyk.to_vec();
    ycck[adobe + 11] = 2;
    assert_eq!(first_and_last(&ycck), ([99, 0, 0], [113, 195, 8]));
    // Pillow takes CMYK as inverted also where Adobe's marker is missing.
    let mut plain = cmyk.to_vec();
    plain.drain(adobe - 4..adobe + 12);
    assert_eq!(first_and_last(&plain), expected);
    // Stored as RGB, not as YCbCr.
    let image = rgb(fixture!("rgb.jpg"));
    let pixels = [(0, 0), (5, 4), (7, 7)].map(|(x, y)| image.get_pixel(x, y).0);
    assert_eq!(pixels, [[183, 207, 236], [141, 109, 93], [57, 57, 46]]);
}

#[test]
fn odd_jpeg_sampling_is_an_error() {
    // Sampling factors of the four components: black with more rows than the colours have, and
    // colours that do not divide the largest.
    for factors in [[0x11, 0x11, 0x11, 0x14], [0x33, 0x22, 0x11, 0x33]] {
        let mut bytes = fixture!("cmyk.jpg").to_vec();
        let frame = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        for (component, factor) in factors.into_iter().enumerate() {
            bytes[frame + 11 + 3 * component] = factor;
        }
        let error = decode(&bytes, "odd.jpg", OPTIONS).unwrap_err();
        assert!(error.to_string().contains("sampling"), "{error}");
    }
}

#[test]
fn exif_orientation_is_applied_only_when_asked() {
    let bytes = fixture!("exif6.jpg");
    let image = rgb(bytes);
    assert_eq!(image.dimensions(), (12, 8));
    let pixels = [(0, 0), (5, 4), (11, 7)].map(|(x, y)| image.get_pixel(x, y).0);
    assert_eq!(pixels, [[174, 208, 235], [137, 111, 94], [11, 13, 2]]);
    // Pillow: ImageOps.exif_transpose.
    let turned = DecodeOptions {
        apply_exif: true,
        ..OPTIONS
    };
    let image = decode(bytes, "exif6.jpg", turned).unwrap().image;
    assert_eq!(image.dimensions(), (8, 12));
    let pixels = [(0, 0), (4, 5), (7, 11)].map(|(x, y)| image.get_pixel(x, y).0);
    assert_eq!(pixels, [[90, 94, 44], [129, 115, 102], [246, 246, 255]]);
}

#[test]
fn errors_name_the_file_and_the_reason() {
    let photo = fixture!("exif6.jpg");
    let rgba = RgbaImage::from_pixel(40, 30, Rgba([1, 2, 3, 4]));
    let whole_png = encode(&rgba, ImageFormat::Png);
    let whole_gif = gif_file(&[([0, 0, 3, 2], None, &[0; 6])]);
    let cases: [(&[u8], &str); 9] = [
        (b"", "empty"),
        (b"not an image at all", "not a JPEG"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (&photo[..photo.len() - 2], "cut short"),
        (&photo[..photo.len() / 2], "cut short"),
        (&photo[..3], "cut short"),
        (&whole_png[..whole_png.len() - 30], "cut short"),
        (&whole_gif[..whole_gif.len() - 5], "cut short"),
        (b"GIF89a\x03\0\x02\0\0\0\0\x3b", "damaged"),
    ];
    for (bytes, word) in cases {
        let error = decode(bytes, "some/photo.jpg", OPTIONS).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("some/photo.jpg"), "{message}");
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[test]
fn too_many_pixels_are_refused_before_they_are_decoded() {
    // A few bytes that claim 2³⁰ pixels and more.
    let mut huge_png = png(1, 8, 2, &[], &[0; 3]);
    let mut header = b"IHDR".to_vec();
    header.extend(0x4000_u32.to_be_bytes());
    header.extend(0x1_0000_u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut crc = !0_u32;
    for byte in &header {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
    }
    huge_png[12..29].copy_from_slice(&header);
    huge_png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    let mut huge_jpeg = fixture!("exif6.jpg").to_vec();
    let frame = huge_jpeg.windows(2).position(|w| w == [0xff, 0xc0]);
    let frame = frame.unwrap();
    huge_jpeg[frame + 5..frame + 9].copy_from_slice(&[0xfe, 0, 0xfe, 0]);
    let mut huge_gif = gif_file(&[([0, 0, 3, 2], None, &[0; 6])]);
    huge_gif[6..10].copy_from_slice(&[0xff; 4]);
    for bytes in [huge_png, huge_jpeg, huge_gif] {
        let error = decode(&bytes, "bomb", OPTIONS).unwrap_err();
        assert!(
            matches!(error, DataError::ImageTooLarge { max_pixels, .. } if max_pixels == 1 << 20),
            "{error}"
        );
        assert!(error.to_string().contains("bomb"), "{error}");
    }
}
