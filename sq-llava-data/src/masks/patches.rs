//! From labels of pixels to labels of the tower's patches.

use super::LabelMap;
use crate::image::SourcePixels;

/// The patches of a tile, and which of them become features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchGrid {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Patches in a row, and rows.
    pub patches: usize,
    /// Whether the tower's class token stands before them.
    pub class_token: bool,
    /// Whether the tower's first token is no feature.
    pub first_dropped: bool,
}

impl PatchGrid {
    /// The labels of a tile's features, 0 for none. A patch has the label that covers more than half
    /// of it; what is no mask, padding too, counts as a label.
    pub fn labels(&self, tile: &SourcePixels, map: &LabelMap) -> Vec<u16> {
        let class = self.class_token.then_some(0);
        let patches = (0..self.patches * self.patches).map(|patch| {
            let (row, column) = (patch / self.patches, patch % self.patches);
            self.label(row, column, tile, map)
        });
        let tokens = class.into_iter().chain(patches);
        tokens.skip(usize::from(self.first_dropped)).collect()
    }

    fn label(&self, row: usize, column: usize, tile: &SourcePixels, map: &LabelMap) -> u16 {
        let span = |sources: &'_ [Option<u32>], at: usize| {
            let start = (at * self.patch_size).min(sources.len());
            let end = (start + self.patch_size).min(sources.len());
            start..end
        };
        let rows = &tile.rows[span(&tile.rows, row)];
        let columns = &tile.columns[span(&tile.columns, column)];
        let pixel = |row: &Option<u32>, column: &Option<u32>| match (row, column) {
            (Some(row), Some(column)) => map.at(*row, *column),
            _ => 0,
        };
        let mut labels: Vec<u16> = rows
            .iter()
            .flat_map(|row| columns.iter().map(move |column| pixel(row, column)))
            .collect();
        // What has more than half stands in the middle.
        labels.sort_unstable();
        let Some(&label) = labels.get(labels.len() / 2) else {
            return 0;
        };
        let covered = labels.iter().filter(|&&other| other == label).count();
        match 2 * covered > labels.len() {
            true => label,
            false => 0,
        }
    }
}
