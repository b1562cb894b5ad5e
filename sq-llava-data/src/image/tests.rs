use image::Rgb;

use super::*;

fn processor(size: u32, aspect: ImageAspect) -> ImageProcessor {
    ImageProcessor::new(ImageProcessorConfig::clip(size).with_aspect(aspect)).unwrap()
}

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

#[test]
fn padding_is_the_mean_colour_around_the_centre() {
    let processor = processor(8, ImageAspect::Pad);
    assert_eq!(processor.background(), [122, 116, 104]);
    // 8 wide and 3 high: two rows above, three below, nothing to resample.
    let image = picture(8, 3);
    let padded = processor.resize_to_input(&image);
    for (x, y, pixel) in padded.enumerate_pixels() {
        let expected = match y {
            2..5 => image.get_pixel(x, y - 2).0,
            _ => processor.background(),
        };
        assert_eq!(pixel.0, expected, "{x},{y}");
    }
    let tall = picture(3, 8);
    let padded = processor.resize_to_input(&tall);
    for (x, y, pixel) in padded.enumerate_pixels() {
        let expected = match x {
            2..5 => tall.get_pixel(x - 2, y).0,
            _ => processor.background(),
        };
        assert_eq!(pixel.0, expected, "{x},{y}");
    }
}

#[test]
fn crop_is_the_centre() {
    let cropped = processor(4, ImageAspect::Crop).resize_to_input(&picture(9, 4));
    let expected = image::imageops::crop_imm(&picture(9, 4), 2, 0, 4, 4).to_image();
    assert_eq!(cropped, expected);
}

#[test]
fn a_crop_larger_than_the_picture_is_surrounded_by_zeros() {
    let mut config = ImageProcessorConfig::clip(4);
    config.crop_size = (7, 9);
    let processor = ImageProcessor::new(config).unwrap();
    let image = picture(4, 4);
    let result = processor.resize_to_input(&image);
    assert_eq!(result.dimensions(), (9, 7));
    // transformers' center_crop: ceil((7 − 4) / 2) rows above, ceil((9 − 4) / 2) columns before.
    for (x, y, pixel) in result.enumerate_pixels() {
        let inside = (3..7).contains(&x) && (2..6).contains(&y);
        let expected = if inside {
            image.get_pixel(x - 3, y - 2).0
        } else {
            [0; 3]
        };
        assert_eq!(pixel.0, expected, "{x},{y}");
    }
}

#[test]
fn resize_stretches() {
    // Pillow 13.0.0: Image.resize((4, 2), BICUBIC) of L 0, 100, 200 over 50, 150, 250.
    let values = [0_u8, 100, 200, 50, 150, 250];
    let image = RgbImage::from_fn(3, 2, |x, y| Rgb([values[(y * 3 + x) as usize]; 3]));
    let mut config = ImageProcessorConfig::clip(4).with_aspect(ImageAspect::Resize);
    config.crop_size = (2, 4);
    let result = ImageProcessor::new(config).unwrap().resize_to_input(&image);
    let greys: Vec<u8> = result.pixels().map(|p| p.0[0]).collect();
    assert_eq!(greys, [0, 56, 144, 205, 45, 106, 194, 255]);
}

#[test]
fn values_are_normalised_per_channel() {
    let processor = processor(2, ImageAspect::Pad);
    let image = RgbImage::from_pixel(2, 2, Rgb([0, 128, 255]));
    let input = processor.preprocess(&image);
    assert_eq!((input.height, input.width, input.data.len()), (2, 2, 12));
    // (byte / 255 − mean) / std of CLIP.
    for (channel, expected) in [-1.792_262_5, 0.168_897_3, 2.145_897].iter().enumerate() {
        for value in &input.data[channel * 4..channel * 4 + 4] {
            assert!((value - expected).abs() < 1e-6, "{channel}: {value}");
        }
    }
}

#[test]
fn steps_can_be_switched_off() {
    let mut config = ImageProcessorConfig::clip(2);
    config.do_normalize = false;
    let image = RgbImage::from_pixel(2, 2, Rgb([0, 51, 255]));
    let input = ImageProcessor::new(config.clone())
        .unwrap()
        .preprocess(&image);
    assert_eq!(input.data[4], 0.2);
    config.do_rescale = false;
    config.do_resize = false;
    let input = ImageProcessor::new(config).unwrap().preprocess(&image);
    assert_eq!((input.data[4], input.data[8]), (51.0, 255.0));
}

#[test]
fn extreme_shapes_need_little_memory() {
    for aspect in [ImageAspect::Pad, ImageAspect::Crop, ImageAspect::Resize] {
        let processor = processor(64, aspect);
        for (width, height) in [
            (1, 1),
            (1, 2),
            (60_000, 1),
            (1, 60_000),
            (3, 20_000),
            (0, 5),
        ] {
            let colour = Rgb([9, 200, 77]);
            let image = RgbImage::from_pixel(width, height, colour);
            let result = processor.resize_to_input(&image);
            assert_eq!(result.dimensions(), (64, 64), "{width}x{height} {aspect:?}");
            if width > 0 && aspect != ImageAspect::Pad {
                assert!(result.pixels().all(|p| *p == colour), "{width}x{height}");
            }
        }
    }
}

#[test]
fn files_are_told_by_content_and_errors_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let processor = processor(4, ImageAspect::Pad);
    // A PNG that calls itself a JPEG.
    let path = folder.path().join("photo.jpg");
    let image = picture(4, 4);
    image
        .save_with_format(&path, image::ImageFormat::Png)
        .unwrap();
    assert_eq!(processor.open(&path).unwrap(), image);
    let input = processor.preprocess_path(&path).unwrap();
    assert_eq!(input, processor.preprocess(&image));

    let missing = folder.path().join("missing.jpg");
    let error = processor.open(&missing).unwrap_err();
    assert!(matches!(error, DataError::Io { .. }), "{error}");
    assert!(error.to_string().contains("missing.jpg"), "{error}");
    let error = processor.open(folder.path()).unwrap_err();
    assert!(matches!(error, DataError::Io { .. }), "{error}");

    let mut config = ImageProcessorConfig::clip(4);
    config.max_pixels = 15;
    let strict = ImageProcessor::new(config).unwrap();
    let error = strict.open(&path).unwrap_err();
    assert!(matches!(error, DataError::ImageTooLarge { .. }), "{error}");
    assert!(error.to_string().contains("photo.jpg"), "{error}");
}
