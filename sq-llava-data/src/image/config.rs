//! `preprocessor_config.json`, or the part of a `processor_config.json` that stands for it: what is
//! done to a picture before the vision tower.

mod read;
mod tiling;

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AnyResolution, Kernel};
use crate::DataError;
use crate::atomic::write_atomic;
use tiling::TilingKind;

/// Twice Pillow's `MAX_IMAGE_PIXELS`: above it Pillow raises `DecompressionBombError`.
pub const DEFAULT_MAX_PIXELS: u64 = 178_956_970;

/// No vision tower takes more; keeps a broken configuration from asking for all memory.
const MAX_INPUT_SIDE: u32 = 8192;

/// OpenAI CLIP's mean, the default of `CLIPImageProcessor`.
pub(crate) const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];

/// OpenAI CLIP's standard deviation, the default of `CLIPImageProcessor`.
pub(crate) const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// How a picture that is not square becomes the tower's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageAspect {
    /// Pad to a square with the mean colour (LLaVA-1.5's `expand2square`); nothing is lost.
    #[default]
    Pad,
    /// Shortest side to the size, then the centre (what CLIP's processor does alone).
    Crop,
    /// Stretch to the size.
    Resize,
}

impl ImageAspect {
    /// Its name as LLaVA's `image_aspect_ratio`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pad => "pad",
            Self::Crop => "crop",
            Self::Resize => "resize",
        }
    }
}

impl FromStr for ImageAspect {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "pad" => Ok(Self::Pad),
            "crop" | "square" => Ok(Self::Crop),
            "resize" => Ok(Self::Resize),
            other => Err(DataError::ImageConfig(format!(
                "image_aspect_ratio {other:?} is not supported: use pad, crop, square or resize"
            ))),
        }
    }
}

/// The size that a picture is resized to, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageSize {
    /// The shorter side becomes this, the longer one follows.
    ShortestEdge(u32),
    /// Exactly this, whatever the shape was.
    Exact {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

/// A Hugging Face `preprocessor_config.json`, and three fields of our own.
///
/// Reads `CLIPImageProcessor` (sizes as numbers or objects), the older `CLIPFeatureExtractor`,
/// `BitImageProcessor` (DINOv2's), `LlavaImageProcessor`, `SiglipImageProcessor`,
/// `LlavaNextImageProcessor` and `LlavaOnevisionImageProcessor`, each with its own defaults; CLIP's
/// where a file names no type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct ImageProcessorConfig {
    /// Whether to resize at all.
    pub do_resize: bool,
    /// Size to resize to.
    pub size: ImageSize,
    /// Kernel of the resize.
    pub resample: Kernel,
    /// Whether to cut out the centre after resizing.
    pub do_center_crop: bool,
    /// `(height, width)` of the centre, in pixels; a smaller picture is surrounded by zeros.
    pub crop_size: (u32, u32),
    /// Whether to multiply by `rescale_factor`.
    pub do_rescale: bool,
    /// Usually 1/255.
    pub rescale_factor: f64,
    /// Whether to subtract `image_mean` and divide by `image_std`.
    pub do_normalize: bool,
    /// Mean of red, green and blue, in rescaled units.
    pub image_mean: [f64; 3],
    /// Standard deviation of red, green and blue, in rescaled units.
    pub image_std: [f64; 3],
    /// Key `image_aspect_ratio` of this file where present; else [`ImageAspect::Pad`] for a
    /// `LlavaImageProcessor` with `do_pad`, and [`ImageAspect::Crop`] for all others. LLaVA keeps
    /// it in the model's config.json; see [`Self::with_aspect`].
    pub aspect: ImageAspect,
    /// Pictures of any shape become tiles ([`super::ImageProcessor::prepare`]), whatever `aspect`
    /// says; `None` where each is brought to one size.
    pub tiling: Option<AnyResolution>,
    /// Pictures with more pixels than this are refused; default [`DEFAULT_MAX_PIXELS`].
    pub max_pixels: u64,
    /// Turn the picture as its EXIF orientation says. Off by default, as in Pillow's loader.
    pub apply_exif: bool,
}

