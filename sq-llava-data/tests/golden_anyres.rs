//! Pictures of any shape against transformers: geometry, processors, pixels and packed features.

use std::path::{Path, PathBuf};

use golden::{Tensors, Value, entries, families, json};
use sq_llava_data::image::{
    AnyResolution, ImageProcessor, ImageProcessorConfig, PatchMerge, PreparedImage,
};

/// The tolerance of the data for pixel values.
const PIXELS: f32 = 1e-6;

/// The tolerance of the data for features.
const FEATURES: f32 = 5e-5;

fn pair(value: &Value) -> (u32, u32) {
    let side = |i: usize| value[i].as_u64().expect("a pair of numbers") as u32;
    (side(0), side(1))
}

fn pairs(value: &Value) -> Vec<(u32, u32)> {
    let list = value.as_array().expect("a list of pairs");
    list.iter().map(pair).collect()
}

/// The same pair the other way round.
fn turned((a, b): (u32, u32)) -> (u32, u32) {
    (b, a)
}

/// Files of the families of one kind, wherever they lie.
fn of_kind(kind: &str) -> Vec<(PathBuf, Value)> {
    let found: Vec<_> = entries(&families())
        .into_iter()
        .filter(|path| path.is_dir())
        .flat_map(|folder| entries(&folder))
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .map(|path| (path.clone(), json(&path)))
        .filter(|(_, value)| value["kind"] == kind)
        .collect();
    assert!(!found.is_empty(), "no {kind} in {}", families().display());
    found
}

#[test]
fn golden_geometry_of_pictures_of_any_shape() {
    let mut compared = 0;
    for (path, geometry) in of_kind("anyres_geometry") {
        for (name, setting) in geometry["settings"].as_object().expect("settings") {
            let number = |key: &str| setting[key].as_u64().expect(key) as u32;
            let (tile, side) = (number("tile"), number("side"));
            assert_eq!(tile / number("patch"), side);
            let anyres = AnyResolution {
                pinpoints: pairs(&setting["pinpoints"]),
                max_tiles: setting["max"].as_u64().map(|most| most as u32),
                merge: PatchMerge::SpatialUnpad,
            };
            anyres.check(tile).expect("grids of tiles");
            let other = setting["rows_where_codes_differ"].as_array();
            let rows = setting["rows"].as_array().expect("rows").iter();
            for row in rows.chain(other.into_iter().flatten()) {
                let what = format!("{} {name} {}", path.display(), row["size_wh"]);
                let grid = anyres.grid(turned(pair(&row["size_wh"])), tile);
                let kept = grid.kept(side);
                assert_eq!(grid.resolution, pair(&row["best_hw"]), "{what}");
                assert_eq!(grid.resized, pair(&row["resized_hw"]), "{what}");
                assert_eq!(grid.padding, pair(&row["pad_top_left"]), "{what}");
                assert_eq!((kept.rows, kept.columns), pair(&row["kept_hw"]), "{what}");
                let reduced = anyres.max_tiles.and_then(|most| kept.reduced(side, most));
                let wanted = Some(&row["reduced_hw"]).filter(|value| !value.is_null());
                assert_eq!(reduced, wanted.map(pair), "{what}");
                let processor = processor_of(&anyres, tile);
                let packing = processor.packing(grid.image_size, 1);
                let features = (side * side) as usize;
                let tokens = packing.tokens(features).expect("a square");
                assert_eq!(Some(tokens as u64), row["tokens"].as_u64(), "{what}");
                let plan = packing.plan(features).expect("a square");
                assert_eq!(plan.tokens.len(), tokens, "{what}");
                compared += 1;
            }
        }
    }
    assert!(compared > 200, "{compared}");
}

/// A processor with these resolutions.
fn processor_of(anyres: &AnyResolution, tile: u32) -> ImageProcessor {
    let mut config = ImageProcessorConfig::clip(tile);
    config.tiling = Some(anyres.clone());
    ImageProcessor::new(config).expect("a processor")
}

