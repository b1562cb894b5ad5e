//! Pictures that claim more than they hold: an error before memory is taken.

use std::path::{Path, PathBuf};

use golden::allocations::{Counting, Used, measure};
use sq_llava_data::DataError;
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images")
}

/// The size of a picture, and what decoding it took.
fn decode(processor: &ImageProcessor, bytes: &[u8]) -> (Result<(u32, u32), DataError>, Used) {
    let (image, used) = measure(|| processor.decode(bytes, "the picture"));
    (image.map(|image| image.dimensions()), used)
}

/// One test, for what is counted is the whole process's.
#[test]
fn fault_29_what_a_picture_claims_is_not_allocated() {
    let usual = ImageProcessor::new(ImageProcessorConfig::clip(8)).expect("a processor");
    let read = |name: &str| std::fs::read(images().join(name)).expect("a picture");

    // 13377 × 13377 pixels in 46 bytes, without alpha: the decoder takes seven bytes for each.
    let mut solid = read("solid.webp");
    solid[24] &= !0x10;
    let (found, used) = decode(&usual, &solid);
    let error = found.expect_err("refused").to_string();
    assert!(error.contains("13377x13377"), "{error}");
    assert!(used.peak < MIB, "{} bytes", used.peak);

    // An EXIF chunk that says that it has 2.8 GB.
    let (found, used) = decode(&usual.clone().turning(), &read("exif.webp"));
    assert_eq!(found.expect("decoded without it"), (20, 12));
    assert!(used.peak < MIB, "{} bytes", used.peak);

    // A JPEG of 12 × 8 pixels that claims 12000 × 12000: no such file is that short.
    let mut claims = read("exif6.jpg");
    let frame = claims.windows(2).position(|w| w == [0xff, 0xc0]);
    let frame = frame.expect("a frame");
    let side = 12_000_u16.to_be_bytes();
    claims[frame + 5..frame + 9].copy_from_slice(&[side, side].concat());
    let (found, used) = decode(&usual, &claims);
    let error = found.expect_err("refused").to_string();
    assert!(error.contains("cannot hold 12000x12000"), "{error}");
    assert!(used.peak < MIB, "{} bytes", used.peak);
}
