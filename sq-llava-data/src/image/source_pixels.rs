//! Where the pixels of the tower's input come from: the geometry of resize, crop, padding and
//! tiles, for what lies over a picture and must follow it.

use super::anyres::TileGrid;
use super::resample::Axis;
use super::{ImageAspect, ImagePacking, ImageProcessor};

/// The pixel of the picture that each pixel of a tile shows the nearest of; `None` where it shows
/// padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePixels {
    /// Of each row of the tile, a row of the picture.
    pub rows: Vec<Option<u32>>,
    /// Of each column, a column.
    pub columns: Vec<Option<u32>>,
}

impl ImageProcessor {
    /// Where the pixels of a picture's tiles come from, in the order of [`Self::cut`], for a picture of
    /// `image_size` (height, width) pixels in a prompt with `pictures` pictures.
    pub fn sources(&self, image_size: (u32, u32), pictures: usize) -> Vec<SourcePixels> {
        match (self.packing(image_size, pictures), &self.config.tiling) {
            (ImagePacking::Grid { grid, .. }, _) => self.grid_sources(image_size, &grid),
            (ImagePacking::One { .. }, Some(_)) => vec![self.fitted(image_size, ImageAspect::Pad)],
            (ImagePacking::One { .. }, None) => {
                vec![self.fitted(image_size, self.config.aspect)]
            }
        }
    }

    fn fitted(&self, image_size: (u32, u32), aspect: ImageAspect) -> SourcePixels {
        let [(x, before_x), (y, before_y)] = self.axes(image_size, aspect);
        let (height, width) = self.input_size;
        SourcePixels {
            rows: sources(y, image_size.0, before_y.into(), height),
            columns: sources(x, image_size.1, before_x.into(), width),
        }
    }

    fn grid_sources(&self, image_size: (u32, u32), grid: &TileGrid) -> Vec<SourcePixels> {
        let mut tiles = vec![self.fitted(image_size, ImageAspect::Resize)];
        let [x, y] = self.grid_axes(image_size, grid);
        let (height, width) = self.input_size;
        for top in (0..grid.resolution.0).step_by(height as usize) {
            for left in (0..grid.resolution.1).step_by(width as usize) {
                let before = |padding: u32, start: u32| i64::from(padding) - i64::from(start);
                tiles.push(SourcePixels {
                    rows: sources(y, image_size.0, before(grid.padding.0, top), height),
                    columns: sources(x, image_size.1, before(grid.padding.1, left), width),
                });
            }
        }
        tiles
    }
}

/// Of each of `input` pixels, of which the wanted part of a resize begins at `before`, the one of
/// the picture's `length`.
fn sources(axis: Axis, length: u32, before: i64, input: u32) -> Vec<Option<u32>> {
    let source = |pixel: u32| {
        let wanted = u64::try_from(i64::from(pixel) - before).ok()?;
        if wanted >= u64::from(axis.len) {
            return None;
        }
        // Its centre, on the canvas.
        let at = u128::from(2 * (axis.start + wanted) + 1) * u128::from(axis.canvas);
        let at = u32::try_from(at / u128::from(2 * axis.resized.max(1))).ok()?;
        let own = at.checked_sub(axis.offset)?;
        (own < length).then_some(own)
    };
    (0..input).map(source).collect()
}