#[test]
fn golden_defaults_of_processors_that_tile() {
    let mut compared = 0;
    for (_, defaults) in of_kind("config_defaults") {
        for (model, config) in defaults["model_types"].as_object().expect("models") {
            let class = match &**model {
                "llava_next" => "LlavaNextImageProcessor",
                "llava_onevision" => "LlavaOnevisionImageProcessor",
                _ => continue,
            };
            let side = config["vision_config"]["image_size"].clone();
            let processor = serde_json::json!({
                "image_processor_type": class, "size": {"height": side, "width": side},
                "crop_size": side,
            });
            let config_read: ImageProcessorConfig =
                serde_json::from_value(processor).expect("a configuration");
            let tiling = config_read.tiling.expect("tiles");
            assert_eq!(
                tiling.pinpoints,
                pairs(&config["image_grid_pinpoints"]),
                "{model}"
            );
            let aspect = config["vision_aspect_ratio"].as_str().unwrap_or("anyres");
            assert_eq!(tiling.aspect_name(), aspect, "{model}");
            compared += 1;
        }
    }
    assert!(compared >= 2, "{compared}");
}

#[test]
fn golden_processors_that_tile_are_written_as_transformers_does() {
    let mut compared = 0;
    for vlm in vlms() {
        let folder = vlm.folder.join("model");
        let config = ImageProcessorConfig::read_dir(&folder).expect("a configuration");
        if config.tiling.is_none() {
            continue;
        }
        let ours = config.to_transformers().expect("a processor");
        let theirs = json(&folder.join("processor_config.json"));
        let theirs = theirs["image_processor"].as_object().expect("a processor");
        for (key, value) in theirs {
            assert_eq!(ours.get(key), Some(value), "{}: {key}", folder.display());
        }
        compared += 1;
    }
    assert!(compared > 0, "no model that tiles");
}

/// A whole model with its prompts.
struct Vlm {
    folder: PathBuf,
    outputs: Value,
    tensors: Tensors,
}

/// All whole models.
fn vlms() -> Vec<Vlm> {
    of_kind("vlm")
        .into_iter()
        .map(|(path, outputs)| Vlm {
            tensors: Tensors::read(&path.with_extension("safetensors")),
            folder: path.parent().expect("a folder").to_path_buf(),
            outputs,
        })
        .collect()
}

/// A prompt with pictures.
struct Prompt<'a> {
    name: &'a str,
    pictures: Vec<PathBuf>,
    json: &'a Value,
}

impl Vlm {
    fn prompts(&self) -> Vec<Prompt<'_>> {
        let prompts = self.outputs["prompts"].as_array().expect("prompts").iter();
        let read = |json: &'_ Value| -> Vec<PathBuf> {
            let names = json["images"].as_array().expect("images").iter();
            names
                .map(|name| families().join(name.as_str().expect("a path")))
                .collect()
        };
        prompts
            .map(|json| Prompt {
                name: json["name"].as_str().expect("a name"),
                pictures: read(json),
                json,
            })
            .filter(|prompt| !prompt.pictures.is_empty())
            .collect()
    }

    /// The processors of the model and of its twins, by the name of their folder.
    fn processors(&self) -> Vec<(String, ImageProcessor)> {
        let folders = entries(&self.folder).into_iter().filter(|p| p.is_dir());
        let mut found: Vec<(String, ImageProcessor)> = folders
            .filter(|folder| ImageProcessorConfig::is_in(folder))
            .filter(|folder| folder.join("tokenizer.json").is_file())
            .map(|folder| (golden::file_name(&folder), Self::of(&folder)))
            .collect();
        // The original keeps the processor with the tower, and how it is used with the model.
        let (tower, original) = (self.folder.join("vision_tower"), self.folder.join("orig"));
        if original.is_dir() {
            let config = ImageProcessorConfig::read_dir(&tower).expect("the tower's processor");
            let keys = json(&original.join("config.json"));
            let keys = keys.as_object().expect("an object");
            let config = config
                .with_original_config(keys)
                .expect("the original's keys");
            let processor = ImageProcessor::new(config).expect("a processor");
            found.push(("orig".into(), processor));
        }
        assert!(!found.is_empty(), "{}: no processor", self.folder.display());
        found
    }

    fn of(folder: &Path) -> ImageProcessor {
        let config = ImageProcessorConfig::read_dir(folder).expect("a configuration");
        // What is written reads back.
        let again = serde_json::to_value(config.clone()).expect("JSON");
        let again: ImageProcessorConfig = serde_json::from_value(again).expect("our own file");
        assert_eq!(again, config, "{}", folder.display());
        ImageProcessor::new(config).expect("a processor")
    }

    /// Features of one tile, those that are selected.
    fn features(&self) -> usize {
        let config = json(&self.folder.join("model/config.json"));
        let of = |key: &str| config["vision_config"][key].as_u64().expect(key) as usize;
        (of("image_size") / of("patch_size")).pow(2)
    }
}

