//! A picture of any shape as tiles of the tower's size.

use super::anyres::TileGrid;
use super::resample::{Axis, filled, resample_exactly};
use super::{ImageAspect, ImagePacking, ImageProcessor, RgbImage};

/// A picture in tiles, still in eight bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTiles {
    /// Each as large as the tower's input, the whole picture first, then row by row.
    pub tiles: Vec<RgbImage>,
    /// `(height, width)` of the picture, in pixels.
    pub image_size: (u32, u32),
    /// How the tiles' features become tokens.
    pub packing: ImagePacking,
}

/// Input of the vision tower for one picture of any shape.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedImage {
    /// `[tiles, 3, height, width]`, row-major; the whole picture is the first tile.
    pub data: Vec<f32>,
    /// How many tiles.
    pub tiles: usize,
    /// Height of a tile in pixels.
    pub height: usize,
    /// Width of a tile in pixels.
    pub width: usize,
    /// `(height, width)` of the picture, in pixels.
    pub image_size: (u32, u32),
    /// How the tiles' features become tokens.
    pub packing: ImagePacking,
}

impl ImageProcessor {
    /// How the features of a picture of `image_size` (height, width) pixels become tokens, in a
    /// prompt with `pictures` pictures. This needs no pixels.
    ///
    /// A processor of one size takes each picture as one tile, and so does OneVision's where a
    /// prompt has several.
    pub fn packing(&self, image_size: (u32, u32), pictures: usize) -> ImagePacking {
        let Some(anyres) = &self.config.tiling else {
            return ImagePacking::One { newline: false };
        };
        if anyres.max_tiles.is_some() && pictures > 1 {
            return ImagePacking::One {
                newline: anyres.merge.has_newlines(),
            };
        }
        // `decode` gives no picture without pixels.
        let image_size = (image_size.0.max(1), image_size.1.max(1));
        ImagePacking::Grid {
            grid: anyres.grid(image_size, self.input_size.0),
            max_tiles: anyres.max_tiles,
            merge: anyres.merge,
        }
    }

    /// Cuts a picture of a prompt with `pictures` pictures into tiles, still in eight bits.
    pub fn cut(&self, image: &RgbImage, pictures: usize) -> ImageTiles {
        let image_size = (image.height(), image.width());
        let packing = self.packing(image_size, pictures);
        let tiles = match (&packing, &self.config.tiling) {
            (ImagePacking::Grid { grid, .. }, _) => self.grid_tiles(image, grid),
            (ImagePacking::One { .. }, Some(_)) => {
                vec![self.fit(image, ImageAspect::Pad, resample_exactly)]
            }
            (ImagePacking::One { .. }, None) => vec![self.resize_to_input(image)],
        };
        ImageTiles {
            tiles,
            image_size,
            packing,
        }
    }

    /// A picture of `image_size` (height, width) pixels that shows nothing, in a prompt with
    /// `pictures` pictures.
    pub fn blank(&self, image_size: (u32, u32), pictures: usize) -> ImageTiles {
        let (height, width) = match self.config.tiling {
            // Its shape does not matter.
            None => self.input_size,
            Some(_) => image_size,
        };
        self.cut(&filled(width, height, self.background), pictures)
    }

    /// The whole picture, stretched to a tile; then the tiles of the grid, on which its shape is
    /// kept and the rest is black.
    fn grid_tiles(&self, image: &RgbImage, grid: &TileGrid) -> Vec<RgbImage> {
        let mut tiles = vec![self.fit(image, ImageAspect::Resize, resample_exactly)];
        let [x, y] = self.grid_axes((image.height(), image.width()), grid);
        let resized = match image.is_empty() {
            true => filled(x.len, y.len, self.background),
            false => resample_exactly(image, x, y, self.background),
        };
        let (height, width) = self.input_size;
        for top in (0..grid.resolution.0).step_by(height as usize) {
            for left in (0..grid.resolution.1).step_by(width as usize) {
                let mut tile = RgbImage::new(width, height);
                let at = |padding: u32, start: u32| i64::from(padding) - i64::from(start);
                image::imageops::replace(
                    &mut tile,
                    &resized,
                    at(grid.padding.1, left),
                    at(grid.padding.0, top),
                );
                tiles.push(tile);
            }
        }
        tiles
    }

    /// The way of a picture of this (height, width) to its place on the grid, across and down.
    pub(super) fn grid_axes(&self, (height, width): (u32, u32), grid: &TileGrid) -> [Axis; 2] {
        let axis = |canvas: u32, len: u32| Axis {
            kernel: self.config.resample,
            canvas,
            offset: 0,
            resized: len.into(),
            start: 0,
            len,
        };
        [axis(width, grid.resized.1), axis(height, grid.resized.0)]
    }

    /// Eight bits to the tower's numbers; the second half of [`Self::prepare`].
    pub fn normalize_tiles(&self, image: &ImageTiles) -> PreparedImage {
        let (height, width) = self.input_size;
        let (height, width) = (height as usize, width as usize);
        let mut data = vec![0.0; image.tiles.len() * 3 * height * width];
        for (tile, data) in image.tiles.iter().zip(data.chunks_mut(3 * height * width)) {
            self.normalize_into(tile, data);
        }
        PreparedImage {
            data,
            tiles: image.tiles.len(),
            height,
            width,
            image_size: image.image_size,
            packing: image.packing,
        }
    }

    /// A picture of a prompt with `pictures` pictures, as the tower takes it.
    pub fn prepare(&self, image: &RgbImage, pictures: usize) -> PreparedImage {
        self.normalize_tiles(&self.cut(image, pictures))
    }
}
