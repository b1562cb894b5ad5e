//! Pictures of any shape in the configurations of others: transformers' LLaVA-NeXT and OneVision
//! processors, and the keys that the original LLaVA keeps in the model's `config.json`.

use serde_json::{Map, Value};

use super::read::{Keys, pair, wrong};
use super::{ImageAspect, ImageProcessorConfig, ImageSize};
use crate::DataError;
use crate::image::{AnyResolution, PatchMerge};

pub(super) const PINPOINTS: &str = "image_grid_pinpoints";
pub(super) const ASPECT: &str = "image_aspect_ratio";
pub(super) const MERGE: &str = "mm_patch_merge_type";

/// `vision_aspect_ratio` of transformers' OneVision where nothing is said.
const ONEVISION_MAX_TILES: u32 = 9;

/// A processor of transformers that tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TilingKind {
    Next,
    Onevision,
}

impl TilingKind {
    pub(super) const NEXT: &str = "LlavaNextImageProcessor";
    pub(super) const ONEVISION: &str = "LlavaOnevisionImageProcessor";

    pub(super) fn of(tiling: &AnyResolution) -> Self {
        match tiling.max_tiles {
            None => Self::Next,
            Some(_) => Self::Onevision,
        }
    }

    /// Its name in transformers.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Next => Self::NEXT,
            Self::Onevision => Self::ONEVISION,
        }
    }

    /// The pinpoints of a file without them, (height, width).
    fn default_pinpoints(self) -> Vec<(u32, u32)> {
        let published = match self {
            Self::Next => AnyResolution::published(336, None),
            Self::Onevision => AnyResolution::published(384, Some(ONEVISION_MAX_TILES)),
        };
        published.pinpoints
    }

    /// Reads the tiling of a processor's own file; `beside` is `vision_aspect_ratio` of the
    /// `processor_config.json` in the same folder.
    pub(super) fn read(
        self,
        keys: &Keys,
        beside: Option<&str>,
    ) -> Result<AnyResolution, DataError> {
        let pinpoints = match keys.get(PINPOINTS) {
            Some(value) => pinpoints(value)?,
            None => self.default_pinpoints(),
        };
        let named = match (keys.text(ASPECT)?, self, beside) {
            (Some(name), ..) => Some((ASPECT, name)),
            (None, Self::Onevision, Some(name)) => Some(("vision_aspect_ratio", name)),
            _ => None,
        };
        let tiling = AnyResolution {
            pinpoints,
            max_tiles: match (named, self) {
                (Some((key, name)), _) => max_tiles(key, name)?,
                (None, Self::Next) => None,
                (None, Self::Onevision) => Some(ONEVISION_MAX_TILES),
            },
            merge: merge(keys)?,
        };
        if Self::of(&tiling) == self {
            return Ok(tiling);
        }
        Err(DataError::ImageConfig(format!(
            "a {} does not go with the aspect ratio {}",
            self.class(),
            tiling.aspect_name()
        )))
    }
}

fn merge(keys: &Keys) -> Result<PatchMerge, DataError> {
    keys.text(MERGE)?
        .map_or(Ok(PatchMerge::default()), str::parse)
}

fn max_tiles(key: &str, name: &str) -> Result<Option<u32>, DataError> {
    AnyResolution::max_tiles_of(name).ok_or_else(|| {
        DataError::ImageConfig(format!(
            "{key} {name:?} is not supported for pictures of any shape: use anyres or anyres_max_N"
        ))
    })
}

/// A list of pairs.
fn pinpoints(value: &Value) -> Result<Vec<(u32, u32)>, DataError> {
    let pairs = value
        .as_array()
        .and_then(|list| list.iter().map(pair).collect());
    pairs.ok_or_else(|| wrong(PINPOINTS, "a list of pairs of pixels", value))
}

/// All grids from `first` to `last`, each counted in tiles, as pairs of pixels.
fn grid_range(first: (u32, u32), last: (u32, u32), tile: u32) -> Vec<(u32, u32)> {
    let rows = first.0..=last.0;
    rows.flat_map(|a| (first.1..=last.1).map(move |b| (a * tile, b * tile)))
        .collect()
}

