use image::Rgb;

use super::*;

/// A picture whose pixels all differ from their neighbours.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([
            (x * 37 + y * 11) as u8,
            (x * 5 + y * 71) as u8,
            (x ^ y) as u8,
        ])
    })
}

/// FNV-1a.
fn hash(image: &RgbImage) -> u64 {
    image
        .as_raw()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

fn axis(kernel: Kernel, length: u32, canvas: u32, resized: u32) -> Axis {
    Axis {
        kernel,
        canvas,
        offset: (canvas - length) / 2,
        resized: resized.into(),
        start: 0,
        len: resized,
    }
}

/// A kernel, the size (width, height) before and after, and the hash of what Pillow 13.0.0 makes of
/// [`picture`].
type Resized = (Kernel, (u32, u32), (u32, u32), u64);

#[rustfmt::skip]
const RESIZED: &[Resized] = &[
    (Kernel::Lanczos, (40, 29), (17, 23), 0xf82e2aaec971c7c9),
    (Kernel::Lanczos, (21, 90), (13, 11), 0xa2a63870e61117fe),
    (Kernel::Lanczos, (7, 5), (31, 40), 0xf8cccfde8cabf273),
    (Kernel::Lanczos, (3, 64), (30, 9), 0xc389e6aa7dd19dd0),
    (Kernel::Lanczos, (33, 20), (33, 7), 0xd84bba760ad197b2),
    (Kernel::Bilinear, (40, 29), (17, 23), 0x95c6d894c60434ca),
    (Kernel::Bilinear, (21, 90), (13, 11), 0xd99af3739ef05e8e),
    (Kernel::Bilinear, (7, 5), (31, 40), 0x402d1250931bc405),
    (Kernel::Bilinear, (3, 64), (30, 9), 0xbb4a559010f7fc27),
    (Kernel::Bilinear, (33, 20), (33, 7), 0x89bc3e0e5dfc9f97),
    (Kernel::Bicubic, (40, 29), (17, 23), 0xc6f2067e36606048),
    (Kernel::Bicubic, (21, 90), (13, 11), 0x086fe83005744bbf),
    (Kernel::Bicubic, (7, 5), (31, 40), 0xd9993740f5f6ced9),
    (Kernel::Bicubic, (3, 64), (30, 9), 0xeacebf31bbf90dfb),
    (Kernel::Bicubic, (33, 20), (33, 7), 0x7f596967fceb9105),
    (Kernel::Box, (40, 29), (17, 23), 0x746c961cb4f1fb8e),
    (Kernel::Box, (21, 90), (13, 11), 0x5067f544b901d03f),
    (Kernel::Box, (7, 5), (31, 40), 0xb1d8ef2282c4673d),
    (Kernel::Box, (3, 64), (30, 9), 0xf2f85c19a97ef48b),
    (Kernel::Box, (33, 20), (33, 7), 0x8b7554b1cda167f4),
    (Kernel::Hamming, (40, 29), (17, 23), 0x539f2659319a060d),
    (Kernel::Hamming, (21, 90), (13, 11), 0xf9c3ad1ddbce42a0),
    (Kernel::Hamming, (7, 5), (31, 40), 0x491bdf81c9090f05),
    (Kernel::Hamming, (3, 64), (30, 9), 0x4cb3a462ccd4bd4d),
    (Kernel::Hamming, (33, 20), (33, 7), 0xb138c94da2c85075),
];

#[test]
fn every_kernel_is_pillow_s() {
    for &(kernel, (width, height), (to_width, to_height), wanted) in RESIZED {
        let x = axis(kernel, width, width, to_width);
        let y = axis(kernel, height, height, to_height);
        let found = resample_exactly(&picture(width, height), x, y, [0; 3]);
        let name = format!("{kernel:?} {width} x {height} to {to_width} x {to_height}");
        assert_eq!(hash(&found), wanted, "{name}");
    }
}

/// The size (width, height), the side of the result, and the hash of what Pillow 13.0.0 makes of
/// [`picture`] on a square of CLIP's mean colour.
#[rustfmt::skip]
const PADDED: &[((u32, u32), u32, u64)] = &[
    ((30, 11), 16, 0x619151215c6e1d3d),
    ((5, 41), 12, 0x9a8b47686100cc31),
    ((9, 4), 20, 0x6341e19e6937f0b8),
];

#[test]
fn a_padded_square_is_pillow_s() {
    for &((width, height), side, wanted) in PADDED {
        let square = width.max(height);
        let x = axis(Kernel::Bicubic, width, square, side);
        let y = axis(Kernel::Bicubic, height, square, side);
        let found = resample_exactly(&picture(width, height), x, y, [122, 116, 104]);
        assert_eq!(hash(&found), wanted, "{width} x {height}");
    }
}

#[test]
fn a_window_is_a_part_of_the_whole() {
    for (width, height) in [(40, 29), (21, 90), (7, 5)] {
        let image = picture(width, height);
        let x = axis(Kernel::Bicubic, width, width, 24);
        let y = axis(Kernel::Bicubic, height, height, 19);
        let whole = resample_exactly(&image, x, y, [0; 3]);
        let part = Axis {
            start: 5,
            len: 11,
            ..x
        };
        let found = resample_exactly(
            &image,
            part,
            Axis {
                start: 3,
                len: 8,
                ..y
            },
            [0; 3],
        );
        let wanted = image::imageops::crop_imm(&whole, 5, 3, 11, 8).to_image();
        assert_eq!(found, wanted, "{width} x {height}");
    }
}

#[test]
fn a_line_far_from_the_window_is_background() {
    let x = axis(Kernel::Bicubic, 1, 40_000, 8);
    let y = axis(Kernel::Bicubic, 40_000, 40_000, 8);
    let image = RgbImage::from_pixel(1, 40_000, Rgb([250, 250, 250]));
    let found = resample_exactly(&image, x, y, [9, 8, 7]);
    assert_eq!(found.get_pixel(0, 4).0, [9, 8, 7]);
    assert_eq!(found.dimensions(), (8, 8));
}
