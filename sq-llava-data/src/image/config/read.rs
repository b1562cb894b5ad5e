//! Reading an image processor's configuration, as transformers does.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::tiling::{ASPECT, MERGE, PINPOINTS, TilingKind};
use super::{
    CLIP_MEAN, CLIP_STD, DEFAULT_MAX_PIXELS, ImageAspect, ImageProcessorConfig, ImageSize,
};
use crate::image::Kernel;
use crate::{DataError, files};

/// The processor's own file.
const PREPROCESSOR: &str = "preprocessor_config.json";
/// The file of text and images together, which since transformers 5 holds the other one.
const PROCESSOR: &str = "processor_config.json";

/// Classes of transformers whose steps are done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A file that names none: CLIP, or SigLIP where there is an exact size and no crop.
    Unnamed,
    /// CLIP's; DINOv2's are the same.
    Clip,
    /// CLIP's, which may pad to a square before.
    Llava,
    /// An exact size, no crop, other means.
    Siglip,
    /// Tiles of any shape.
    Tiling(TilingKind),
}

impl Kind {
    fn of(name: &str) -> Result<Self, DataError> {
        // The same steps in another implementation.
        let plain = name.trim_end_matches("Fast").trim_end_matches("Pil");
        match plain {
            "CLIPImageProcessor" | "CLIPFeatureExtractor" | "BitImageProcessor" => Ok(Self::Clip),
            "LlavaImageProcessor" => Ok(Self::Llava),
            "SiglipImageProcessor" => Ok(Self::Siglip),
            TilingKind::NEXT => Ok(Self::Tiling(TilingKind::Next)),
            TilingKind::ONEVISION => Ok(Self::Tiling(TilingKind::Onevision)),
            _ => Err(DataError::ImageConfig(format!(
                "the image processor {name} is not supported; known are CLIPImageProcessor, \
                 BitImageProcessor, LlavaImageProcessor, SiglipImageProcessor, \
                 LlavaNextImageProcessor and LlavaOnevisionImageProcessor"
            ))),
        }
    }
}

/// Keys that are read, or change nothing of the pixels: names of classes, and what a processor
/// does with pictures that are RGB already or with lists of them.
const KNOWN: [&str; 29] = [
    "_name_or_path",
    "_processor_class",
    "_valid_processor_keys",
    "apply_exif",
    "auto_map",
    "crop_size",
    "device",
    "disable_grouping",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "feature_extractor_type",
    "image_aspect_ratio",
    "image_mean",
    "image_processor_type",
    "image_seq_length",
    "image_std",
    "max_pixels",
    "name_or_path",
    "processor_class",
    "resample",
    "rescale_factor",
    "return_tensors",
    "size",
    "tokenizer_class",
    "transformers_version",
];

impl ImageProcessorConfig {
    /// Whether a folder holds the configuration of an image processor.
    pub fn is_in(dir: &Path) -> bool {
        matches!(find(dir), Ok(Some(_)) | Err(_))
    }

    /// Reads the processor of a folder: the `image_processor` inside `processor_config.json`
    /// (transformers 5), else `preprocessor_config.json`.
    ///
    /// # Errors
    /// If neither is there, or as [`Self::read`].
    pub fn read_dir(dir: &Path) -> Result<Self, DataError> {
        match find(dir)? {
            Some(found) => at(
                &found.path,
                Self::read_keys(found.keys, found.vision_aspect_ratio.as_deref()),
            ),
            None => Err(DataError::ImageConfig(format!(
                "{}: no {PREPROCESSOR} here, and no {PROCESSOR} with an \"image_processor\"",
                dir.display()
            ))),
        }
    }

    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or asks for what the pipeline does not do.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        at(path, Self::try_from(object(path)?))
    }
}

/// A processor's configuration and the file that it stands in.
struct Found {
    path: PathBuf,
    keys: Map<String, Value>,
    /// A key of the file of text and images together.
    vision_aspect_ratio: Option<String>,
}

fn find(dir: &Path) -> Result<Option<Found>, DataError> {
    let path = dir.join(PROCESSOR);
    let mut outer = Keys(match path.is_file() {
        true => object(&path)?,
        false => Map::new(),
    });
    let vision_aspect_ratio = at(&path, outer.text("vision_aspect_ratio"))?.map(str::to_owned);
    if let Some(Value::Object(keys)) = outer.0.remove("image_processor") {
        return Ok(Some(Found {
            path,
            keys,
            vision_aspect_ratio,
        }));
    }
    let path = dir.join(PREPROCESSOR);
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some(Found {
        keys: object(&path)?,
        path,
        vision_aspect_ratio,
    }))
}

