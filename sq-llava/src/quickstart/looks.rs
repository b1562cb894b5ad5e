//! Where each prototype looks.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use burn::tensor::backend::Backend;
use sq_llava_model::Assistant;

/// What prototypes look at in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Looks {
    /// File of the picture inside the image folder.
    pub image: String,
    /// Patches of a row, and of a column.
    pub side: usize,
    /// For each prototype, how much it has of each patch, row by row.
    pub prototypes: Vec<Vec<f32>>,
}

/// The soft assignments of some pictures' patches to prototypes; none of a model without.
///
/// # Errors
/// If a picture cannot be read.
pub fn looks<B: Backend>(
    assistant: &Assistant<B>,
    images: &Path,
    names: impl Iterator<Item = String>,
) -> Result<Vec<Looks>> {
    let mut found = Vec::new();
    for image in names {
        let picture = assistant.open_image(&images.join(&image))?;
        let model = &assistant.model;
        let features = model.vision_features(model.prepared_pixels(&[&picture])?)?;
        let (_, Some(assignment)) = model.project_assigned(features) else {
            break;
        };
        let [_, _, patches] = assignment.dims();
        let side = patches.isqrt();
        let weights: Vec<f32> = assignment.into_data().iter::<f32>().collect();
        found.push(Looks {
            image,
            side,
            prototypes: weights.chunks(patches).map(<[f32]>::to_vec).collect(),
        });
    }
    Ok(found)
}

impl Looks {
    /// The picture once for each prototype, dark where that does not look; `picture` is its address.
    pub fn html(&self, number: usize, picture: &str) -> String {
        let side = self.side;
        let mut row = format!(
            "<div class=\"looks\"><svg width=\"0\" height=\"0\" style=\"display:none\"><defs>\
             <image id=\"scene-{number}\" href=\"{picture}\" width=\"{side}\" height=\"{side}\"/>\
             </defs></svg><figure><img alt=\"\" src=\"{picture}\">picture</figure>"
        );
        for (prototype, weights) in (1..).zip(&self.prototypes) {
            let most = weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
            let _ = write!(
                row,
                "<figure><svg viewBox=\"0 0 {side} {side}\"><use href=\"#scene-{number}\"/>"
            );
            for (place, weight) in weights.iter().enumerate() {
                let (x, y, dark) = (place % side, place / side, 0.85 * (1.0 - weight / most));
                // Writing to a string cannot fail.
                let _ = write!(
                    row,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"1\" height=\"1\" fill-opacity=\"{dark:.2}\"/>"
                );
            }
            let _ = write!(row, "</svg>{prototype}</figure>");
        }
        row + "</div>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prototype_s_picture_is_bright_where_it_looks() {
        let looks = Looks {
            image: "a.png".into(),
            side: 2,
            prototypes: vec![vec![0.5, 0.0, 0.1, 0.5], vec![0.0; 4]],
        };
        let html = looks.html(7, "data:x");
        assert_eq!(html.matches("<use href=\"#scene-7\"/>").count(), 2);
        let first = html.split("<use").nth(1).unwrap();
        for (x, y, dark) in [
            (0, 0, "0.00"),
            (1, 0, "0.85"),
            (0, 1, "0.68"),
            (1, 1, "0.00"),
        ] {
            let rect =
                format!("x=\"{x}\" y=\"{y}\" width=\"1\" height=\"1\" fill-opacity=\"{dark}\"");
            assert!(first.contains(&rect), "{rect}: {first}");
        }
        // One that looks nowhere is dark everywhere.
        let second = html.split("<use").nth(2).unwrap();
        assert_eq!(second.matches("0.85").count(), 4);
    }
}
