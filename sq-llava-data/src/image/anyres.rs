//! Pictures of any shape: the grid of tiles that a picture is laid over, and which part of the
//! tiles' features it fills.
//!
//! The arithmetic is transformers' (LLaVA-NeXT and OneVision), floating point in the same places:
//! a size that rounds elsewhere gives another number of tokens.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DataError;

/// Sides of a resolution end here, so that a broken configuration cannot ask for all memory.
const MAX_SIDE: u32 = 8192;

/// How the features of tiles are joined: LLaVA's `mm_patch_merge_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchMerge {
    /// Tile after tile.
    Flat,
    /// The joined map row by row, padding included.
    Spatial,
    /// The joined map row by row without its padding, `image_newline` at the end of each row:
    /// what transformers does.
    #[default]
    SpatialUnpad,
}

impl PatchMerge {
    /// Its name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Spatial => "spatial",
            Self::SpatialUnpad => "spatial_unpad",
        }
    }

    /// Whether the model's `image_newline` is used.
    pub fn has_newlines(self) -> bool {
        self == Self::SpatialUnpad
    }
}

impl FromStr for PatchMerge {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let all = [Self::Flat, Self::Spatial, Self::SpatialUnpad];
        let found = all.into_iter().find(|merge| merge.name() == name);
        found.ok_or_else(|| {
            DataError::ImageConfig(format!(
                "mm_patch_merge_type {name:?} is not supported: use flat, spatial or spatial_unpad"
            ))
        })
    }
}

/// Tiling of pictures of any shape ("anyres").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnyResolution {
    /// `image_grid_pinpoints`: resolutions to choose from, `(height, width)` in pixels, multiples
    /// of the tile's side. Of equally good ones the first is taken.
    pub pinpoints: Vec<(u32, u32)>,
    /// The N of OneVision's `anyres_max_N`: a feature map much larger than N tiles is reduced, and
    /// of several pictures in a prompt each is one tile. `None` for LLaVA-NeXT, which does neither.
    pub max_tiles: Option<u32>,
    /// How the features of tiles are joined.
    pub merge: PatchMerge,
}

impl AnyResolution {
    /// LLaVA's `image_aspect_ratio`: `anyres` or `anyres_max_N`.
    pub fn aspect_name(&self) -> String {
        match self.max_tiles {
            Some(most) => format!("anyres_max_{most}"),
            None => "anyres".into(),
        }
    }

    /// The inverse of [`Self::aspect_name`]: `Some(None)` for `anyres`, `None` for other words.
    pub fn max_tiles_of(aspect_name: &str) -> Option<Option<u32>> {
        match aspect_name.strip_prefix("anyres")? {
            "" => Some(None),
            rest => {
                let most = rest.strip_prefix("_max_")?.parse().ok()?;
                (most > 0).then_some(Some(most))
            }
        }
    }

    /// The published resolutions for tiles of `tile` × `tile` pixels, joined as transformers does:
    /// LLaVA-NeXT's five, or with `max_tiles` OneVision's 36.
    pub fn published(tile: u32, max_tiles: Option<u32>) -> Self {
        let grids = match max_tiles {
            None => vec![(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)],
            Some(_) => (1..=6).flat_map(|a| (1..=6).map(move |b| (a, b))).collect(),
        };
        let side = |tiles: u32| tiles.saturating_mul(tile);
        Self {
            pinpoints: grids.into_iter().map(|(a, b)| (side(a), side(b))).collect(),
            max_tiles,
            merge: PatchMerge::default(),
        }
    }

    /// Tiles of the picture that has most, the whole one included.
    pub fn most_tiles(&self, tile: u32) -> usize {
        let tiles = |&(height, width): &(u32, u32)| {
            (height / tile.max(1)) as usize * (width / tile.max(1)) as usize
        };
        1 + self.pinpoints.iter().map(tiles).max().unwrap_or(0)
    }

