//! The tokens of a picture of any shape: features of its tiles, joined as its packing says.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use sq_llava_data::image::{Gather, ImagePacking};

use crate::error::ModelError;
use crate::ops::cat::cat;

/// Joins the projected features of a picture's tiles, the whole picture first.
/// `[tiles, features, hidden]` → `[tokens, hidden]`; `newline` is `image_newline`, `[hidden]`.
///
/// # Errors
/// If the packing has another number of tiles, needs an `image_newline` that is not there, or a
/// tile's features do not make a square.
pub fn pack<B: Backend>(
    projected: Tensor<B, 3>,
    newline: Option<Tensor<B, 1>>,
    packing: &ImagePacking,
) -> Result<Tensor<B, 2>, ModelError> {
    let [tiles, features, hidden] = projected.dims();
    if tiles != packing.tiles() {
        return Err(ModelError::Argument(format!(
            "a picture of {} tiles has the features of {tiles}",
            packing.tiles()
        )));
    }
    let all = projected.reshape([tiles * features, hidden]);
    if let ImagePacking::One { newline: false } = packing {
        return Ok(all);
    }
    let all = match (newline, packing.has_newlines()) {
        (_, false) => all,
        (Some(newline), true) => {
            let newline = newline.cast(all.dtype()).unsqueeze::<2>();
            cat(vec![all, newline], 0)
        }
        (None, true) => {
            return Err(ModelError::Argument(
                "pictures of any shape need the model's image_newline, which is not there".into(),
            ));
        }
    };
    let gathers = packing.plan(features)?.gathers();
    let parts = gathers.into_iter().map(|gather| taken(all.clone(), gather));
    // A plan has at least one part.
    let sum = parts.reduce(|sum, part| sum + part);
    Ok(sum.unwrap_or(all))
}

/// Rows by number, each times its weight. `[rows, hidden]` → `[tokens, hidden]`
fn taken<B: Backend>(all: Tensor<B, 2>, gather: Gather) -> Tensor<B, 2> {
    let (device, dtype) = (all.device(), all.dtype());
    let rows: Vec<i64> = gather.rows.into_iter().map(i64::from).collect();
    let rows = Tensor::<B, 1, Int>::from_data(TensorData::from(&rows[..]), &device);
    let taken = all.select(0, rows);
    let Some(weights) = gather.weights else {
        return taken;
    };
    let weights = TensorData::new(weights.clone(), [weights.len(), 1]);
    taken * Tensor::<B, 2>::from_data(weights, (&device, dtype))
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use sq_llava_data::image::{AnyResolution, PatchMerge};

    use super::*;

    /// Feature `i` of tile `t` is `10 t + i`.
    fn numbered(tiles: usize, features: usize) -> Tensor<Flex, 3> {
        let value = |i: usize| (10 * (i / features) + i % features) as f32;
        let values: Vec<f32> = (0..tiles * features).map(value).collect();
        let data = TensorData::new(values, [tiles, features, 1]);
        Tensor::from_data(data, &Default::default())
    }

    fn grid(image_size: (u32, u32), max_tiles: Option<u32>, merge: PatchMerge) -> ImagePacking {
        let anyres = AnyResolution {
            merge,
            ..AnyResolution::published(8, max_tiles)
        };
        ImagePacking::Grid {
            grid: anyres.grid(image_size, 8),
            max_tiles,
            merge,
        }
    }

    fn packed(packing: &ImagePacking) -> Vec<f32> {
        let newline = Tensor::from_floats([-1.0], &Default::default());
        let found = pack(numbered(packing.tiles(), 4), Some(newline), packing);
        found.unwrap().into_data().to_vec().unwrap()
    }

    #[test]
    fn rows_of_the_joined_map_end_with_a_newline() {
        let wide = grid((8, 16), None, PatchMerge::SpatialUnpad);
        let whole = [0.0, 1.0, 2.0, 3.0];
        let rows = [10.0, 11.0, 20.0, 21.0, -1.0, 12.0, 13.0, 22.0, 23.0, -1.0];
        assert_eq!(packed(&wide), [&whole[..], &rows[..]].concat());
        let flat = grid((8, 16), None, PatchMerge::Flat);
        let tiles = [10.0, 11.0, 12.0, 13.0, 20.0, 21.0, 22.0, 23.0];
        assert_eq!(packed(&flat), [&whole[..], &tiles[..]].concat());
        assert_eq!(
            packed(&ImagePacking::One { newline: true }),
            [&whole[..], &[-1.0][..]].concat()
        );
    }

    #[test]
    fn a_large_map_is_reduced() {
        // 2 × 4 features to one tile's 2 × 2: of 1.41 times the sides.
        let wide = grid((8, 16), Some(1), PatchMerge::SpatialUnpad);
        let found = packed(&wide);
        // torch 2.9: interpolate([[10, 11, 20, 21], [12, 13, 22, 23]], [1, 2], bilinear).
        assert_eq!(found[4..], [11.5, 21.5, -1.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let wide = grid((8, 16), None, PatchMerge::SpatialUnpad);
        let error = pack(numbered(3, 4), None, &wide).unwrap_err().to_string();
        assert!(error.contains("image_newline"), "{error}");
        let newline = Tensor::from_floats([-1.0], &Default::default());
        let error = pack(numbered(2, 4), Some(newline), &wide).unwrap_err();
        assert!(error.to_string().contains("tiles"), "{error}");
    }
}