fn object(path: &Path) -> Result<Map<String, Value>, DataError> {
    let text = files::read_to_string(path)?;
    serde_json::from_str(&text).map_err(|source| DataError::Json {
        path: path.to_path_buf(),
        source,
    })
}

/// Names the file in an error.
fn at<T>(path: &Path, read: Result<T, DataError>) -> Result<T, DataError> {
    read.map_err(|error| match error {
        DataError::ImageConfig(reason) => {
            DataError::ImageConfig(format!("{}: {reason}", path.display()))
        }
        other => other,
    })
}

impl TryFrom<Map<String, Value>> for ImageProcessorConfig {
    type Error = DataError;

    fn try_from(json: Map<String, Value>) -> Result<Self, DataError> {
        Self::read_keys(json, None)
    }
}

impl ImageProcessorConfig {
    /// Reads the keys of a processor, and `vision_aspect_ratio` that may stand beside it.
    fn read_keys(
        json: Map<String, Value>,
        vision_aspect_ratio: Option<&str>,
    ) -> Result<Self, DataError> {
        let keys = Keys(json);
        let kind = keys.kind()?;
        keys.refuse_unknown(kind)?;
        let size = keys.size(kind)?;
        let has_crop = keys.get("crop_size").is_some();
        let crops = match kind {
            Kind::Clip | Kind::Llava | Kind::Tiling(TilingKind::Next) => true,
            Kind::Siglip | Kind::Tiling(TilingKind::Onevision) => false,
            Kind::Unnamed => has_crop || matches!(size, ImageSize::ShortestEdge(_)),
        };
        let (mean, std) = match kind {
            Kind::Siglip => ([0.5; 3], [0.5; 3]),
            _ => (CLIP_MEAN, CLIP_STD),
        };
        let mut config = Self {
            do_resize: keys.flag("do_resize", true)?,
            size,
            resample: keys.kernel()?,
            do_center_crop: keys.flag("do_center_crop", crops)?,
            crop_size: keys.crop_size()?,
            do_rescale: keys.flag("do_rescale", true)?,
            rescale_factor: keys.number("rescale_factor", 1.0 / 255.0)?,
            do_normalize: keys.flag("do_normalize", true)?,
            image_mean: keys.triple("image_mean", mean)?,
            image_std: keys.deviations(std)?,
            aspect: keys.aspect(kind)?,
            tiling: None,
            max_pixels: match keys.get("max_pixels") {
                Some(value) => value
                    .as_u64()
                    .ok_or_else(|| wrong("max_pixels", "a number of pixels", value))?,
                None => DEFAULT_MAX_PIXELS,
            },
            apply_exif: keys.flag("apply_exif", false)?,
        };
        if let Kind::Tiling(kind) = kind {
            config.tiling = Some(kind.read(&keys, vision_aspect_ratio)?);
            if kind == TilingKind::Onevision && !has_crop {
                config.crop_size = config.input_size()?;
            }
            config.check_tiles()?;
        }
        Ok(config)
    }
}

/// Typed access to the keys.
pub(super) struct Keys(pub(super) Map<String, Value>);

