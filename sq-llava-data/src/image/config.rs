//! `preprocessor_config.json`: what is done to a picture before the vision tower.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::DataError;
use crate::atomic::write_atomic;

/// Twice Pillow's `MAX_IMAGE_PIXELS`: above it Pillow raises `DecompressionBombError`.
pub const DEFAULT_MAX_PIXELS: u64 = 178_956_970;

/// No vision tower takes more; keeps a broken configuration from asking for all memory.
const MAX_INPUT_SIDE: u32 = 8192;

/// `PIL.Image.Resampling.BICUBIC`.
const BICUBIC: u64 = 3;

/// OpenAI CLIP's mean, the default of `CLIPImageProcessor`.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];

/// OpenAI CLIP's standard deviation, the default of `CLIPImageProcessor`.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

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
    /// From a model's `image_aspect_ratio`. As in LLaVA's `process_images`, an absent value and
    /// `square` leave the picture to CLIP's processor, which crops.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] for a value such as `anyres` that this pipeline does not do.
    pub fn from_model(image_aspect_ratio: Option<&str>) -> Result<Self, DataError> {
        image_aspect_ratio.map_or(Ok(Self::Crop), str::parse)
    }

    /// Its name in configurations.
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
/// Reads `CLIPImageProcessor` (sizes as numbers or objects), the older `CLIPFeatureExtractor` and
/// processors with an exact size and no crop (SigLIP's). Defaults are CLIP's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct ImageProcessorConfig {
    /// Whether to resize at all.
    pub do_resize: bool,
    /// Size to resize to.
    pub size: ImageSize,
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
    /// Key `image_aspect_ratio`: of this file where present, else [`ImageAspect::Crop`] (a plain
    /// CLIP processor). LLaVA keeps it in the model's config.json; see [`Self::with_aspect`].
    pub aspect: ImageAspect,
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
            do_center_crop: true,
            crop_size: (size, size),
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
            aspect: ImageAspect::Crop,
            max_pixels: DEFAULT_MAX_PIXELS,
            apply_exif: false,
        }
    }

    /// The same with another treatment of pictures that are not square.
    #[must_use]
    pub fn with_aspect(mut self, aspect: ImageAspect) -> Self {
        self.aspect = aspect;
        self
    }

    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or asks for what the pipeline does not do.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let text = std::fs::read_to_string(path).map_err(|source| DataError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        let json: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| DataError::Json {
                path: path.to_path_buf(),
                source,
            })?;
        Self::try_from(json).map_err(|error| match error {
            DataError::ImageConfig(reason) => {
                DataError::ImageConfig(format!("{}: {reason}", path.display()))
            }
            other => other,
        })
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

impl TryFrom<Map<String, Value>> for ImageProcessorConfig {
    type Error = DataError;

    fn try_from(json: Map<String, Value>) -> Result<Self, DataError> {
        let default = Self::clip(224);
        let present = |key: &str| json.get(key).filter(|v| !v.is_null());
        if let Some(resample) = present("resample")
            && resample.as_u64() != Some(BICUBIC)
        {
            return Err(DataError::ImageConfig(format!(
                "resample {resample} is not supported: only {BICUBIC} (bicubic) is"
            )));
        }
        let size = present("size").map_or(Ok(default.size), read_size)?;
        let do_center_crop = match present("do_center_crop") {
            Some(value) => boolean("do_center_crop", value)?,
            // Processors with an exact size (SigLIP) have no crop; CLIP's crops by default.
            None => present("crop_size").is_some() || matches!(size, ImageSize::ShortestEdge(_)),
        };
        let crop_size = match present("crop_size").map(read_size).transpose()? {
            None => default.crop_size,
            Some(ImageSize::Exact { height, width }) => (height, width),
            Some(ImageSize::ShortestEdge(side)) => (side, side),
        };
        let flag = |key: &str, default: bool| {
            present(key).map_or(Ok(default), |value| boolean(key, value))
        };
        Ok(Self {
            do_resize: flag("do_resize", true)?,
            size,
            do_center_crop,
            crop_size,
            do_rescale: flag("do_rescale", true)?,
            rescale_factor: match present("rescale_factor") {
                Some(value) => number("rescale_factor", value)?,
                None => default.rescale_factor,
            },
            do_normalize: flag("do_normalize", true)?,
            image_mean: present("image_mean")
                .map_or(Ok(default.image_mean), |v| triple("image_mean", v))?,
            image_std: read_std(present("image_std"))?,
            aspect: match present("image_aspect_ratio") {
                Some(value) => value
                    .as_str()
                    .ok_or_else(|| wrong("image_aspect_ratio", "a string", value))?
                    .parse()?,
                None => ImageAspect::Crop,
            },
            max_pixels: match present("max_pixels") {
                Some(value) => value
                    .as_u64()
                    .ok_or_else(|| wrong("max_pixels", "a number of pixels", value))?,
                None => DEFAULT_MAX_PIXELS,
            },
            apply_exif: flag("apply_exif", false)?,
        })
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
        put("resample", BICUBIC.into());
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
        json
    }
}

fn wrong(key: &str, expected: &str, value: &Value) -> DataError {
    DataError::ImageConfig(format!("{key} is {value}, but {expected} is expected"))
}

fn boolean(key: &str, value: &Value) -> Result<bool, DataError> {
    value
        .as_bool()
        .ok_or_else(|| wrong(key, "true or false", value))
}

fn number(key: &str, value: &Value) -> Result<f64, DataError> {
    value.as_f64().ok_or_else(|| wrong(key, "a number", value))
}

/// One value per channel.
fn triple(key: &str, value: &Value) -> Result<[f64; 3], DataError> {
    let numbers: Option<Vec<f64>> = value
        .as_array()
        .and_then(|list| list.iter().map(Value::as_f64).collect());
    numbers
        .and_then(|list| list.try_into().ok())
        .ok_or_else(|| wrong(key, "a list of three numbers", value))
}

fn read_std(value: Option<&Value>) -> Result<[f64; 3], DataError> {
    let Some(value) = value else {
        return Ok(CLIP_STD);
    };
    let std = triple("image_std", value)?;
    if std.iter().all(|v| *v > 0.0) {
        Ok(std)
    } else {
        Err(wrong("image_std", "three numbers above zero", value))
    }
}

/// `224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`.
fn read_size(value: &Value) -> Result<ImageSize, DataError> {
    let side = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    if let Some(edge) = side(value) {
        return Ok(ImageSize::ShortestEdge(edge));
    }
    if let Some(object) = value
        .as_object()
        .filter(|o| !o.contains_key("longest_edge"))
    {
        let get = |key: &str| object.get(key).and_then(side);
        if let Some(edge) = get("shortest_edge") {
            return Ok(ImageSize::ShortestEdge(edge));
        }
        if let (Some(height), Some(width)) = (get("height"), get("width")) {
            return Ok(ImageSize::Exact { height, width });
        }
    }
    Err(wrong(
        "size",
        "a number, {shortest_edge} or {height, width}",
        value,
    ))
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
            (json!({"resample": 2}), "resample 2"),
            (json!({"size": {"longest_edge": 3}}), "longest_edge"),
            (json!({"size": "big"}), "size"),
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
    fn aspect_comes_from_the_model() {
        for (value, aspect) in [
            (None, ImageAspect::Crop),
            (Some("square"), ImageAspect::Crop),
            (Some("pad"), ImageAspect::Pad),
        ] {
            assert_eq!(ImageAspect::from_model(value).unwrap(), aspect);
        }
        assert!(ImageAspect::from_model(Some("anyres")).is_err());
    }
}
