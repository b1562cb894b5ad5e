//! Masks against pycocotools and Pillow (`scripts/mask_fixtures.py`), and their way through the
//! picture's own geometry.

use std::path::{Path, PathBuf};

use image::{GrayImage, ImageFormat, Rgb, RgbImage};
use sq_llava_data::image::{
    AnyResolution, ImageAspect, ImageProcessor, ImageProcessorConfig, ImageSize, PatchMerge,
};
use sq_llava_data::masks::{LabelMap, MaskFolder, PatchGrid};

/// Height and width of the pictures of the references.
const SIZE: (u32, u32) = (23, 37);

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/masks");
    folder.join(name)
}

fn values(map: &LabelMap, (height, width): (u32, u32)) -> Vec<Vec<u16>> {
    let row = |row| (0..width).map(|column| map.at(row, column)).collect();
    (0..height).map(row).collect()
}

#[test]
fn annotations_are_what_pycocotools_makes_of_them() {
    for name in ["polygons", "packed", "plain"] {
        let map = MaskFolder::read(&fixture(&format!("{name}.json")), SIZE).unwrap();
        let expected = image::open(fixture(&format!("{name}.labels.png"))).unwrap();
        let expected = expected.into_luma8();
        for (x, y, pixel) in expected.enumerate_pixels() {
            assert_eq!(map.at(y, x), u16::from(pixel.0[0]), "{name} at {x}, {y}");
        }
    }
}