/// Whether a processor cuts tiles.
fn tiles(processor: &ImageProcessor) -> bool {
    processor.config().tiling.is_some()
}

fn prepare(processor: &ImageProcessor, prompt: &Prompt<'_>) -> Vec<PreparedImage> {
    let prepare = |path: &PathBuf| {
        let image = processor.open(path).expect("a picture");
        processor.prepare(&image, prompt.pictures.len())
    };
    prompt.pictures.iter().map(prepare).collect()
}

/// Compares the tiles of each picture; transformers fills up with tiles of zeros.
fn check_pixels(
    what: &str,
    found: &[PreparedImage],
    tensors: &Tensors,
    name: &str,
    tolerance: f32,
) {
    let wanted = tensors.f32(&format!("{name}.pixel_values"));
    let shape = tensors.shape(&format!("{name}.pixel_values"));
    let most = if shape.len() == 5 { shape[1] } else { 1 };
    assert_eq!(shape[0], found.len(), "{what}");
    let tile = wanted.len() / (shape[0] * most);
    for (i, picture) in found.iter().enumerate() {
        let (here, filled) = wanted[i * most * tile..][..most * tile].split_at(picture.data.len());
        assert!(
            filled.iter().all(|value| *value == 0.0),
            "{what}: too few tiles"
        );
        assert_eq!(picture.data.len(), picture.tiles * tile, "{what}");
        let far = |(a, b): &(&f32, &f32)| (**a - **b).abs() > tolerance;
        let differing = picture.data.iter().zip(here).filter(far).count();
        assert_eq!(
            differing,
            0,
            "{what}, picture {i}: of {} values",
            here.len()
        );
    }
    if shape.len() == 5 {
        let sizes = tensors.i64(&format!("{name}.image_sizes"));
        let ours = found.iter().map(|picture| picture.image_size);
        let ours: Vec<i64> = ours.flat_map(|(h, w)| [h.into(), w.into()]).collect();
        assert_eq!(ours, sizes, "{what}");
    }
}

#[test]
fn golden_tiles_have_the_processors_pixels() {
    let mut compared = 0;
    for vlm in vlms() {
        for (layout, processor) in vlm.processors() {
            if !tiles(&processor) {
                continue;
            }
            for prompt in vlm.prompts() {
                let what = format!("{} {layout} {}", vlm.folder.display(), prompt.name);
                let found = prepare(&processor, &prompt);
                check_pixels(&what, &found, &vlm.tensors, prompt.name, PIXELS);
                let wanted = prompt.json["tiles_and_the_whole_image"].as_array();
                for (picture, tiles) in found.iter().zip(wanted.expect("tiles")) {
                    assert_eq!(Some(picture.tiles as u64), tiles.as_u64(), "{what}");
                    assert_eq!(picture.packing.tiles(), picture.tiles, "{what}");
                }
                compared += found.len();
            }
        }
    }
    assert!(compared > 0, "no model that tiles");
}

/// Their weights have fewer digits than Pillow's.
#[test]
fn golden_pictures_of_one_size_are_within_a_level() {
    let mut compared = 0;
    for vlm in vlms() {
        for (layout, processor) in vlm.processors() {
            if tiles(&processor) {
                continue;
            }
            let deviations = processor.config().image_std.into_iter();
            let level = deviations.map(|std| 1.01 / 255.0 / std).fold(0.0, f64::max);
            for prompt in vlm.prompts() {
                let what = format!("{} {layout} {}", vlm.folder.display(), prompt.name);
                let found = prepare(&processor, &prompt);
                check_pixels(&what, &found, &vlm.tensors, prompt.name, level as f32);
                compared += found.len();
            }
        }
    }
    assert!(compared > 0, "no model with pictures of one size");
}

