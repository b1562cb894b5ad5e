//! From the bytes of a picture to the vision tower's input.
//!
//! [`ImageProcessor`] decodes (`decode.rs`), squares and resizes as Pillow and LLaVA do
//! (`resample.rs`), and normalises; [`ImageProcessorConfig`] is `preprocessor_config.json`.
//! Pictures of any shape become tiles (`tiles.rs`) by the geometry of `anyres.rs`, and `packing.rs`
//! says how the features of tiles become tokens.

mod anyres;
mod config;
mod decode;
mod packing;
mod resample;
mod source_pixels;
mod tiles;

use std::io::Read;
use std::path::Path;
use std::sync::Once;

pub use anyres::{AnyResolution, FeatureWindow, PatchMerge, TileGrid};
pub use config::{DEFAULT_MAX_PIXELS, ImageAspect, ImageProcessorConfig, ImageSize};
pub use image::{ImageFormat, Rgb, RgbImage};
pub use packing::{Gather, ImagePacking, PackingPlan, TokenSource};
pub use source_pixels::SourcePixels;
pub use tiles::{ImageTiles, PreparedImage};

use crate::{DataError, files};
use decode::{DecodeOptions, Decoded};
pub use resample::Kernel;
use resample::{Axis, Resample, filled, resample};

/// Bytes by which a picture is told from other files.
const PICTURE_START: u64 = 4096;

/// Bytes that mostly tell a picture's size.
const SIZE_START: u64 = 1 << 16;

/// Says that pictures are not turned, at the first one that would be.
static NOT_TURNED: Once = Once::new();

/// Input of the vision tower for one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `[3, height, width]`, row-major: all red, then all green, then all blue.
    pub data: Vec<f32>,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

/// What the file of a picture turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Told by the content.
    pub format: ImageFormat,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Faults that decoding goes past; pixels may be wrong there.
    pub damage: Vec<String>,
}

impl ImageFacts {
    /// Whether the extension of a path is not that of another format than the content has.
    pub(crate) fn fits_extension(&self, path: &Path) -> bool {
        let said = path.extension().and_then(ImageFormat::from_extension);
        said.is_none_or(|format| format == self.format)
    }
}