    /// Whether tiles of `tile` × `tile` pixels fill the resolutions.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if there is no resolution, or one that is no grid of such tiles.
    pub fn check(&self, tile: u32) -> Result<(), DataError> {
        let wrong = |reason: String| {
            Err(DataError::ImageConfig(format!(
                "image_grid_pinpoints: {reason}"
            )))
        };
        if self.pinpoints.is_empty() {
            return wrong("the list is empty".into());
        }
        for &(height, width) in &self.pinpoints {
            let fits = |side: u32| side > 0 && side <= MAX_SIDE && side.is_multiple_of(tile);
            if !fits(height) || !fits(width) {
                return wrong(format!(
                    "{height} x {width} pixels (height, width) are no grid of tiles of {tile}, \
                     or a side is above {MAX_SIDE}"
                ));
            }
        }
        Ok(())
    }

    /// The resolution that keeps most of a picture of `image_size` (height, width) pixels, and of
    /// those the one that wastes least.
    fn best_resolution(&self, image_size: (u32, u32)) -> (u32, u32) {
        let (height, width) = (f64::from(image_size.0), f64::from(image_size.1));
        let area = u64::from(image_size.0) * u64::from(image_size.1);
        let mut best = (0, i128::MIN, (0, 0));
        for &resolution in &self.pinpoints {
            let (rows, columns) = (f64::from(resolution.0), f64::from(resolution.1));
            let scale = (columns / width).min(rows / height);
            let kept = ((width * scale) as u64 * (height * scale) as u64).min(area);
            let wasted = i128::from(resolution.0) * i128::from(resolution.1) - i128::from(kept);
            if kept > best.0 || (kept == best.0 && -wasted > best.1) {
                best = (kept, -wasted, resolution);
            }
        }
        best.2
    }

    /// How a picture of `image_size` (height, width) pixels, none of them zero, lies over tiles of
    /// `tile` × `tile` pixels.
    pub fn grid(&self, image_size: (u32, u32), tile: u32) -> TileGrid {
        let resolution = self.best_resolution(image_size);
        let (height, width) = (f64::from(image_size.0), f64::from(image_size.1));
        let scale_x = f64::from(resolution.1) / width;
        let scale_y = f64::from(resolution.0) / height;
        let resized = if scale_x < scale_y {
            let rows = (height * scale_x).ceil() as u32;
            (rows.min(resolution.0), resolution.1)
        } else {
            let columns = (width * scale_y).ceil() as u32;
            (resolution.0, columns.min(resolution.1))
        };
        TileGrid {
            image_size,
            resolution,
            resized,
            padding: (
                (resolution.0 - resized.0) / 2,
                (resolution.1 - resized.1) / 2,
            ),
            tiles: (resolution.0 / tile, resolution.1 / tile),
        }
    }
}

/// One picture over its grid of tiles; all pairs are (height, width) or (rows, columns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileGrid {
    /// The picture, in pixels.
    pub image_size: (u32, u32),
    /// All tiles together, in pixels.
    pub resolution: (u32, u32),
    /// The resized picture on them, in pixels.
    pub resized: (u32, u32),
    /// Black pixels above it and left of it.
    pub padding: (u32, u32),
    /// Rows and columns of tiles.
    pub tiles: (u32, u32),
}

impl TileGrid {
    /// The part of the joined feature map that the picture fills, for tiles of `side` × `side`
    /// features.
    pub fn kept(&self, side: u32) -> FeatureWindow {
        let (rows, columns) = (self.tiles.0 * side, self.tiles.1 * side);
        let (height, width) = (f64::from(self.image_size.0), f64::from(self.image_size.1));
        // Of the original size, as both the processors and the models of transformers do.
        let mut window = FeatureWindow {
            top: 0,
            left: 0,
            rows,
            columns,
        };
        if width / height > f64::from(columns) / f64::from(rows) {
            let kept = whole_of(height * (f64::from(columns) / width));
            window.top = rows.saturating_sub(kept) / 2;
            window.rows -= 2 * window.top;
        } else {
            let kept = whole_of(width * (f64::from(rows) / height));
            window.left = columns.saturating_sub(kept) / 2;
            window.columns -= 2 * window.left;
        }
        window
    }
}

