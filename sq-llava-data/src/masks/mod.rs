//! Masks beside pictures: which region of a picture each pixel belongs to, by any segmenter.
//!
//! The picture `a/b.jpg` has its masks in `a/b.png`, a label map (`label_map.rs`), or in
//! `a/b.json`, COCO's annotations (`coco.rs`), below a folder of masks. They follow the picture
//! through its resize, crop, padding and tiles to labels of the tower's patches (`patches.rs`).

mod coco;
mod label_map;
mod patches;
mod runs;

use std::path::{Component, Path, PathBuf};

use crate::DataError;
use crate::foreign::guarded;
use crate::image::ImageFormat;

pub use patches::PatchGrid;

/// Which mask each pixel of a picture belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    width: usize,
    /// Row by row; 0 is no mask.
    labels: Vec<u16>,
}

impl LabelMap {
    /// A map of no masks.
    fn empty((height, width): (u32, u32)) -> Self {
        let (height, width) = (height as usize, width as usize);
        Self {
            width,
            labels: vec![0; height * width],
        }
    }

    /// The mask of a pixel, 0 for none. The pixel must be one of the picture's.
    pub fn at(&self, row: u32, column: u32) -> u16 {
        self.labels[row as usize * self.width + column as usize]
    }

    /// How many masks have a pixel.
    pub fn masks(&self) -> usize {
        let mut seen: Vec<u16> = self.labels.clone();
        seen.sort_unstable();
        seen.dedup();
        seen.iter().filter(|&&label| label != 0).count()
    }
}

/// A folder of masks, whose files are named as the pictures are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskFolder(PathBuf);

impl MaskFolder {
    /// A folder of masks.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, DataError> {
        let folder = folder.into();
        if folder.is_dir() {
            return Ok(Self(folder));
        }
        let reason = if folder.is_file() {
            "it is a file; the masks of each picture are a file of their own, in a folder"
        } else {
            "there is no such folder"
        };
        Err(fault(&folder, reason))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The masks of a picture, by its name in the data; `None` if it has none. Nothing is read.
    ///
    /// # Errors
    /// If the name leads out of the folder, or the picture has a label map and annotations too.
    pub fn find(&self, picture: &str) -> Result<Option<PathBuf>, DataError> {
        let name = Path::new(picture);
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !name.components().all(inside) {
            return Err(fault(
                &self.0,
                format!(
                    "the masks of {picture} cannot be found by such a path: name pictures from \
                     their folder on"
                ),
            ));
        }
        let [map, annotations] = ["png", "json"].map(|ending| self.0.join(with(name, ending)));
        match (map.is_file(), annotations.is_file()) {
            (false, false) => Ok(None),
            (true, false) => Ok(Some(map)),
            (false, true) => Ok(Some(annotations)),
            (true, true) => Err(fault(
                &map,
                format!("{} is there too: keep one of them", annotations.display()),
            )),
        }
    }

    /// Reads the masks of a picture of `size` (height, width) pixels.
    ///
    /// # Errors
    /// [`DataError::Mask`] if the file is damaged, of another size than the picture, or holds what is
    /// not understood.
    pub fn read(path: &Path, size: (u32, u32)) -> Result<LabelMap, DataError> {
        let bytes = crate::files::read(path)?;
        let is_map = path.extension().is_some_and(|ending| ending == "png");
        let read = || match is_map {
            true => label_map::read(&bytes, size),
            false => coco::read(&bytes, size),
        };
        let read = guarded(read).unwrap_or_else(Err);
        read.map_err(|reason| fault(path, reason))
    }
}

fn fault(path: &Path, reason: impl Into<String>) -> DataError {
    DataError::Mask {
        path: path.to_path_buf(),
        reason: reason.into(),
    }
}

/// The name with another ending in place of a picture's; behind a name without one.
fn with(name: &Path, ending: &str) -> PathBuf {
    let known = name.extension().and_then(ImageFormat::from_extension);
    match known {
        Some(_) => name.with_extension(ending),
        None => {
            let mut name = name.as_os_str().to_owned();
            name.push(".");
            name.push(ending);
            name.into()
        }
    }
}
