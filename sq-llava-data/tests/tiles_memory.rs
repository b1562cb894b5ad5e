//! Long pictures become tiles without more memory than a few rows.

use golden::allocations::{Counting, measure};
use sq_llava_data::image::{
    AnyResolution, ImageProcessor, ImageProcessorConfig, PatchMerge, RgbImage,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

/// One test, for what is counted is the whole process's.
#[test]
fn long_pictures_are_cut_in_little_memory() {
    let mut config = ImageProcessorConfig::clip(28);
    config.tiling = Some(AnyResolution {
        pinpoints: vec![(28, 84), (84, 28), (56, 56)],
        max_tiles: Some(9),
        merge: PatchMerge::SpatialUnpad,
    });
    let processor = ImageProcessor::new(config).expect("a processor");
    // Six megabytes each. Whole rows or columns of 28 pixels would take 84.
    for (width, height) in [(1_000_000, 2), (2, 1_000_000)] {
        let image = RgbImage::from_pixel(width, height, image::Rgb([200, 100, 50]));
        // Alone, and padded to a square of a terapixel.
        for (pictures, tiles) in [(1, 4), (2, 1)] {
            let (found, used) = measure(|| processor.cut(&image, pictures));
            assert_eq!(found.tiles.len(), tiles, "{width} x {height}");
            let peak = used.peak;
            assert!(
                peak < 16 * MIB,
                "{width} x {height}, {pictures}: {peak} bytes"
            );
            let found = found.tiles[0].get_pixel(14, 14).0;
            assert_eq!(found[0] == 200, pictures == 1, "{found:?}");
        }
    }
}