impl Default for ImageProcessorConfig {
    fn default() -> Self {
        Self::clip(336).with_aspect(ImageAspect::Pad)
    }
}

impl ImageProcessorConfig {
    /// `CLIPImageProcessor` for inputs of `size` × `size` pixels.
    pub fn clip(size: u32) -> Self {
        Self {
            do_resize: true,
            size: ImageSize::ShortestEdge(size),
            resample: Kernel::Bicubic,
            do_center_crop: true,
            crop_size: (size, size),
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
            aspect: ImageAspect::Crop,
            tiling: None,
            max_pixels: DEFAULT_MAX_PIXELS,
            apply_exif: false,
        }
    }

    /// LLaVA's `image_aspect_ratio` of this treatment.
    pub fn aspect_name(&self) -> String {
        match &self.tiling {
            Some(tiling) => tiling.aspect_name(),
            None => self.aspect.name().into(),
        }
    }

    /// The same with another treatment of pictures that are not square.
    #[must_use]
    pub fn with_aspect(mut self, aspect: ImageAspect) -> Self {
        self.aspect = aspect;
        self
    }

    /// Writes a `preprocessor_config.json` that transformers' `CLIPImageProcessor` reads.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let json = Value::Object(self.clone().into());
        write_atomic(path, format!("{json:#}\n")).map_err(|source| DataError::Io {
            path: path.to_path_buf(),
            source,
        })
    }

    /// The same treatment as transformers' own processors are told of it, which do not know
    /// `image_aspect_ratio`: `LlavaImageProcessor` with `do_pad`, `CLIPImageProcessor`, or the ones
    /// that tile. The N of `anyres_max_N` is `vision_aspect_ratio` there, of the model's
    /// `config.json` and of `processor_config.json`.
    ///
    /// # Errors
    /// As [`Self::input_size`].
    pub fn to_transformers(&self) -> Result<Map<String, Value>, DataError> {
        let mut config = self.clone();
        let aspect = self.tiling.is_none().then_some(self.aspect);
        if aspect == Some(ImageAspect::Resize) {
            let (height, width) = self.input_size()?;
            config.size = ImageSize::Exact { height, width };
            config.do_resize = true;
            config.do_center_crop = false;
        }
        let mut json: Map<String, Value> = config.into();
        for ours in [tiling::ASPECT, tiling::MERGE, "max_pixels", "apply_exif"] {
            json.remove(ours);
        }
        if aspect == Some(ImageAspect::Pad) {
            json.insert("image_processor_type".into(), "LlavaImageProcessor".into());
            json.insert("do_pad".into(), true.into());
        }
        Ok(json)
    }

    /// `(height, width)` of the tower's input, in pixels.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if sizes are out of range or would differ between pictures.
    pub fn input_size(&self) -> Result<(u32, u32), DataError> {
        let (height, width) = if self.do_center_crop {
            self.crop_size
        } else {
            match (self.do_resize, self.size) {
                (true, ImageSize::Exact { height, width }) => (height, width),
                (true, ImageSize::ShortestEdge(s)) if self.aspect != ImageAspect::Crop => (s, s),
                (true, ImageSize::ShortestEdge(_)) => {
                    return Err(DataError::ImageConfig(
                        "`shortest_edge` without do_center_crop gives inputs of different sizes: \
                         set do_center_crop, or image_aspect_ratio pad or resize"
                            .into(),
                    ));
                }
                (false, _) => {
                    return Err(DataError::ImageConfig(
                        "neither do_resize nor do_center_crop: inputs would differ in size".into(),
                    ));
                }
            }
        };
        let resized = match self.size {
            ImageSize::ShortestEdge(s) => (s, s),
            ImageSize::Exact { height, width } => (height, width),
        };
        for side in [height, width, resized.0, resized.1] {
            if side == 0 || side > MAX_INPUT_SIDE {
                return Err(DataError::ImageConfig(format!(
                    "a size of {side} pixels is not in 1..={MAX_INPUT_SIDE}"
                )));
            }
        }
        Ok((height, width))
    }
}