#[test]
fn golden_pictures_have_as_many_tokens() {
    let mut compared = 0;
    for vlm in vlms() {
        for (layout, processor) in vlm.processors() {
            for prompt in vlm.prompts() {
                let wanted = prompt.json["image_tokens"]
                    .as_array()
                    .expect("image_tokens");
                for (i, picture) in prepare(&processor, &prompt).iter().enumerate() {
                    let what = format!("{} {layout} {} {i}", vlm.folder.display(), prompt.name);
                    let plan = picture.packing.plan(vlm.features()).expect(&what);
                    let tokens = plan.tokens.len();
                    assert_eq!(Some(tokens as u64), wanted[i].as_u64(), "{what}");
                    let packed = format!("{}.image_features.{i}", prompt.name);
                    assert_eq!(vlm.tensors.shape(&packed)[0], tokens, "{what}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 0, "no picture");
}

/// The original's `flat` merge is the features of all tiles: every other one is taken from it.
#[test]
fn golden_packed_features_are_gathered_from_flat_ones() {
    let mut compared = 0;
    for vlm in vlms() {
        let prompts = vlm.prompts();
        let prompt = prompts.first().expect("a prompt with pictures");
        let of = |merge: &str| format!("{}.image_features_{merge}", prompt.name);
        if !vlm.tensors.contains(&of("flat")) {
            continue;
        }
        let mut features = vlm.tensors.f32(&of("flat"));
        let weights = Tensors::read(&vlm.folder.join("model/model.safetensors"));
        let newline = weights.names().find(|name| name.ends_with("image_newline"));
        features.extend(weights.f32(newline.expect("image_newline")));
        let hidden = vlm.tensors.shape(&of("flat"))[1];
        for (merge, name) in [
            (PatchMerge::Flat, of("flat")),
            (PatchMerge::Spatial, of("spatial")),
            (
                PatchMerge::SpatialUnpad,
                format!("{}.image_features.0", prompt.name),
            ),
        ] {
            let mut config = ImageProcessorConfig::read_dir(&vlm.folder.join("model")).expect("it");
            config.tiling.as_mut().expect("tiles").merge = merge;
            let processor = ImageProcessor::new(config).expect("a processor");
            let image = processor.open(&prompt.pictures[0]).expect("a picture");
            let packing = processor.packing((image.height(), image.width()), 1);
            let gathers = packing.plan(vlm.features()).expect("a plan").gathers();
            assert_eq!(gathers.len(), 1, "nothing is reduced");
            let rows = gathers[0].rows.iter();
            let found = rows.flat_map(|row| &features[hidden * *row as usize..][..hidden]);
            let wanted = vlm.tensors.f32(&name);
            assert_eq!(wanted.len(), hidden * gathers[0].rows.len(), "{name}");
            let far = found
                .zip(&wanted)
                .filter(|(a, b)| (**a - **b).abs() > FEATURES);
            assert_eq!(far.count(), 0, "{}: {name}", vlm.folder.display());
            compared += 1;
        }
    }
    assert!(compared > 0, "no case with the original's merges");
}

/// The number of tokens is known before a picture is decoded.
#[test]
fn golden_sizes_are_read_from_the_beginning_of_files() {
    let mut compared = 0;
    for turned in [false, true] {
        let config = ImageProcessorConfig {
            apply_exif: turned,
            ..ImageProcessorConfig::clip(336)
        };
        let processor = ImageProcessor::new(config).expect("a processor");
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images");
        let folders = [
            golden::folders("e_").remove(0),
            families().join("images"),
            own,
        ];
        for path in folders.iter().flat_map(|folder| entries(folder)) {
            let Ok(image) = processor.open(&path) else {
                continue;
            };
            let size = processor.size(&path).expect("a size");
            assert_eq!(size, (image.height(), image.width()), "{}", path.display());
            compared += 1;
        }
    }
    assert!(compared > 10, "{compared}");
}
