//! Part e: pictures, resized and normalised, against Pillow and transformers.

use std::path::{Path, PathBuf};

use golden::Tensors;
use sq_llava_data::image::{ImageAspect, ImageProcessor, ImageProcessorConfig, RgbImage};

/// A folder of part e and what its json says.
struct Folder {
    path: PathBuf,
    processor: ImageProcessorConfig,
}

/// Folders with the configuration (size, mean, deviation) that their json gives.
fn folders() -> Vec<Folder> {
    golden::cases("e_")
        .into_iter()
        .map(|case| {
            let three = |key: &str| -> [f64; 3] {
                let list = case.json[key].as_array().expect(key);
                let list: Vec<f64> = list.iter().map(|v| v.as_f64().expect(key)).collect();
                list.try_into().expect(key)
            };
            let size = case.json["size"].as_u64().expect("size") as u32;
            let mut processor = ImageProcessorConfig::clip(size);
            processor.image_mean = three("mean");
            processor.image_std = three("std");
            let background = processor_of(&processor, ImageAspect::Pad).background();
            let wanted = three("bg");
            assert_eq!(background.map(f64::from), wanted, "colour of the padding");
            Folder {
                path: case.folder,
                processor,
            }
        })
        .collect()
}

fn processor_of(config: &ImageProcessorConfig, aspect: ImageAspect) -> ImageProcessor {
    ImageProcessor::new(config.clone().with_aspect(aspect)).expect("a valid configuration")
}

/// The picture called `stem`: a file whose name without extension, or with its dots replaced, it
/// is.
fn picture(folder: &Path, stem: &str) -> PathBuf {
    golden::entries(folder)
        .into_iter()
        .find(|path| {
            let name = golden::file_name(path);
            let is_picture = !name.ends_with(".json") && !name.ends_with(".safetensors");
            is_picture
                && (name.rsplit_once('.').is_some_and(|(s, _)| s == stem)
                    || name.replace('.', "_") == stem)
        })
        .unwrap_or_else(|| panic!("{} has no picture {stem}", folder.display()))
}

/// Pillow's image beside its value for `.pad336.png`: `(stem, 336, path)`.
fn resized(folder: &Path, kind: &str) -> Vec<(String, u32, PathBuf)> {
    golden::entries(folder)
        .into_iter()
        .filter_map(|path| {
            let name = golden::file_name(&path);
            let (stem, rest) = name.strip_suffix(".png")?.rsplit_once('.')?;
            let size = rest.strip_prefix(kind)?.parse().ok()?;
            Some((stem.to_owned(), size, path.clone()))
        })
        .collect()
}

/// At least 99.9 % of the values within 1, all within 2.
fn assert_near(name: &str, differences: impl Iterator<Item = f64>) {
    // A hundredth allows for rounding of the normalised values.
    let (mut count, mut above_one, mut largest) = (0_usize, 0_usize, 0.0_f64);
    for difference in differences {
        count += 1;
        above_one += usize::from(difference > 1.01);
        largest = largest.max(difference);
    }
    assert!(count > 0, "{name}: nothing compared");
    assert!(
        above_one * 1000 <= count && largest <= 2.01,
        "{name}: {above_one} of {count} values differ by more than 1/255, one by {largest:.2}"
    );
}

fn assert_same_picture(name: &str, ours: &RgbImage, theirs: &RgbImage) {
    assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}");
    let differences = ours
        .as_raw()
        .iter()
        .zip(theirs.as_raw())
        .map(|(a, b)| f64::from(a.abs_diff(*b)));
    assert_near(name, differences);
}

fn check_resized(kind: &str, aspect: ImageAspect) {
    let mut cases = 0;
    for folder in folders() {
        for (stem, size, path) in resized(&folder.path, kind) {
            let mut config = ImageProcessorConfig::clip(size);
            config.image_mean = folder.processor.image_mean;
            let processor = processor_of(&config, aspect);
            let image = processor.open(&picture(&folder.path, &stem)).unwrap();
            let theirs = processor.open(&path).unwrap();
            assert_same_picture(
                &format!("{stem} {kind}"),
                &processor.resize_to_input(&image),
                &theirs,
            );
            cases += 1;
        }
    }
    assert!(cases > 0, "no *.{kind}NNN.png in part e");
}

#[test]
fn golden_e_pad_resize() {
    check_resized("pad", ImageAspect::Pad);
}

#[test]
fn golden_e_crop_resize() {
    check_resized("crop", ImageAspect::Crop);
}

#[test]
fn golden_e_jpeg_decode() {
    let mut cases = 0;
    for folder in folders() {
        let processor = processor_of(&folder.processor, ImageAspect::Pad);
        for path in golden::entries(&folder.path) {
            let name = golden::file_name(&path);
            let Some(source) = name.strip_suffix(".decoded.png") else {
                continue;
            };
            let ours = processor.open(&folder.path.join(source)).unwrap();
            assert_same_picture(source, &ours, &processor.open(&path).unwrap());
            cases += 1;
        }
    }
    assert!(cases > 0, "no *.decoded.png in part e");
}

fn check_pixel_values(kind: &str, aspect: ImageAspect) {
    let suffix = format!(".{kind}_sub");
    let mut cases = 0;
    for folder in folders() {
        let processor = processor_of(&folder.processor, aspect);
        let file = golden::entries(&folder.path)
            .into_iter()
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
        for tensors in file.map(|path| Tensors::read(&path)) {
            for tensor in tensors.names().filter(|n| n.ends_with(&suffix)) {
                let name = tensor.strip_suffix(&suffix).expect("filtered");
                let path = picture(&folder.path, name);
                let input = processor.preprocess_path(&path).unwrap();
                let (height, width) = processor.input_size();
                assert_eq!(
                    (input.height, input.width),
                    (height as usize, width as usize)
                );
                assert_eq!(input.data.len(), 3 * input.height * input.width, "{name}");
                let index: Vec<usize> = tensors
                    .i64(&format!("{name}.idx"))
                    .into_iter()
                    .map(|i| i as usize)
                    .collect();
                let theirs = tensors.f64(tensor);
                assert_eq!(theirs.len(), 3 * index.len() * index.len(), "{name}");
                // Back to steps of 1/255, the unit of the allowed difference.
                let differences = theirs.iter().enumerate().map(|(i, theirs)| {
                    let n = index.len();
                    let (c, y, x) = (i / (n * n), index[i / n % n], index[i % n]);
                    let ours = input.data[(c * input.height + y) * input.width + x];
                    let step = folder.processor.image_std[c] * 255.0;
                    (f64::from(ours) - theirs).abs() * step
                });
                assert_near(tensor, differences);
                cases += 1;
            }
        }
    }
    assert!(cases > 0, "no NAME{suffix} in part e");
}

#[test]
fn golden_e_pixel_values_pad() {
    check_pixel_values("pad", ImageAspect::Pad);
}

#[test]
fn golden_e_pixel_values_crop() {
    check_pixel_values("crop", ImageAspect::Crop);
}