/// Prepares pictures for the vision tower. Cheap to share between threads; keeps no state.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
    input_size: (u32, u32),
    background: [u8; 3],
    /// Normalised value of each byte, per channel.
    normalised: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// A processor for this configuration.
    ///
    /// # Errors
    /// [`DataError::ImageConfig`] if the inputs would have no fixed size, or an impossible one; or
    /// if tiles of that size do not fill the resolutions that pictures are brought to.
    pub fn new(config: ImageProcessorConfig) -> Result<Self, DataError> {
        let input_size = config.input_size()?;
        config.check_tiles()?;
        // LLaVA: `tuple(int(x*255) for x in image_processor.image_mean)`.
        let background = config.image_mean.map(|mean| (mean * 255.0) as u8);
        let mut normalised = Box::new([[0.0; 256]; 3]);
        for (channel, table) in normalised.iter_mut().enumerate() {
            let mean = config.image_mean[channel] as f32;
            let std = config.image_std[channel] as f32;
            for (byte, value) in table.iter_mut().enumerate() {
                // Rounded to f32 in the same places as transformers does.
                *value = byte as f32;
                if config.do_rescale {
                    *value = (byte as f64 * config.rescale_factor) as f32;
                }
                if config.do_normalize {
                    *value = (*value - mean) / std;
                }
            }
        }
        Ok(Self {
            config,
            input_size,
            background,
            normalised,
        })
    }

    /// The processor of a checkpoint: the file in its folder, and the `image_aspect_ratio` of the
    /// model's config.json, where there is one.
    ///
    /// # Errors
    /// As [`ImageProcessorConfig::read_dir`] and [`Self::new`].
    pub fn from_dir(dir: &Path, image_aspect_ratio: Option<&str>) -> Result<Self, DataError> {
        let mut config = ImageProcessorConfig::read_dir(dir)?;
        if let Some(name) = image_aspect_ratio {
            config.aspect = name.parse()?;
        }
        Self::new(config)
    }

    /// The same, but pictures are turned as their EXIF says.
    #[must_use]
    pub fn turning(mut self) -> Self {
        self.config.apply_exif = true;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// `(height, width)` of the input, in pixels.
    pub fn input_size(&self) -> (u32, u32) {
        self.input_size
    }

    /// Colour of the padding: the mean, as LLaVA rounds it.
    pub fn background(&self) -> [u8; 3] {
        self.background
    }

    /// Reads and decodes a picture; see [`Self::decode`].
    ///
    /// # Errors
    /// [`DataError::Io`], or as [`Self::decode`]; both name the file.
    pub fn open(&self, path: &Path) -> Result<RgbImage, DataError> {
        self.decode(&self.read(path)?, &path.display().to_string())
    }

    /// Reads and decodes a picture whole, only to see what it is.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn inspect(&self, path: &Path) -> Result<ImageFacts, DataError> {
        self.inspect_bytes(&self.read(path)?, &path.display().to_string())
    }

    /// [`Self::inspect`] from the bytes of a file; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn inspect_bytes(&self, bytes: &[u8], name: &str) -> Result<ImageFacts, DataError> {
        let decoded = decode::decode(bytes, name, self.options())?;
        Ok(ImageFacts {
            format: decoded.format,
            width: decoded.image.width(),
            height: decoded.image.height(),
            damage: decoded.damage,
        })
    }

    /// `(height, width)` of a picture in pixels, as [`Self::open`] gives it, mostly from the
    /// beginning of its file: no pixel is decoded, and damage behind it is not seen.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn size(&self, path: &Path) -> Result<(u32, u32), DataError> {
        let mut start = Vec::new();
        let failed = |source| DataError::Io {
            path: path.to_path_buf(),
            source,
        };
        let mut file = files::open(path)?.take(SIZE_START);
        file.read_to_end(&mut start).map_err(failed)?;
        let begun = match start.len() as u64 == SIZE_START {
            true => decode::size(&start, self.options()),
            false => None,
        };
        let found = match begun {
            Some(size) => Some(size),
            None => decode::size(&self.read(path)?, self.options()),
        };
        match found {
            Some((width, height)) if width > 0 && height > 0 => Ok((height, width)),
            // It says what is wrong.
            _ => self.open(path).map(|image| (image.height(), image.width())),
        }
    }

    /// [`Self::size`] from the bytes of a file; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn size_of(&self, bytes: &[u8], name: &str) -> Result<(u32, u32), DataError> {
        match decode::size(bytes, self.options()) {
            Some((width, height)) if width > 0 && height > 0 => Ok((height, width)),
            // It says what is wrong.
            _ => {
                let image = self.decode(bytes, name)?;
                Ok((image.height(), image.width()))
            }
        }
    }

    fn options(&self) -> DecodeOptions {
        DecodeOptions {
            max_pixels: self.config.max_pixels,
            apply_exif: self.config.apply_exif,
        }
    }

    /// The bytes of a file, unless there are too many.
    fn read(&self, path: &Path) -> Result<Vec<u8>, DataError> {
        let failed = |source| DataError::Io {
            path: path.to_path_buf(),
            source,
        };
        // No picture within the limit is larger than this, even without compression.
        let most = self.config.max_pixels.saturating_mul(8);
        let most = most.saturating_add(64 << 20);
        let mut bytes = Vec::new();
        files::open(path)?
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 == most {
            return Err(DataError::Image {
                name: path.display().to_string(),
                reason: format!(
                    "the file has {most} bytes or more, too many for an image of {} pixels",
                    self.config.max_pixels
                ),
            });
        }
        Ok(bytes)
    }

    /// Decodes a JPEG, PNG, WebP, GIF or BMP, told by its content, to RGB as Pillow's
    /// `convert("RGB")` does: transparency is dropped, animations give their first frame, EXIF
    /// orientation is ignored unless the configuration says `apply_exif`; a warning says so at the
    /// first picture that it would turn. `name` is for messages.
    ///
    /// # Errors
    /// [`DataError::Image`] if the bytes are not such an image, are cut short or damaged;
    /// [`DataError::ImageTooLarge`] above `max_pixels`, before the pixels are decoded.
    pub fn decode(&self, bytes: &[u8], name: &str) -> Result<RgbImage, DataError> {
        let Decoded {
            image,
            turned,
            damage,
            ..
        } = decode::decode(bytes, name, self.options())?;
        for damage in damage {
            tracing::warn!(image = name, "{damage}");
        }
        if turned && !self.config.apply_exif {
            NOT_TURNED.call_once(|| {
                tracing::warn!(
                    image = name,
                    "its EXIF turns it, but it is taken as it is stored, as LLaVA does (said once;                      --exif, or \"apply_exif\": true in preprocessor_config.json, turns pictures)"
                );
            });
        }
        Ok(image)
    }

    /// Pads, crops or stretches a picture to [`Self::input_size`], still in eight bits.
    ///
    /// An image without pixels, which [`Self::decode`] never gives, becomes all background.
    pub fn resize_to_input(&self, image: &RgbImage) -> RgbImage {
        self.fit(image, self.config.aspect, resample)
    }

    /// Brings a picture to the input's size by a treatment of its shape and a way to resample.
    fn fit(&self, image: &RgbImage, aspect: ImageAspect, resample: Resample) -> RgbImage {
        let (input_height, input_width) = self.input_size;
        if image.width() == 0 || image.height() == 0 {
            return filled(input_width, input_height, self.background);
        }
        let [(x, before_x), (y, before_y)] = self.axes((image.height(), image.width()), aspect);
        let window = resample(image, x, y, self.background);
        if window.dimensions() == (input_width, input_height) {
            return window;
        }
        // Smaller than the crop: zeros around, as transformers' `center_crop`.
        let mut result = RgbImage::new(input_width, input_height);
        image::imageops::replace(&mut result, &window, before_x.into(), before_y.into());
        result
    }

    /// The way of a picture of this (height, width) to the input's size, across and down: what is
    /// wanted of its resize, and how many pixels stand before that.
    fn axes(&self, (height, width): (u32, u32), aspect: ImageAspect) -> [(Axis, u32); 2] {
        let (input_height, input_width) = self.input_size;
        let square = width.max(height);
        let (canvas_width, canvas_height) = match aspect {
            ImageAspect::Pad => (square, square),
            ImageAspect::Crop | ImageAspect::Resize => (width, height),
        };
        let (resized_width, resized_height) = self.resized(aspect, canvas_width, canvas_height);
        let kernel = self.config.resample;
        [
            axis(kernel, width, canvas_width, resized_width, input_width),
            axis(kernel, height, canvas_height, resized_height, input_height),
        ]
    }

    /// Resizes to the input size and normalises.
    pub fn preprocess(&self, image: &RgbImage) -> PixelValues {
        self.normalize(&self.resize_to_input(image))
    }

    /// Eight bits to the tower's numbers; the second half of [`Self::preprocess`].
    pub fn normalize(&self, resized: &RgbImage) -> PixelValues {
        let (width, height) = (resized.width() as usize, resized.height() as usize);
        let mut data = vec![0.0; 3 * width * height];
        self.normalize_into(resized, &mut data);
        PixelValues {
            data,
            height,
            width,
        }
    }

    /// The same into `[3, height, width]`.
    fn normalize_into(&self, resized: &RgbImage, data: &mut [f32]) {
        let area = data.len() / 3;
        let (red, rest) = data.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        let [red_of, green_of, blue_of] = &*self.normalised;
        for (((pixel, red), green), blue) in resized
            .as_raw()
            .chunks_exact(3)
            .zip(red)
            .zip(green)
            .zip(blue)
        {
            *red = red_of[usize::from(pixel[0])];
            *green = green_of[usize::from(pixel[1])];
            *blue = blue_of[usize::from(pixel[2])];
        }
    }

    /// [`Self::open`], then [`Self::preprocess`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn preprocess_path(&self, path: &Path) -> Result<PixelValues, DataError> {
        Ok(self.preprocess(&self.open(path)?))
    }

    /// Size after resizing and before the centre crop, in pixels.
    fn resized(&self, aspect: ImageAspect, width: u32, height: u32) -> (u64, u64) {
        if aspect == ImageAspect::Resize {
            let (height, width) = self.input_size;
            return (width.into(), height.into());
        }
        let (width, height) = (u64::from(width), u64::from(height));
        match self.config.size {
            _ if !self.config.do_resize => (width, height),
            ImageSize::Exact { height, width } => (width.into(), height.into()),
            ImageSize::ShortestEdge(size) => {
                // transformers: `int(size * long / short)`.
                let size = u64::from(size);
                if width <= height {
                    (size, size * height / width)
                } else {
                    (size * width / height, size)
                }
            }
        }
    }
}

/// Whether a path is a file with a picture in it, decodable or not: told by its ending or by how it
/// begins.
pub fn is_picture(path: &Path) -> bool {
    let Ok(file) = files::open(path) else {
        return false;
    };
    let ending = path.extension().and_then(ImageFormat::from_extension);
    let mut start = Vec::new();
    let read = file.take(PICTURE_START).read_to_end(&mut start);
    ending.is_some() || (read.is_ok() && decode::begins_as_picture(&start))
}

/// One dimension: the centred part of `input` pixels, and how many zeros stand before it.
fn axis(kernel: Kernel, length: u32, canvas: u32, resized: u64, input: u32) -> (Axis, u32) {
    let (start, len, before) = if resized >= u64::from(input) {
        ((resized - u64::from(input)) / 2, input, 0)
    } else {
        // Below `input`, so it fits u32.
        let len = resized as u32;
        (0, len, (input - len).div_ceil(2))
    };
    let offset = (canvas - length) / 2;
    let axis = Axis {
        kernel,
        canvas,
        offset,
        resized,
        start,
        len,
    };
    (axis, before)
}

#[cfg(test)]
mod tests;