impl Keys {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, DataError> {
        let read = |value: &'_ Value| wrong(key, "a string", value);
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| read(value)))
            .transpose()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, DataError> {
        self.get(key).map_or(Ok(default), |value| {
            let flag = value.as_bool();
            flag.ok_or_else(|| wrong(key, "true or false", value))
        })
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, DataError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value.as_f64();
            number.ok_or_else(|| wrong(key, "a number", value))
        })
    }

    /// One value per channel.
    fn triple(&self, key: &str, default: [f64; 3]) -> Result<[f64; 3], DataError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let numbers: Option<Vec<f64>> = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers
            .and_then(|list| list.try_into().ok())
            .ok_or_else(|| wrong(key, "a list of three numbers", value))
    }

    fn deviations(&self, default: [f64; 3]) -> Result<[f64; 3], DataError> {
        let std = self.triple("image_std", default)?;
        match self.get("image_std") {
            Some(value) if std.iter().any(|v| *v <= 0.0) => {
                Err(wrong("image_std", "three numbers above zero", value))
            }
            _ => Ok(std),
        }
    }

    fn kind(&self) -> Result<Kind, DataError> {
        let name = match self.text("image_processor_type")? {
            None => self.text("feature_extractor_type")?,
            name => name,
        };
        name.map_or(Ok(Kind::Unnamed), Kind::of)
    }

    /// A step that is not done here is refused, unless it is switched off.
    fn refuse_unknown(&self, kind: Kind) -> Result<(), DataError> {
        for (key, value) in &self.0 {
            let off = value.is_null() || *value == Value::Bool(false);
            let plain = matches!(&**key, "data_format" | "input_data_format")
                && matches!(value.as_str(), Some("channels_first"));
            let tiles = matches!(kind, Kind::Tiling(_))
                && ([PINPOINTS, MERGE].contains(&&**key)
                    || (key == "aspect_ratio_setting" && value == "anyres"));
            if !off && !plain && !tiles && !KNOWN.contains(&&**key) {
                return Err(DataError::ImageConfig(format!(
                    "{key} is {value}, which is not known and may change the pixels; take it out of the file if it does not"
                )));
            }
        }
        Ok(())
    }

    fn kernel(&self) -> Result<Kernel, DataError> {
        self.get("resample").map_or(Ok(Kernel::Bicubic), |value| {
            let kernel = value.as_u64().and_then(Kernel::of);
            kernel.ok_or_else(|| {
                wrong(
                    "resample",
                    "1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (Hamming)",
                    value,
                )
            })
        })
    }

    fn size(&self, kind: Kind) -> Result<ImageSize, DataError> {
        let Some(value) = self.get("size") else {
            return Ok(match kind {
                Kind::Siglip => ImageSize::Exact {
                    height: 224,
                    width: 224,
                },
                Kind::Tiling(TilingKind::Onevision) => ImageSize::Exact {
                    height: 384,
                    width: 384,
                },
                _ => ImageSize::ShortestEdge(224),
            });
        };
        if let Some(edge) = side(value) {
            return Ok(match kind {
                Kind::Siglip => ImageSize::Exact {
                    height: edge,
                    width: edge,
                },
                _ => ImageSize::ShortestEdge(edge),
            });
        }
        match sides(value).as_deref() {
            Some([("shortest_edge", edge)]) => Ok(ImageSize::ShortestEdge(*edge)),
            Some([("height", height), ("width", width)]) => Ok(ImageSize::Exact {
                height: *height,
                width: *width,
            }),
            _ => Err(wrong(
                "size",
                "a number, {shortest_edge} or {height, width}",
                value,
            )),
        }
    }

    fn crop_size(&self) -> Result<(u32, u32), DataError> {
        let Some(value) = self.get("crop_size") else {
            return Ok((224, 224));
        };
        match (side(value), sides(value).as_deref()) {
            (Some(side), _) => Ok((side, side)),
            (None, Some([("height", height), ("width", width)])) => Ok((*height, *width)),
            _ => Err(wrong("crop_size", "a number or {height, width}", value)),
        }
    }

    fn aspect(&self, kind: Kind) -> Result<ImageAspect, DataError> {
        if let Kind::Tiling(_) = kind {
            // `do_pad` pads the list of tiles, not the picture.
            return Ok(ImageAspect::Resize);
        }
        if let Some(name) = self.text(ASPECT)? {
            return name.parse();
        }
        match (self.flag("do_pad", false)?, kind) {
            (false, _) => Ok(ImageAspect::Crop),
            (true, Kind::Llava) => Ok(ImageAspect::Pad),
            (true, _) => Err(DataError::ImageConfig(
                "do_pad is true, but only a LlavaImageProcessor pads to a square (\"image_processor_type\")"
                    .into(),
            )),
        }
    }
}

/// Two sides in a list.
pub(super) fn pair(value: &Value) -> Option<(u32, u32)> {
    match value.as_array()?.as_slice() {
        [first, second] => Some((side(first)?, side(second)?)),
        _ => None,
    }
}

fn side(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|v| u32::try_from(v).ok())
}

/// Sides by name, sorted; without those that are null.
fn sides(value: &Value) -> Option<Vec<(&str, u32)>> {
    let given = value.as_object()?.iter().filter(|(_, v)| !v.is_null());
    let sides: Option<Vec<_>> = given
        .map(|(key, v)| Some((key.as_str(), side(v)?)))
        .collect();
    let mut sides = sides?;
    sides.sort_unstable();
    Some(sides)
}

pub(super) fn wrong(key: &str, expected: &str, value: &Value) -> DataError {
    DataError::ImageConfig(format!("{key} is {value}, but {expected} is expected"))
}
