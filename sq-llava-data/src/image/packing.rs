//! How the features of a picture's tiles become the tokens that stand for it in a prompt.

use super::anyres::{FeatureWindow, PatchMerge, TileGrid};
use crate::DataError;

/// What a model has to know of a prepared picture, besides its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePacking {
    /// One tile; its features are the tokens.
    One {
        /// Whether `image_newline` follows them.
        newline: bool,
    },
    /// The whole picture as one tile, then a grid of tiles.
    Grid {
        /// The picture over its tiles.
        grid: TileGrid,
        /// The N of `anyres_max_N`.
        max_tiles: Option<u32>,
        /// How the features of the grid are joined.
        merge: PatchMerge,
    },
}

/// Where one token comes from.
///
/// Features are numbered over all tiles: feature `i` of tile `t` is `t * features + i`, a row of
/// `[tiles * features, hidden]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TokenSource {
    /// One feature.
    Feature(u32),
    /// The weighted sum of four, whose weights add up to one.
    Blend([(u32, f32); 4]),
    /// The model's `image_newline`.
    Newline,
}

/// The tokens of one picture, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct PackingPlan {
    /// Features of all tiles together.
    pub features: usize,
    /// One for each token.
    pub tokens: Vec<TokenSource>,
}

/// A row for each token, taken from `[tiles * features + 1, hidden]`: the features of all tiles and
/// `image_newline` behind them.
#[derive(Debug, Clone, PartialEq)]
pub struct Gather {
    /// One row for each token.
    pub rows: Vec<u32>,
    /// What each is multiplied by; `None` where all are one.
    pub weights: Option<Vec<f32>>,
}

impl ImagePacking {
    /// How many tiles the picture has, the whole one included.
    pub fn tiles(&self) -> usize {
        match self {
            Self::One { .. } => 1,
            Self::Grid { grid, .. } => 1 + grid.tiles.0 as usize * grid.tiles.1 as usize,
        }
    }

    /// Whether the model's `image_newline` stands among the tokens.
    pub fn has_newlines(&self) -> bool {
        match self {
            Self::One { newline } => *newline,
            Self::Grid { merge, .. } => merge.has_newlines(),
        }
    }

    /// How many tokens the picture has, where the tower gives `features` for a tile: those that
    /// are selected, thus without a class token.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn tokens(&self, features: usize) -> Result<usize, DataError> {
        Ok(match self {
            Self::One { newline } => features + usize::from(*newline),
            Self::Grid { merge, .. } if *merge != PatchMerge::SpatialUnpad => {
                self.side(features)?;
                self.tiles() * features
            }
            Self::Grid {
                grid, max_tiles, ..
            } => {
                let side = self.side(features)?;
                let kept = grid.kept(side);
                let (rows, columns) = reduced(&kept, side, *max_tiles);
                features + rows as usize * (columns as usize + 1)
            }
        })
    }

    /// Where each token comes from.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if a tile of a grid has features that are no square.
    pub fn plan(&self, features: usize) -> Result<PackingPlan, DataError> {
        let mut tokens: Vec<TokenSource> = (0..features as u32).map(TokenSource::Feature).collect();
        match self {
            Self::One { newline } => tokens.extend(newline.then_some(TokenSource::Newline)),
            Self::Grid {
                grid,
                max_tiles,
                merge,
            } => {
                let side = self.side(features)?;
                let map = Map { grid, side };
                let whole = map.whole();
                match merge {
                    PatchMerge::Flat => {
                        let all = features as u32..(self.tiles() * features) as u32;
                        tokens.extend(all.map(TokenSource::Feature));
                    }
                    PatchMerge::Spatial => map.push(&mut tokens, &whole, None, false),
                    PatchMerge::SpatialUnpad => {
                        let kept = grid.kept(side);
                        let smaller = max_tiles.and_then(|most| kept.reduced(side, most));
                        map.push(&mut tokens, &kept, smaller, true);
                    }
                }
            }
        }
        Ok(PackingPlan {
            features: self.tiles() * features,
            tokens,
        })
    }

    /// Rows (and columns) of features of a tile.
    fn side(&self, features: usize) -> Result<u32, DataError> {
        let side = features.isqrt();
        if side * side == features && side > 0 {
            return Ok(side as u32);
        }
        Err(DataError::ImageConfig(format!(
            "a tile of a picture of any shape has {features} features, which are no square: such \
             towers give their patches without the class token (mm_vision_select_feature patch, \
             vision_feature_select_strategy default, or full for a tower without one)"
        )))
    }
}

