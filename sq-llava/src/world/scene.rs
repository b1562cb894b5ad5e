//! What there is to see.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Color, Place, Shape, Size};

/// Most things in a scene.
pub const MOST_THINGS: usize = 3;

/// One thing. Lengths are in parts of the picture's side.
#[derive(Debug, Clone, PartialEq)]
pub struct Thing {
    /// What it is.
    pub shape: Shape,
    /// Its colour.
    pub color: Color,
    /// Its size.
    pub size: Size,
    /// Its cell.
    pub place: Place,
    /// Centre from the left.
    pub x: f32,
    /// Centre from the top.
    pub y: f32,
    /// Half of its height or so.
    pub radius: f32,
}

/// A picture's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Grey of the background.
    pub tone: u8,
    /// Its things in reading order of their cells; no two are alike in both shape and colour, so
    /// that "the red circle" names one.
    pub things: Vec<Thing>,
}

/// Random numbers that depend on a seed, a stream and a number alone.
pub fn rng(seed: u64, stream: u64, number: u64) -> ChaCha8Rng {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&stream.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    ChaCha8Rng::from_seed(bytes)
}

impl Scene {
    /// The scene of a number: one to three things.
    pub fn draw(seed: u64, number: u64) -> Self {
        let mut rng = rng(seed, 0, number);
        let count = rng.random_range(1..=MOST_THINGS);
        Self::with_things(count, &mut rng)
    }

    /// A scene of so many things.
    pub fn with_things(count: usize, rng: &mut ChaCha8Rng) -> Self {
        let places = some_of(Place::ALL, count, rng);
        let mut kinds: Vec<(Shape, Color)> = Vec::new();
        while kinds.len() < count {
            let kind = (one_of(Shape::ALL, rng), one_of(Color::ALL, rng));
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        Self::of(places, kinds, rng)
    }

    /// A scene whose things a single word tells apart: their shapes, with colours of any kind or
    /// all of one, or their colours, all of one shape.
    pub fn told_by_a_word(rng: &mut ChaCha8Rng) -> Self {
        let by_shape = rng.random_range(0..3) != 0;
        let most = if by_shape {
            Shape::ALL.len()
        } else {
            Color::ALL.len()
        };
        let count = rng.random_range(2..=most);
        let places = some_of(Place::ALL, count, rng);
        let kinds = if by_shape {
            let one = rng.random::<bool>().then(|| one_of(Color::ALL, rng));
            let shapes = some_of(Shape::ALL, count, rng).into_iter();
            let kinds = shapes.map(|shape| (shape, one.unwrap_or_else(|| one_of(Color::ALL, rng))));
            kinds.collect()
        } else {
            let shape = one_of(Shape::ALL, rng);
            let colors = some_of(Color::ALL, count, rng).into_iter();
            colors.map(|color| (shape, color)).collect()
        };
        Self::of(places, kinds, rng)
    }

    /// Things of these shapes and colours at these places.
    fn of(mut places: Vec<Place>, kinds: Vec<(Shape, Color)>, rng: &mut ChaCha8Rng) -> Self {
        places.sort_unstable();
        let things = places.into_iter().zip(kinds);
        let things = things.map(|(place, (shape, color))| {
            let size = one_of(Size::ALL, rng);
            let (radius, play) = match size {
                Size::Big => (0.145, 0.015),
                Size::Small => (0.085, 0.05),
            };
            let (row, column) = place.cell();
            let mut at =
                |cell: usize| (cell as f32 + 0.5) / 3.0 + rng.random_range(-1.0f32..1.0) * play;
            Thing {
                shape,
                color,
                size,
                place,
                x: at(column),
                y: at(row),
                radius,
            }
        });
        let things = things.collect();
        Self {
            tone: rng.random_range(205..=250),
            things,
        }
    }

    /// The things that fit what is given of shape, colour and place.
    pub fn find(
        &self,
        shape: Option<Shape>,
        color: Option<Color>,
        place: Option<Place>,
    ) -> Vec<&Thing> {
        let fits = |thing: &&Thing| {
            shape.is_none_or(|s| s == thing.shape)
                && color.is_none_or(|c| c == thing.color)
                && place.is_none_or(|p| p == thing.place)
        };
        self.things.iter().filter(fits).collect()
    }
}

/// So many different ones of a list that is as long or longer, in any order.
fn some_of<T: Copy>(list: &[T], count: usize, rng: &mut ChaCha8Rng) -> Vec<T> {
    let mut all = list.to_vec();
    all.shuffle(rng);
    all.truncate(count);
    all
}

/// One of a list that is not empty.
pub(super) fn one_of<T: Copy>(list: &[T], rng: &mut ChaCha8Rng) -> T {
    // The world's lists of words have members.
    *list.choose(rng).expect("a list of words is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_gives_one_scene_and_others_differ() {
        let scenes: Vec<Scene> = (0..50).map(|n| Scene::draw(3, n)).collect();
        for (number, scene) in scenes.iter().enumerate() {
            assert_eq!(*scene, Scene::draw(3, number as u64));
            assert!((1..=MOST_THINGS).contains(&scene.things.len()));
            let others = scenes.iter().filter(|other| *other == scene);
            assert_eq!(others.count(), 1);
        }
        assert_ne!(Scene::draw(4, 0), scenes[0]);
    }

    #[test]
    fn things_stay_in_their_cells_and_no_two_are_alike() {
        for number in 0..200 {
            let scene = Scene::draw(0, number);
            for thing in &scene.things {
                let (row, column) = thing.place.cell();
                let inside = |centre: f32, cell: usize| {
                    let low = cell as f32 / 3.0;
                    centre - thing.radius >= low && centre + thing.radius <= low + 1.0 / 3.0
                };
                assert!(inside(thing.x, column) && inside(thing.y, row), "{thing:?}");
                let alike = scene.find(Some(thing.shape), Some(thing.color), None);
                assert_eq!(alike.len(), 1);
            }
            assert!(scene.things.is_sorted_by_key(|thing| thing.place));
        }
    }
}