#[test]
fn label_maps_have_the_values_that_are_stored() {
    let text = std::fs::read_to_string(fixture("label_maps.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in ["grey8", "grey16", "palette", "one_bit"] {
        let map = MaskFolder::read(&fixture(&format!("{name}.png")), SIZE).unwrap();
        let found = serde_json::json!(values(&map, SIZE));
        assert_eq!(found, expected[name], "{name}");
    }
}

#[test]
fn a_picture_has_the_masks_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = MaskFolder::open(dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("no such folder"), "{error}");
    let masks = MaskFolder::open(dir.path()).unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("a")).unwrap();
    for name in [
        "a/b.png",
        "a/c.json",
        "d.png",
        "d.json",
        "set.parquet#3.1.png",
    ] {
        std::fs::write(path(name), "").unwrap();
    }
    let found = |name| masks.find(name).unwrap();
    assert_eq!(found("a/b.jpg"), Some(path("a/b.png")));
    assert_eq!(found("./a/c.webp"), Some(path("a/c.json")));
    assert_eq!(found("b.jpg"), None);
    // What follows the last point is the place in the row.
    assert_eq!(found("set.parquet#3.1"), Some(path("set.parquet#3.1.png")));
    assert_eq!(found("set.parquet#3.0"), None);
    for (name, word) in [
        ("d.jpg", "d.json"),
        ("/a/b.jpg", "/a/b.jpg"),
        ("../x.jpg", "../x"),
    ] {
        let error = masks.find(name).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn damaged_masks_name_their_file_and_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("m.json");
    let whole = r#"{"size": [23, 37], "counts": "#;
    for (text, word) in [
        ("{".to_owned(), "JSON"),
        ("3".into(), "neither"),
        ("{}".into(), "annotations"),
        (
            r#"{"images": [{}, {}], "annotations": []}"#.into(),
            "2 images",
        ),
        ("[{}]".into(), "annotation 1: it has no `segmentation`"),
        (r#"[{"segmentation": [[1, 2, 3, 4]]}]"#.into(), "4 numbers"),
        (
            r#"[{"segmentation": [1, 2, 3, 4, 5, 6]}]"#.into(),
            "list of polygons",
        ),
        (
            r#"[{"segmentation": [[1, 2, 3, 4, 9e9, 6]]}]"#.into(),
            "far outside",
        ),
        (
            r#"[{"segmentation": {"size": [37, 23], "counts": [851]}}]"#.into(),
            "23x37",
        ),
        (r#"[{"segmentation": {"counts": [851]}}]"#.into(), "`size`"),
        (
            format!(r#"[{{"segmentation": {whole} [850]}}}}]"#),
            "850 of its 851",
        ),
        (
            format!(r#"[{{"segmentation": {whole} [1, 851]}}}}]"#),
            "beyond",
        ),
        (
            format!(r#"[{{"segmentation": {whole} [-1]}}}}]"#),
            "whole numbers",
        ),
        (
            format!(r#"[{{"segmentation": {whole} "P"}}}}]"#),
            "cut short",
        ),
        (format!(r#"[{{"segmentation": {whole} " "}}}}]"#), "' '"),
        (
            format!(r#"[{{"segmentation": {whole} "ooooooooo"}}}}]"#),
            "too large",
        ),
    ] {
        std::fs::write(&json, &text).unwrap();
        let error = MaskFolder::read(&json, SIZE).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("m.json"),
            "{text}: {error}"
        );
    }
    let png = dir.path().join("m.png");
    let whole = std::fs::read(fixture("grey16.png")).unwrap();
    std::fs::write(&png, &whole[..whole.len() - 30]).unwrap();
    let error = MaskFolder::read(&png, SIZE).unwrap_err().to_string();
    assert!(
        error.contains("damaged") && error.contains("m.png"),
        "{error}"
    );
    std::fs::write(&png, &whole).unwrap();
    let error = MaskFolder::read(&png, (37, 23)).unwrap_err().to_string();
    assert!(error.contains("its picture 23x37"), "{error}");
    let rgb = RgbImage::new(37, 23);
    rgb.save_with_format(&png, ImageFormat::Png).unwrap();
    let error = MaskFolder::read(&png, SIZE).unwrap_err().to_string();
    assert!(error.contains("Rgb"), "{error}");
}

/// Label 0 is the padding's grey, so that what is outside looks like no mask.
const COLOURS: [[u8; 3]; 5] = [
    [122, 116, 104],
    [255, 0, 0],
    [0, 255, 0],
    [0, 0, 255],
    [255, 255, 0],
];

/// Regions of odd shapes and sizes, none smaller than a patch.
fn label(x: u32, y: u32, width: u32, height: u32) -> u8 {
    let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
    if (x - 0.3).powi(2) + (y - 0.4).powi(2) < 0.06 {
        1
    } else if x > 0.62 && y < 0.55 {
        2
    } else if y > 0.7 && x < 0.5 {
        3
    } else if y > 0.8 {
        4
    } else {
        0
    }
}

/// The label of most pixels of each patch of a tile, and how many have it.
fn of_colours(tile: &RgbImage, patch: u32) -> Vec<(u16, usize)> {
    let nearest = |pixel: &Rgb<u8>| {
        let distance = |colour: &[u8; 3]| {
            let parts = colour.iter().zip(pixel.0);
            parts
                .map(|(a, b)| u32::from(a.abs_diff(b)).pow(2))
                .sum::<u32>()
        };
        // Black is the crop's and the tiles' padding.
        let black = distance(&[0; 3]);
        let best = (0..COLOURS.len())
            .min_by_key(|&i| distance(&COLOURS[i]))
            .unwrap();
        if black < distance(&COLOURS[best]) {
            0
        } else {
            best
        }
    };
    let side = tile.width() / patch;
    let patches = (0..side * side).map(|at| {
        let mut counts = [0; COLOURS.len()];
        for y in 0..patch {
            for x in 0..patch {
                let pixel = tile.get_pixel(at % side * patch + x, at / side * patch + y);
                counts[nearest(pixel)] += 1;
            }
        }
        let (label, count) = counts
            .iter()
            .enumerate()
            .max_by_key(|(_, count)| **count)
            .unwrap();
        (label as u16, *count)
    });
    patches.collect()
}

/// A picture whose colours are its labels, through the processor and as masks.
#[test]
fn masks_follow_the_pictures_geometry() {
    const PATCH: u32 = 8;
    let dir = tempfile::tempdir().unwrap();
    let clip = || ImageProcessorConfig::clip(96);
    let tiles = |merge, max_tiles| AnyResolution {
        merge,
        ..AnyResolution::published(96, max_tiles)
    };
    let mut small = clip();
    small.size = ImageSize::ShortestEdge(64);
    let configs = [
        clip().with_aspect(ImageAspect::Pad),
        clip().with_aspect(ImageAspect::Crop),
        clip().with_aspect(ImageAspect::Resize),
        // Smaller than its crop: black around.
        small.with_aspect(ImageAspect::Crop),
        clip()
            .with_tiling(tiles(PatchMerge::SpatialUnpad, None))
            .unwrap(),
        clip()
            .with_tiling(tiles(PatchMerge::SpatialUnpad, Some(9)))
            .unwrap(),
    ];
    let grid = PatchGrid {
        patch_size: PATCH as usize,
        patches: 12,
        class_token: true,
        first_dropped: true,
    };
    for config in configs {
        let processor = ImageProcessor::new(config).unwrap();
        let name = processor.config().aspect_name();
        for (width, height) in [(150, 150), (201, 133), (97, 260), (96, 96), (60, 41)] {
            let of = |x, y| label(x, y, width, height);
            let picture =
                RgbImage::from_fn(width, height, |x, y| Rgb(COLOURS[usize::from(of(x, y))]));
            let masks = GrayImage::from_fn(width, height, |x, y| image::Luma([of(x, y)]));
            let path = dir.path().join("m.png");
            masks.save_with_format(&path, ImageFormat::Png).unwrap();
            let map = MaskFolder::read(&path, (height, width)).unwrap();
            assert_eq!(map.masks(), 4);
            for pictures in [1, 2] {
                let cut = processor.cut(&picture, pictures);
                let sources = processor.sources((height, width), pictures);
                assert_eq!(cut.tiles.len(), sources.len(), "{name}");
                let (mut clear, mut labelled) = (0, 0);
                for (number, (tile, source)) in cut.tiles.iter().zip(&sources).enumerate() {
                    let found = grid.labels(source, &map);
                    let expected = of_colours(tile, PATCH);
                    assert_eq!(found.len(), expected.len());
                    for (at, (found, (expected, count))) in found.iter().zip(expected).enumerate() {
                        // Colours run into one another at the edges of regions.
                        if 10 * count < 7 * (PATCH * PATCH) as usize {
                            continue;
                        }
                        clear += 1;
                        labelled += usize::from(expected > 0);
                        assert_eq!(
                            *found, expected,
                            "{name} {width}x{height}, tile {number}, patch {at}"
                        );
                    }
                }
                let all = 144 * sources.len();
                assert!(
                    4 * clear > 3 * all && labelled > 9,
                    "{name}: {clear} of {all}"
                );
            }
        }
    }
}

#[test]
fn a_patch_needs_more_than_half_of_a_label() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.png");
    // Four patches of 4 x 4: all of 1, 9 pixels of 2 and 7 of none, 8 of each, 6, 5 and 5.
    let labels = |x: u32, y: u32| match (x / 4, y / 4) {
        (0, 0) => 1,
        (1, 0) => [0, 2][usize::from((x % 4) * 4 + y < 9)],
        (0, _) => [3, 4][usize::from(x % 4 < 2)],
        _ => [5, 6, 7][((x % 4) * 4 + y % 4) as usize % 3],
    };
    let map = GrayImage::from_fn(8, 8, |x, y| image::Luma([labels(x, y)]));
    map.save_with_format(&path, ImageFormat::Png).unwrap();
    let map = MaskFolder::read(&path, (8, 8)).unwrap();
    let config = ImageProcessorConfig::clip(8);
    let processor = ImageProcessor::new(config).unwrap();
    let sources = &processor.sources((8, 8), 1)[0];
    let labels = |class_token, first_dropped| {
        let grid = PatchGrid {
            patch_size: 4,
            patches: 2,
            class_token,
            first_dropped,
        };
        grid.labels(sources, &map)
    };
    assert_eq!(labels(true, true), [1, 2, 0, 0]);
    assert_eq!(labels(false, false), [1, 2, 0, 0]);
    assert_eq!(labels(true, false), [0, 1, 2, 0, 0]);
    assert_eq!(labels(false, true), [2, 0, 0]);
}

#[test]
fn a_check_reads_the_masks_of_the_pictures() {
    use sq_llava_data::Source;
    use sq_llava_data::check::{CheckOptions, check};

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("masks")).unwrap();
    let samples = ["a", "b", "c", "gone", "a"].map(|name| {
        serde_json::json!({"id": name, "image": format!("{name}.bmp"), "conversations": [
            {"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]})
    });
    std::fs::write(path("data.json"), serde_json::json!(samples).to_string()).unwrap();
    for name in ["a", "b", "c"] {
        RgbImage::new(37, 23)
            .save(path(&format!("{name}.bmp")))
            .unwrap();
    }
    std::fs::copy(fixture("plain.json"), path("masks/a.json")).unwrap();
    std::fs::write(path("masks/b.json"), "[3]").unwrap();
    let masks = MaskFolder::open(path("masks")).unwrap();
    let processor = ImageProcessor::new(ImageProcessorConfig::default()).unwrap();
    let look = |masks| {
        let options = CheckOptions {
            images: Some(&processor),
            files: true,
            masks,
            labels: None,
            threads: 2,
            listed: 9,
        };
        let sources = vec![Source::new(path("data.json"), dir.path())];
        check(sources, &options, &|_, _, _| {}).unwrap()
    };
    let report = look(Some(&masks));
    let counts = report.images.clone().unwrap().masks.unwrap();
    assert_eq!((counts.images, counts.with_masks, counts.masks), (3, 1, 5));
    let group = report
        .findings
        .iter()
        .find(|group| group.kind.name() == "bad_mask");
    let bad = &group.unwrap().listed;
    assert_eq!((bad.len(), bad[0].image.as_deref()), (1, Some("b.bmp")));
    assert!(bad[0].detail.contains("b.json") && bad[0].detail.contains("annotation 1"));
    assert_eq!(report.errors, 2);
    let text = report.to_string();
    assert!(text.contains("masks: of 1 of 3 images, 5 in all"), "{text}");
    let text = serde_json::to_string(&look(None)).unwrap();
    assert!(!text.contains("mask"), "{text}");
}