fn reduced(kept: &FeatureWindow, side: u32, max_tiles: Option<u32>) -> (u32, u32) {
    let smaller = max_tiles.and_then(|most| kept.reduced(side, most));
    smaller.unwrap_or((kept.rows, kept.columns))
}

/// The features of a grid, joined to one map.
struct Map<'a> {
    grid: &'a TileGrid,
    side: u32,
}

impl Map<'_> {
    fn whole(&self) -> FeatureWindow {
        FeatureWindow {
            top: 0,
            left: 0,
            rows: self.grid.tiles.0 * self.side,
            columns: self.grid.tiles.1 * self.side,
        }
    }

    /// The number of a feature of the map; those of the whole picture come before all tiles.
    fn feature(&self, row: u32, column: u32) -> u32 {
        let side = self.side;
        let tile = 1 + row / side * self.grid.tiles.1 + column / side;
        (tile * side + row % side) * side + column % side
    }

    /// Adds a part of the map row by row, reduced to `smaller` rows and columns.
    fn push(
        &self,
        tokens: &mut Vec<TokenSource>,
        part: &FeatureWindow,
        smaller: Option<(u32, u32)>,
        newlines: bool,
    ) {
        let at = |row, column| self.feature(part.top + row, part.left + column);
        let (rows, columns) = smaller.unwrap_or((part.rows, part.columns));
        for row in 0..rows {
            for column in 0..columns {
                tokens.push(match smaller {
                    None => TokenSource::Feature(at(row, column)),
                    Some(_) => {
                        let [upper, lower] = neighbours(row, part.rows, rows);
                        let [left, right] = neighbours(column, part.columns, columns);
                        let corner = |(y, v): (u32, f32), (x, h): (u32, f32)| (at(y, x), v * h);
                        TokenSource::Blend([
                            corner(upper, left),
                            corner(upper, right),
                            corner(lower, left),
                            corner(lower, right),
                        ])
                    }
                });
            }
            tokens.extend(newlines.then_some(TokenSource::Newline));
        }
    }
}

/// The two of `from` values that value `i` of `to` lies between, and their weights: bilinear with
/// half-pixel centres and without antialiasing, as PyTorch's `interpolate`.
fn neighbours(i: u32, from: u32, to: u32) -> [(u32, f32); 2] {
    let scale = f64::from(from) / f64::from(to);
    let at = ((f64::from(i) + 0.5) * scale - 0.5).max(0.0);
    let first = at as u32;
    let weight = (at - f64::from(first)) as f32;
    let second = (first + 1).min(from - 1);
    [(first, 1.0 - weight), (second, weight)]
}

impl PackingPlan {
    /// The plan as rows to take: token `i` is the sum over the gathers of row `rows[i]` times
    /// `weights[i]`. One gather where nothing is reduced, else four.
    pub fn gathers(&self) -> Vec<Gather> {
        let newline = self.features as u32;
        let blends = |token: &TokenSource| matches!(token, TokenSource::Blend(_));
        if !self.tokens.iter().any(blends) {
            let row = |token: &TokenSource| match token {
                TokenSource::Feature(row) => *row,
                _ => newline,
            };
            return vec![Gather {
                rows: self.tokens.iter().map(row).collect(),
                weights: None,
            }];
        }
        let part = |corner: usize| {
            let pick = |token: &TokenSource| match token {
                TokenSource::Blend(corners) => corners[corner],
                TokenSource::Feature(row) => (*row, f32::from(u8::from(corner == 0))),
                TokenSource::Newline => (newline, f32::from(u8::from(corner == 0))),
            };
            let (rows, weights) = self.tokens.iter().map(pick).unzip();
            Gather {
                rows,
                weights: Some(weights),
            }
        };
        (0..4).map(part).collect()
    }
}

#[cfg(test)]
mod tests;
