use super::*;
use crate::image::AnyResolution;

fn packing(resolution: (u32, u32), image: (u32, u32), max_tiles: Option<u32>) -> ImagePacking {
    let anyres = AnyResolution {
        pinpoints: vec![resolution],
        max_tiles,
        merge: PatchMerge::SpatialUnpad,
    };
    ImagePacking::Grid {
        grid: anyres.grid(image, 2),
        max_tiles,
        merge: anyres.merge,
    }
}

fn rows(plan: &PackingPlan) -> Vec<u32> {
    let gathers = plan.gathers();
    assert_eq!((gathers.len(), &gathers[0].weights), (1, &None));
    gathers[0].rows.clone()
}

#[test]
fn rows_of_the_joined_map_end_in_newlines() {
    // One row of two tiles with 2 × 2 features each; the newline is row 12.
    let plan = packing((2, 4), (20, 40), None).plan(4).unwrap();
    assert_eq!(plan.features, 12);
    let map = [4, 5, 8, 9, 12, 6, 7, 10, 11, 12];
    assert_eq!(rows(&plan), [&[0, 1, 2, 3], &map[..]].concat());
}

#[test]
fn padding_is_cut_off_on_both_sides() {
    // A square on two tiles: of four columns the middle two.
    let packing = packing((2, 4), (30, 30), None);
    let plan = packing.plan(4).unwrap();
    assert_eq!(rows(&plan)[4..], [5, 8, 12, 7, 10, 12]);
    assert_eq!(packing.tokens(4).unwrap(), plan.tokens.len());
}

#[test]
fn merges_of_the_original() {
    let mut packing = packing((2, 4), (30, 30), None);
    let mut with = |wanted: PatchMerge| {
        if let ImagePacking::Grid { merge, .. } = &mut packing {
            *merge = wanted;
        }
        let plan = packing.plan(4).unwrap();
        assert_eq!(packing.tokens(4).unwrap(), plan.tokens.len());
        rows(&plan)
    };
    assert_eq!(with(PatchMerge::Flat), (0..12).collect::<Vec<_>>());
    assert_eq!(with(PatchMerge::Spatial)[4..], [4, 5, 8, 9, 6, 7, 10, 11]);
}

#[test]
fn one_tile_may_have_a_newline_behind_it() {
    let rows_of = |newline| rows(&ImagePacking::One { newline }.plan(3).unwrap());
    assert_eq!(rows_of(false), [0, 1, 2]);
    assert_eq!(rows_of(true), [0, 1, 2, 3]);
    let one = ImagePacking::One { newline: true };
    assert_eq!((one.tiles(), one.tokens(3).unwrap()), (1, 4));
}

#[test]
fn a_large_map_is_reduced_as_pytorch_interpolates() {
    // PyTorch 2.15: interpolate(arange(24).view(1, 1, 4, 6), [2, 3], mode="bilinear").
    // 4 × 6 features for one tile of 2 × 2: ratio √3.
    let packing = packing((4, 6), (40, 60), Some(2));
    let plan = packing.plan(4).unwrap();
    let ImagePacking::Grid { grid, .. } = packing else {
        panic!("a grid")
    };
    assert_eq!(grid.kept(2).reduced(2, 2), Some((2, 3)));
    assert_eq!(plan.tokens.len(), 4 + 2 * (3 + 1));
    // Feature i of the map has the value i.
    let mut values = vec![0.0; plan.features + 1];
    let map = Map {
        grid: &grid,
        side: 2,
    };
    for row in 0..4 {
        for column in 0..6 {
            values[map.feature(row, column) as usize] = (row * 6 + column) as f32;
        }
    }
    values[plan.features] = -1.0;
    let mut found = vec![0.0; plan.tokens.len()];
    let gathers = plan.gathers();
    assert_eq!(gathers.len(), 4);
    for gather in gathers {
        let weights = gather.weights.expect("weights");
        for ((sum, row), weight) in found.iter_mut().zip(gather.rows).zip(weights) {
            *sum += values[row as usize] * weight;
        }
    }
    assert_eq!(found[4..], [3.5, 5.5, 7.5, -1.0, 15.5, 17.5, 19.5, -1.0]);
}

#[test]
fn a_class_token_has_no_place_in_a_grid() {
    let error = packing((2, 4), (30, 30), None).plan(5).unwrap_err();
    assert!(error.to_string().contains("5 features"), "{error}");
}

#[test]
fn between_two_values_as_pytorch() {
    // PyTorch 2.15: interpolate(tensor([0, 1, 2, 3, 4]), 3, mode="linear") = 1/3, 2, 11/3.
    let at = |i| {
        let [(a, v), (b, w)] = neighbours(i, 5, 3);
        a as f32 * v + b as f32 * w
    };
    for (i, wanted) in [(0, 1.0 / 3.0), (1, 2.0), (2, 11.0 / 3.0)] {
        assert!((at(i) - wanted).abs() < 1e-6, "{i}");
    }
    // Enlarged, the ends stay: 0, 0.4, 1.0 ... at the first and the last.
    assert_eq!(neighbours(0, 2, 5)[0], (0, 1.0));
    assert_eq!(neighbours(4, 2, 5)[0].0, 1);
}
