//! Labels of picture tokens from masks beside the pictures.

use sq_llava_data::image::ImageTiles;
use sq_llava_data::masks::{MaskFolder, PatchGrid};

use crate::data::batch::{Picture, TrainSample};
use crate::data::dataset::{StageData, is_blank, pictures_of};
use crate::error::TrainError;

/// The masks of a stage's pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageMasks {
    /// Where they are.
    pub folder: MaskFolder,
    /// The patches that they are brought to.
    pub grid: PatchGrid,
}

/// How many pictures have masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaskedPictures {
    /// Pictures that were looked at, as often as samples name them.
    pub pictures: usize,
    /// Those of them with a file of masks.
    pub masked: usize,
    /// Whether these are the pictures of all samples.
    pub exact: bool,
}

impl StageData {
    /// How many pictures of a sample have masks that are learnt from. Their files are looked for,
    /// not read. A sample of whose text nothing is learnt has none.
    ///
    /// # Errors
    /// If a picture has two files of masks, or a name by which none can be found.
    pub(crate) fn masked_pictures(&self, sample: &TrainSample) -> Result<usize, TrainError> {
        let Some(masks) = self.masks.as_ref().filter(|_| sample.learnable() > 0) else {
            return Ok(0);
        };
        let mut masked = 0;
        for picture in sample.pictures.iter().filter(|picture| is_shown(picture)) {
            masked += usize::from(masks.folder.find(&picture.name)?.is_some());
        }
        Ok(masked)
    }

    /// Reads the masks of the pictures of a sample, of which those in `opened` are decoded.
    ///
    /// # Errors
    /// As [`Self::masked_pictures`], and if masks are damaged or not of their picture's size.
    pub(crate) fn label_pictures(
        &self,
        index: usize,
        sample: &mut TrainSample,
        opened: &[Option<ImageTiles>],
    ) -> Result<(), TrainError> {
        let Some(masks) = self.masks.as_ref().filter(|_| sample.learnable() > 0) else {
            return Ok(());
        };
        for (place, picture) in sample.pictures.iter_mut().enumerate() {
            if !is_shown(picture) {
                continue;
            }
            let Some(path) = masks.folder.find(&picture.name)? else {
                continue;
            };
            let size = match opened.get(place) {
                Some(Some(tiles)) => tiles.image_size,
                // Its features are known: the file begins with its size.
                _ => {
                    let file = self.data.picture(index, place, &picture.name)?;
                    file.size(&self.processor)?
                }
            };
            let map = MaskFolder::read(&path, size)?;
            let tiles = self.processor.sources(size, pictures_of(&picture.packing));
            let labels = tiles.iter().flat_map(|tile| masks.grid.labels(tile, &map));
            picture.labels = Some(labels.collect());
        }
        Ok(())
    }

    /// How many pictures have masks, from at most `limit` samples spread over the data.
    ///
    /// # Errors
    /// As [`Self::masked_pictures`], or if a sample cannot be read.
    pub(crate) fn count_masks(
        &self,
        masks: &StageMasks,
        limit: usize,
    ) -> Result<MaskedPictures, TrainError> {
        let total = self.data.len();
        let stride = total.div_ceil(limit.max(1)).max(1);
        let mut found = MaskedPictures {
            pictures: 0,
            masked: 0,
            exact: stride == 1,
        };
        for index in (0..total).step_by(stride) {
            let sample = match self.data.get(index) {
                // The loader says what becomes of it.
                Err(error) if error.is_damage() => continue,
                sample => sample?,
            };
            found.pictures += sample.images.len();
            for name in &sample.images {
                found.masked += usize::from(masks.folder.find(name)?.is_some());
            }
        }
        Ok(found)
    }
}

/// Whether it is more than a blank in place of a picture that cannot be used.
fn is_shown(picture: &Picture) -> bool {
    !is_blank(&picture.key)
}