/// The original's pinpoints, which are (width, height): a list, the same list as a string, or the
/// first and the last grid in tiles, `"(1x1),...,(6x6)"`.
fn original_pinpoints(value: &Value, tile: u32) -> Result<Vec<(u32, u32)>, DataError> {
    let expected = "a list of pairs of pixels (width, height), or \"(1x1),...,(6x6)\"";
    let widths_first = match value.as_str() {
        None => pinpoints(value)?,
        Some(text) if text.contains('x') => {
            let (first, last) = ends(text).ok_or_else(|| wrong(PINPOINTS, expected, value))?;
            grid_range(first, last, tile)
        }
        Some(text) => {
            // Python's tuples as JSON's lists.
            let list = text.replace('(', "[").replace(')', "]");
            let list = serde_json::from_str(&list);
            pinpoints(&list.map_err(|_| wrong(PINPOINTS, expected, value))?)?
        }
    };
    Ok(widths_first.into_iter().map(|(w, h)| (h, w)).collect())
}

/// The first and the last of `(AxB)` in a text.
fn ends(text: &str) -> Option<((u32, u32), (u32, u32))> {
    // No grid of 64 tiles a side is taken, but all below a wrong number would be listed.
    let number = |text: &str| text.trim().parse().ok().filter(|n| (1..=64).contains(n));
    let grid = |part: &str| {
        let (a, b) = part.split_once(')')?.0.split_once('x')?;
        Some((number(a)?, number(b)?))
    };
    let mut grids = text.split('(').skip(1).map(grid);
    let first = grids.next()??;
    let last = grids.last().unwrap_or(Some(first))?;
    Some((first, last))
}

impl AnyResolution {
    /// The tiling of the original LLaVA's `config.json`: `image_aspect_ratio` anyres or
    /// anyres_max_N, `image_grid_pinpoints` (there width first) and `mm_patch_merge_type`, for
    /// tiles of `tile` × `tile` pixels. `None` for other aspect ratios.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if a value is none of these.
    pub fn of_original(json: &Map<String, Value>, tile: u32) -> Result<Option<Self>, DataError> {
        let keys = Keys(json.clone());
        let Some(name) = keys.text(ASPECT)?.filter(|name| name.starts_with("anyres")) else {
            return Ok(None);
        };
        let pinpoints = keys.get(PINPOINTS).ok_or_else(|| {
            DataError::ImageConfig(format!("{ASPECT} is {name}, but there is no {PINPOINTS}"))
        })?;
        Ok(Some(Self {
            max_tiles: max_tiles(ASPECT, name)?,
            pinpoints: original_pinpoints(pinpoints, tile)?,
            // What the original takes where the key is missing.
            merge: match keys.get(MERGE) {
                Some(_) => merge(&keys)?,
                None => PatchMerge::Flat,
            },
        }))
    }

    /// The tiling of transformers' `config.json` of `model_type` llava_next or llava_onevision:
    /// `image_grid_pinpoints` (height first) and `vision_aspect_ratio`. `None` for other types.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if a value is not supported.
    pub fn of_transformers(json: &Map<String, Value>) -> Result<Option<Self>, DataError> {
        let keys = Keys(json.clone());
        let kind = match keys.text("model_type")? {
            Some("llava_next") => TilingKind::Next,
            Some("llava_onevision") => TilingKind::Onevision,
            _ => return Ok(None),
        };
        kind.read(&keys, keys.text("vision_aspect_ratio")?)
            .map(Some)
    }
}

impl ImageProcessorConfig {
    /// The same processor as the original LLaVA's `config.json` uses it: `image_aspect_ratio` pad,
    /// crop, square, resize, anyres or anyres_max_N; the last two with `image_grid_pinpoints`
    /// (there width first) and `mm_patch_merge_type`. Without the first key nothing changes.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if a value is none of these, or tiles do not fill the pinpoints.
    pub fn with_original_config(mut self, json: &Map<String, Value>) -> Result<Self, DataError> {
        let keys = Keys(json.clone());
        let Some(name) = keys.text(ASPECT)? else {
            return Ok(self);
        };
        if !name.starts_with("anyres") {
            self.aspect = name.parse()?;
            return Ok(self);
        }
        self.aspect = ImageAspect::Resize;
        let (tile, _) = self.input_size()?;
        match AnyResolution::of_original(json, tile)? {
            Some(tiling) => self.with_tiling(tiling),
            None => Ok(self),
        }
    }

    /// The same processor, but pictures are laid over tiles of its input's size.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if tiles do not fill the resolutions.
    pub fn with_tiling(mut self, tiling: AnyResolution) -> Result<Self, DataError> {
        self.aspect = ImageAspect::Resize;
        let size = self.input_size()?;
        if !self.do_center_crop {
            self.crop_size = size;
        }
        self.tiling = Some(tiling);
        self.check_tiles()?;
        Ok(self)
    }

