//! From a scene to pixels.

use image::{GrayImage, Luma, Rgb, RgbImage};

use super::{Scene, Shape, Thing};

/// Side of the pictures that are written.
pub const SIDE: u32 = 144;

/// Samples a pixel and direction: edges are smooth.
const SAMPLES: u32 = 3;

/// The picture of a scene, `side` × `side`.
pub fn render(scene: &Scene, side: u32) -> RgbImage {
    let background = Rgb([scene.tone; 3]);
    let mut picture = RgbImage::from_pixel(side, side, background);
    for thing in &scene.things {
        paint(thing, &mut picture);
    }
    picture
}

/// The masks of a scene's picture: 1 for the pixels of its first thing, 2 for those of the second …,
/// 0 for the background. A pixel is a thing's if that covers more than half of it.
pub fn masks(scene: &Scene, side: u32) -> GrayImage {
    let mut masks = GrayImage::new(side, side);
    for (label, thing) in (1u8..).zip(&scene.things) {
        for_each_pixel(thing, side, |x, y, part| {
            if part > 0.5 {
                masks.put_pixel(x, y, Luma([label]));
            }
        });
    }
    masks
}

fn paint(thing: &Thing, picture: &mut RgbImage) {
    let color = thing.color.rgb();
    for_each_pixel(thing, picture.width(), |x, y, part| {
        let pixel = picture.get_pixel_mut(x, y);
        for (old, new) in pixel.0.iter_mut().zip(color) {
            *old = (f32::from(*old) * (1.0 - part) + f32::from(new) * part).round() as u8;
        }
    });
}

/// Calls `each` with the pixels around a thing, and which part of each it covers.
fn for_each_pixel(thing: &Thing, side: u32, mut each: impl FnMut(u32, u32, f32)) {
    let scale = side as f32;
    let range = |centre: f32| {
        let low = ((centre - thing.radius) * scale).floor().max(0.0) as u32;
        let high = ((centre + thing.radius) * scale).ceil() as u32;
        low..high.min(side)
    };
    for y in range(thing.y) {
        for x in range(thing.x) {
            each(x, y, coverage(thing, x, y, scale));
        }
    }
}

/// Part of a pixel that the thing covers.
fn coverage(thing: &Thing, x: u32, y: u32, scale: f32) -> f32 {
    let mut inside = 0u32;
    for sy in 0..SAMPLES {
        for sx in 0..SAMPLES {
            let at = |pixel: u32, sample: u32, centre: f32| {
                let place = pixel as f32 + (sample as f32 + 0.5) / SAMPLES as f32;
                (place / scale - centre) / thing.radius
            };
            inside += u32::from(covers(thing.shape, at(x, sx, thing.x), at(y, sy, thing.y)));
        }
    }
    inside as f32 / (SAMPLES * SAMPLES) as f32
}

/// Whether a shape of radius 1 around the origin holds a point; `y` points down.
fn covers(shape: Shape, x: f32, y: f32) -> bool {
    match shape {
        Shape::Circle => x * x + y * y <= 1.0,
        Shape::Square => x.abs() <= 0.85 && y.abs() <= 0.85,
        // Apex at −1, base at 0.75; the origin is inside.
        Shape::Triangle => y <= 0.75 && x.abs() <= (y + 1.0) * 0.55,
        Shape::Cross => x.abs().min(y.abs()) <= 0.3 && x.abs().max(y.abs()) <= 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Color, Size};

    fn nearest(pixel: &Rgb<u8>) -> Color {
        let distance = |color: &Color| {
            let parts = color.rgb().into_iter().zip(pixel.0);
            parts
                .map(|(a, b)| i32::from(a.abs_diff(b)).pow(2))
                .sum::<i32>()
        };
        *Color::ALL.iter().min_by_key(|c| distance(c)).unwrap()
    }

    fn is_colored(pixel: &Rgb<u8>) -> bool {
        let [r, g, b] = pixel.0;
        r.max(g).max(b) - r.min(g).min(b) > 60
    }

    #[test]
    fn the_pixels_show_what_the_scene_says() {
        for number in 0..100 {
            let scene = Scene::draw(11, number);
            let picture = render(&scene, SIDE);
            for thing in &scene.things {
                let at = |v: f32| (v * SIDE as f32) as u32;
                let centre = picture.get_pixel(at(thing.x), at(thing.y));
                assert_eq!(nearest(centre), thing.color, "scene {number}: {thing:?}");
            }
            // A cell has coloured pixels exactly if a thing stands there.
            let cell = SIDE / 3;
            let occupied = (0..9u32).filter(|i| {
                let (left, top) = (i % 3 * cell, i / 3 * cell);
                let mut places = (0..cell * cell).map(|p| (left + p % cell, top + p / cell));
                places.any(|(x, y)| is_colored(picture.get_pixel(x, y)))
            });
            let cells: Vec<u32> = occupied.collect();
            let said: Vec<u32> = scene
                .things
                .iter()
                .map(|t| t.place.index() as u32)
                .collect();
            assert_eq!(cells, said, "scene {number}");
        }
    }

    #[test]
    fn masks_cover_what_is_painted() {
        for number in 0..50 {
            let scene = Scene::draw(5, number);
            let (picture, masks) = (render(&scene, SIDE), masks(&scene, SIDE));
            let mut seen = vec![0; scene.things.len() + 1];
            for (x, y, label) in masks.enumerate_pixels() {
                seen[usize::from(label.0[0])] += 1;
                let pixel = picture.get_pixel(x, y);
                match scene.things.get(usize::from(label.0[0]).wrapping_sub(1)) {
                    // Half of a colour may be nearer to another.
                    Some(thing) if is_colored(pixel) => {
                        let [r, g, b] = thing.color.rgb();
                        let near = |a: u8, b: u8| i32::from(a.abs_diff(b)) < 128;
                        let [x, y, z] = pixel.0;
                        assert!(near(r, x) && near(g, y) && near(b, z), "scene {number}");
                    }
                    Some(_) => {}
                    // At most half of another colour.
                    None => assert!(
                        pixel.0.iter().all(|&v| v > 100),
                        "scene {number}: {pixel:?}"
                    ),
                }
            }
            assert!(seen[1..].iter().all(|&pixels| pixels > 80), "{seen:?}");
        }
    }

    #[test]
    fn shapes_and_sizes_look_different() {
        let area = |shape, size| {
            let mut scene = Scene::draw(0, 0);
            scene.things.truncate(1);
            let thing = &mut scene.things[0];
            (thing.shape, thing.size) = (shape, size);
            thing.radius = if size == Size::Big { 0.145 } else { 0.085 };
            render(&scene, SIDE)
                .pixels()
                .filter(|p| is_colored(p))
                .count()
        };
        for &size in Size::ALL {
            let mut areas: Vec<usize> = Shape::ALL.iter().map(|&s| area(s, size)).collect();
            areas.sort_unstable();
            areas.dedup();
            assert_eq!(areas.len(), Shape::ALL.len());
        }
        for &shape in Shape::ALL {
            assert!(area(shape, Size::Big) > 2 * area(shape, Size::Small));
        }
    }
}
