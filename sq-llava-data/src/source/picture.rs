//! A picture before it is decoded: a file, or bytes out of a shard.

use std::path::PathBuf;

use bytes::Bytes;

use crate::DataError;
use crate::image::{ImageFacts, ImageProcessor, RgbImage};

/// A picture of a sample, before it is decoded.
#[derive(Debug, Clone)]
pub enum Picture {
    /// A file.
    File(PathBuf),
    /// Bytes out of a shard.
    Inside {
        /// Shard, row and the picture's own name, for messages.
        name: String,
        /// The bytes of a picture's file.
        bytes: Bytes,
    },
}

impl Picture {
    /// What it is called in messages.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inside { name, .. } => name.clone(),
        }
    }

    /// Decodes it.
    ///
    /// # Errors
    /// As [`ImageProcessor::open`].
    pub fn open(&self, processor: &ImageProcessor) -> Result<RgbImage, DataError> {
        match self {
            Self::File(path) => processor.open(path),
            Self::Inside { name, bytes } => processor.decode(bytes, name),
        }
    }

    /// `(height, width)` in pixels, mostly from its first bytes.
    ///
    /// # Errors
    /// As [`ImageProcessor::size`].
    pub fn size(&self, processor: &ImageProcessor) -> Result<(u32, u32), DataError> {
        match self {
            Self::File(path) => processor.size(path),
            Self::Inside { name, bytes } => processor.size_of(bytes, name),
        }
    }

    /// Decodes it whole, only to see what it is.
    ///
    /// # Errors
    /// As [`ImageProcessor::inspect`].
    pub fn inspect(&self, processor: &ImageProcessor) -> Result<ImageFacts, DataError> {
        match self {
            Self::File(path) => processor.inspect(path),
            Self::Inside { name, bytes } => processor.inspect_bytes(bytes, name),
        }
    }
}