    /// Whether pictures of any shape can be tiled as configured.
    pub(in crate::image) fn check_tiles(&self) -> Result<(), DataError> {
        let Some(tiling) = &self.tiling else {
            return Ok(());
        };
        let (height, width) = self.input_size()?;
        let resized = match self.size {
            ImageSize::ShortestEdge(side) => (side, side),
            ImageSize::Exact { height, width } => (height, width),
        };
        let one = [resized, self.crop_size]
            .iter()
            .all(|size| *size == (height, height));
        if width != height || !one || !self.do_resize {
            return Err(DataError::ImageConfig(
                "pictures of any shape need square tiles of one side: size and crop_size must \
                 agree, and do_resize be true"
                    .into(),
            ));
        }
        tiling.check(height)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn original(value: Value) -> Result<Vec<(u32, u32)>, DataError> {
        original_pinpoints(&value, 384)
    }

    #[test]
    fn original_pinpoints_have_the_width_first_in_every_form() {
        let turned = vec![(672, 336), (336, 672)];
        assert_eq!(original(json!([[336, 672], [672, 336]])).unwrap(), turned);
        let text = "[(336, 672), (672, 336)]";
        assert_eq!(original(json!(text)).unwrap(), turned);
        // LLaVA-NeXT's `process_anyres_image`: the width counts slower.
        let range = original(json!("(1x1),...,(2x3)")).unwrap();
        let wanted = [
            (384, 384),
            (768, 384),
            (1152, 384),
            (384, 768),
            (768, 768),
            (1152, 768),
        ];
        assert_eq!(range, wanted);
        for wrong in [
            json!("(1x),...,(6x6)"),
            json!("(0x1),(6x6)"),
            json!("all"),
            json!([[1]]),
        ] {
            let error = original(wrong.clone()).unwrap_err().to_string();
            assert!(error.contains(PINPOINTS), "{error}");
        }
    }

    #[test]
    fn the_original_config_decides_how_pictures_are_taken() {
        let with = |json: Value| {
            let keys = json.as_object().unwrap().clone();
            ImageProcessorConfig::clip(336).with_original_config(&keys)
        };
        assert_eq!(with(json!({})).unwrap(), ImageProcessorConfig::clip(336));
        let pad = with(json!({"image_aspect_ratio": "pad", "image_grid_pinpoints": 7})).unwrap();
        assert_eq!((pad.aspect, pad.tiling), (ImageAspect::Pad, None));
        let tiled = with(json!({"image_aspect_ratio": "anyres_max_4",
            "image_grid_pinpoints": [[336, 672]], "mm_patch_merge_type": "spatial"}))
        .unwrap();
        let wanted = AnyResolution {
            pinpoints: vec![(672, 336)],
            max_tiles: Some(4),
            merge: PatchMerge::Spatial,
        };
        assert_eq!(tiled.tiling, Some(wanted));
        let error = |json: Value| with(json).unwrap_err().to_string();
        let missing = error(json!({"image_aspect_ratio": "anyres"}));
        assert!(missing.contains("no image_grid_pinpoints"), "{missing}");
        for (key, value) in [
            ("image_aspect_ratio", json!("anyres_top_9")),
            ("mm_patch_merge_type", json!("spatial_maxpool2x2")),
            ("image_grid_pinpoints", json!([[336, 500]])),
        ] {
            let mut json = json!({"image_aspect_ratio": "anyres",
                "image_grid_pinpoints": [[336, 672]], "mm_patch_merge_type": "flat"});
            assert!(with(json.clone()).is_ok());
            json[key] = value;
            let said = error(json);
            assert!(said.contains(key), "{said}");
        }
    }

    #[test]
    fn tiles_need_one_side() {
        let read = |json: Value| serde_json::from_value::<ImageProcessorConfig>(json);
        let next = |size: u32, crop: u32| {
            read(json!({"image_processor_type": "LlavaNextImageProcessor",
                "size": size, "crop_size": crop, "aspect_ratio_setting": "anyres"}))
        };
        assert_eq!(next(336, 336).unwrap().input_size().unwrap(), (336, 336));
        assert!(next(336, 224).is_err());
        assert!(next(400, 336).is_err());
        let onevision = read(json!({"image_processor_type": "LlavaOnevisionImageProcessor"}));
        let onevision = onevision.unwrap();
        assert_eq!(onevision.input_size().unwrap(), (384, 384));
        let onevision = onevision.tiling.unwrap();
        assert_eq!(onevision.max_tiles, Some(9));
        // transformers 5.24 (the height counts slower).
        assert_eq!(onevision.pinpoints.len(), 36);
        assert_eq!(onevision.pinpoints[4], (384, 1920));
        // A processor of one size has no pinpoints.
        let clip = json!({"image_grid_pinpoints": [[336, 672]]});
        assert!(read(clip).unwrap_err().to_string().contains(PINPOINTS));
    }
}