/// A rectangle of a feature map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureWindow {
    /// Rows above it.
    pub top: u32,
    /// Columns left of it.
    pub left: u32,
    /// Its height.
    pub rows: u32,
    /// Its width.
    pub columns: u32,
}

impl FeatureWindow {
    /// Rows and columns that OneVision reduces it to, where it has many more features than
    /// `max_tiles` tiles of `side` × `side`.
    pub fn reduced(&self, side: u32, max_tiles: u32) -> Option<(u32, u32)> {
        let (rows, columns) = (f64::from(self.rows), f64::from(self.columns));
        let most = f64::from(max_tiles) * f64::from(side) * f64::from(side);
        let ratio = (rows * columns / most).sqrt();
        // At least one: transformers fails on a map that vanishes.
        (ratio > 1.1).then(|| {
            (
                quotient(rows, ratio).max(1),
                quotient(columns, ratio).max(1),
            )
        })
    }
}

/// Python's `int(round(value, 7))`.
fn whole_of(value: f64) -> u32 {
    // Printing rounds the exact value, as Python does; the product with 1e7 would round twice.
    let rounded: f64 = format!("{value:.7}").parse().unwrap_or(value);
    rounded as u32
}

/// Python's `int(value // divisor)` of positive numbers: the floor of the exact quotient.
fn quotient(value: f64, divisor: f64) -> u32 {
    ((value - value % divisor) / divisor).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next() -> AnyResolution {
        AnyResolution {
            pinpoints: vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)],
            max_tiles: None,
            merge: PatchMerge::SpatialUnpad,
        }
    }

    #[test]
    fn of_equally_good_resolutions_the_first_is_taken() {
        // Smaller than a tile: no resolution keeps more, the first two waste the same.
        assert_eq!(next().grid((300, 300), 336).resolution, (336, 672));
        let mut turned = next();
        turned.pinpoints.swap(0, 1);
        assert_eq!(turned.grid((300, 300), 336).resolution, (672, 336));
    }

    #[test]
    fn a_line_keeps_no_row_where_padding_halves_evenly() {
        // transformers 5.24, `_get_unpadded_features(1, 5000, 24, 24, 1, 2)`: 0 features.
        let grid = next().grid((1, 5000), 336);
        assert_eq!((grid.resolution, grid.resized), ((336, 672), (1, 672)));
        assert_eq!((grid.kept(24).rows, grid.kept(24).columns), (0, 48));
        assert_eq!(grid.kept(23).rows, 1);
    }

    #[test]
    fn rounding_is_python_s() {
        assert_eq!(whole_of(11.999_999_96), 12);
        assert_eq!(whole_of(11.999_999_94), 11);
        // 6.0 // 0.1 is 59 in Python, while the rounded quotient is 60.
        assert_eq!(quotient(6.0, 0.1), 59);
        assert_eq!(quotient(12.0, 1.5), 8);
    }

    #[test]
    fn resolutions_that_are_no_grids_are_refused() {
        assert!(next().check(336).is_ok());
        let error = next().check(224).unwrap_err().to_string();
        assert!(error.contains("image_grid_pinpoints: 336 x 672"), "{error}");
        let mut large = next();
        large.pinpoints = vec![(336, 336 * 336)];
        assert!(large.check(336).is_err());
        large.pinpoints.clear();
        assert!(large.check(336).is_err());
    }

    #[test]
    fn names_of_the_aspect() {
        assert_eq!(AnyResolution::max_tiles_of("anyres"), Some(None));
        assert_eq!(AnyResolution::max_tiles_of("anyres_max_9"), Some(Some(9)));
        for other in ["pad", "anyres_top_9", "anyres_max_0", "anyres_max_", "any"] {
            assert_eq!(AnyResolution::max_tiles_of(other), None, "{other}");
        }
        let mut one = next();
        one.max_tiles = Some(9);
        assert_eq!(one.aspect_name(), "anyres_max_9");
        assert_eq!(
            "spatial".parse::<PatchMerge>().unwrap(),
            PatchMerge::Spatial
        );
        assert!("unpad".parse::<PatchMerge>().is_err());
    }
}