impl From<ImageProcessorConfig> for Map<String, Value> {
    fn from(config: ImageProcessorConfig) -> Self {
        let size = match config.size {
            ImageSize::ShortestEdge(side) => serde_json::json!({ "shortest_edge": side }),
            ImageSize::Exact { height, width } => {
                serde_json::json!({ "height": height, "width": width })
            }
        };
        let (height, width) = config.crop_size;
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.to_owned(), value);
        put("image_processor_type", "CLIPImageProcessor".into());
        put("do_convert_rgb", true.into());
        put("do_resize", config.do_resize.into());
        put("size", size);
        put("resample", config.resample.number().into());
        put("do_center_crop", config.do_center_crop.into());
        put(
            "crop_size",
            serde_json::json!({ "height": height, "width": width }),
        );
        put("do_rescale", config.do_rescale.into());
        put("rescale_factor", config.rescale_factor.into());
        put("do_normalize", config.do_normalize.into());
        put("image_mean", serde_json::json!(config.image_mean));
        put("image_std", serde_json::json!(config.image_std));
        put("image_aspect_ratio", serde_json::json!(config.aspect));
        put("max_pixels", config.max_pixels.into());
        put("apply_exif", config.apply_exif.into());
        if let Some(tiling) = &config.tiling {
            put(
                "image_processor_type",
                TilingKind::of(tiling).class().into(),
            );
            put("do_pad", true.into());
            put(tiling::PINPOINTS, serde_json::json!(tiling.pinpoints));
            put(tiling::ASPECT, tiling.aspect_name().into());
            put(tiling::MERGE, tiling.merge.name().into());
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: Value) -> Result<ImageProcessorConfig, serde_json::Error> {
        serde_json::from_value(json)
    }

