//! Keys of pictures of any shape in `mmproj` files.

/// How pictures become square, or `anyres`.
pub(super) const ASPECT: &str = "clip.vision.image_aspect_ratio";
/// Resolutions, width and height by turns. llama.cpp lays pictures over tiles where they are there.
pub(super) const PINPOINTS: &str = "clip.vision.image_grid_pinpoints";
/// How tiles are joined; `flat` where it is not said.
pub(super) const MERGE: &str = "clip.vision.mm_patch_merge_type";