    #[test]
    fn sizes_have_three_forms() {
        let number = parse(json!({"size": 336, "crop_size": 336})).unwrap();
        let edge = parse(json!({"size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336}}))
        .unwrap();
        assert_eq!(number, edge);
        assert_eq!(edge, ImageProcessorConfig::clip(336));
        // SigLIP: an exact size and no crop.
        let exact = parse(json!({"size": {"height": 384, "width": 380}})).unwrap();
        assert!(!exact.do_center_crop);
        assert_eq!(exact.input_size().unwrap(), (384, 380));
        assert_eq!(
            parse(json!({})).unwrap(),
            ImageProcessorConfig::clip(224),
            "CLIPImageProcessor's defaults"
        );
    }

    #[test]
    fn written_configurations_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("preprocessor_config.json");
        let mut config = ImageProcessorConfig::clip(112).with_aspect(ImageAspect::Pad);
        config.image_mean = [0.485, 0.456, 0.406];
        config.max_pixels = 1000;
        config.apply_exif = true;
        config.size = ImageSize::Exact {
            height: 112,
            width: 113,
        };
        config.write(&path).unwrap();
        assert_eq!(ImageProcessorConfig::read(&path).unwrap(), config);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (json, word) in [
            (json!({"resample": 0}), "resample"),
            (json!({"size": {"longest_edge": 3}}), "longest_edge"),
            (
                json!({"size": {"shortest_edge": 3, "longest_edge": 9}}),
                "longest_edge",
            ),
            (json!({"size": "big"}), "size"),
            (json!({"crop_size": {"shortest_edge": 3}}), "crop_size"),
            (json!({"do_resize": 1}), "do_resize"),
            (json!({"image_std": [1, 0, 1]}), "image_std"),
            (json!({"image_mean": [1, 0]}), "image_mean"),
            (json!({"image_aspect_ratio": "anyres"}), "anyres"),
        ] {
            let message = parse(json).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        for json in [
            json!({"do_center_crop": false}),
            json!({"do_center_crop": false, "do_resize": false}),
            json!({"size": 0}),
            json!({"crop_size": 1_000_000_000}),
        ] {
            assert!(parse(json.clone()).unwrap().input_size().is_err(), "{json}");
        }
    }

    #[test]
    fn fault_08_what_a_processor_does_beyond_ours_is_refused() {
        for (json, word) in [
            (
                json!({"image_processor_type": "Siglip2ImageProcessor"}),
                "Siglip2",
            ),
            (
                json!({"image_processor_type": "CLIPImageProcessor", "do_pad": true}),
                "do_pad",
            ),
            (json!({"crop_pct": 0.9}), "crop_pct"),
            (
                json!({"do_flip_channel_order": true}),
                "do_flip_channel_order",
            ),
            (json!({"data_format": "channels_last"}), "data_format"),
        ] {
            let message = parse(json).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        // Off, or of no effect.
        let plain = json!({"do_flip_channel_order": false, "pad_size": null, "do_pad": false,
            "processor_class": "LlavaProcessor", "do_convert_rgb": true,
            "data_format": "channels_first", "size": 224});
        assert_eq!(parse(plain).unwrap(), ImageProcessorConfig::clip(224));
    }

    #[test]
    fn fault_08_each_type_has_its_own_defaults() {
        let pads = json!({"image_processor_type": "LlavaImageProcessor", "do_pad": true});
        let pads = parse(pads).unwrap();
        assert_eq!(
            pads,
            ImageProcessorConfig::clip(224).with_aspect(ImageAspect::Pad)
        );
        let fast = json!({"image_processor_type": "LlavaImageProcessorFast"});
        assert_eq!(parse(fast).unwrap().aspect, ImageAspect::Crop);
        let siglip = json!({"image_processor_type": "SiglipImageProcessor", "size": 384});
        let siglip = parse(siglip).unwrap();
        assert_eq!(siglip.input_size().unwrap(), (384, 384));
        assert_eq!(
            (siglip.do_center_crop, siglip.image_mean),
            (false, [0.5; 3])
        );
        // A CLIP processor crops to 224 unless told otherwise, whatever it resizes to.
        let clip = json!({"image_processor_type": "CLIPImageProcessor",
            "size": {"height": 336, "width": 336}});
        assert_eq!(parse(clip).unwrap().input_size().unwrap(), (224, 224));
    }

    #[test]
    fn fault_08_what_transformers_is_told_reads_back() {
        for aspect in [ImageAspect::Pad, ImageAspect::Crop, ImageAspect::Resize] {
            let config = ImageProcessorConfig::clip(56).with_aspect(aspect);
            let json = config.to_transformers().unwrap();
            assert!(!json.contains_key("image_aspect_ratio"));
            let again = parse(Value::Object(json)).unwrap();
            assert_eq!(again.input_size().unwrap(), (56, 56));
            assert_eq!(again.aspect == ImageAspect::Pad, aspect == ImageAspect::Pad);
        }
    }

    #[test]
    fn fault_08_a_folder_of_transformers_5_has_the_processor_inside() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, json: Value| {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        };
        let error = ImageProcessorConfig::read_dir(dir.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("preprocessor_config.json"), "{error}");
        write("processor_config.json", json!({"patch_size": 14}));
        assert!(ImageProcessorConfig::read_dir(dir.path()).is_err());
        write(
            "preprocessor_config.json",
            json!({"size": 32, "crop_size": 32}),
        );
        let read = || ImageProcessorConfig::read_dir(dir.path()).unwrap();
        assert_eq!(read(), ImageProcessorConfig::clip(32));
        // As in transformers the nested one goes before the file of its own.
        write(
            "processor_config.json",
            json!({"image_processor": {"size": 48, "crop_size": 48}}),
        );
        assert_eq!(read(), ImageProcessorConfig::clip(48));
        write(
            "processor_config.json",
            json!({"image_processor": {"size": "big"}}),
        );
        let error = ImageProcessorConfig::read_dir(dir.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("/processor_config.json"), "{error}");
    }
}
