//! COCO's annotations of one picture: polygons, run lengths, and run lengths packed by pycocotools.

use serde_json::Value;

use super::LabelMap;
use super::runs::Runs;

/// Reads a list of annotations (as SAM's generator of masks makes it) or an object that has one in
/// `annotations`. The mask of an annotation is its `segmentation`, its number its place from 1 on.
/// Where masks overlap, the smaller one counts. Crowds (`iscrowd`: 1) are several things in one
/// mask, and left out.
pub(super) fn read(bytes: &[u8], size: (u32, u32)) -> Result<LabelMap, String> {
    let json: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("not valid JSON: {error}"))?;
    let list = match &json {
        Value::Array(list) => list,
        Value::Object(object) => match (object.get("annotations"), object.get("images")) {
            (Some(_), Some(Value::Array(images))) if images.len() > 1 => {
                return Err(format!(
                    "it annotates {} images; the masks of each picture are a file of their own",
                    images.len()
                ));
            }
            (Some(Value::Array(list)), _) => list,
            _ => return Err("it has no list of `annotations`".into()),
        },
        _ => return Err("it is neither a list of annotations nor an object with one".into()),
    };
    if list.len() > usize::from(u16::MAX) {
        return Err(format!(
            "it has {} annotations; a picture has at most {} masks",
            list.len(),
            u16::MAX
        ));
    }
    let mut masks = Vec::new();
    for (label, annotation) in (1u16..).zip(list) {
        let runs = mask(annotation, size);
        let runs = runs.map_err(|reason| format!("annotation {label}: {reason}"))?;
        masks.push((runs.area(), label, runs));
    }
    // The smallest is painted last, of equal ones the first.
    masks.sort_unstable_by_key(|(area, label, _)| std::cmp::Reverse((*area, *label)));
    let mut map = LabelMap::empty(size);
    let height = size.0 as usize;
    for (_, label, runs) in masks {
        for pixel in runs.0.into_iter().flatten() {
            map.labels[pixel % height * map.width + pixel / height] = label;
        }
    }
    Ok(map)
}

/// The pixels of an annotation.
fn mask(annotation: &Value, size: (u32, u32)) -> Result<Runs, String> {
    if annotation.get("iscrowd").is_some_and(is_set) {
        return Ok(Runs::default());
    }
    match annotation.get("segmentation") {
        Some(Value::Array(polygons)) => Runs::from_polygons(&numbers(polygons)?, size),
        Some(Value::Object(lengths)) => {
            let (height, width) = size;
            let own = lengths.get("size").and_then(Value::as_array);
            let own: Option<Vec<u64>> = own.and_then(|own| own.iter().map(Value::as_u64).collect());
            match own.as_deref() {
                Some([h, w]) if (*h, *w) == (height.into(), width.into()) => {}
                Some([h, w]) => {
                    return Err(format!(
                        "it has {w}x{h} pixels and its picture {width}x{height}: write masks in \
                         the picture's own size"
                    ));
                }
                _ => return Err("its segmentation has no `size` [height, width]".into()),
            }
            let pixels = height as usize * width as usize;
            match lengths.get("counts") {
                Some(Value::String(text)) => Runs::from_string(text, pixels),
                Some(Value::Array(counts)) => {
                    let counts: Option<Vec<u64>> = counts.iter().map(Value::as_u64).collect();
                    let counts = counts.ok_or("its counts are not all whole numbers")?;
                    Runs::from_counts(counts, pixels)
                }
                _ => Err("its segmentation has no `counts`, a list or a string".into()),
            }
        }
        _ => Err("it has no `segmentation`, polygons or run lengths".into()),
    }
}

/// Whether a flag is one or true.
fn is_set(flag: &Value) -> bool {
    flag.as_bool() == Some(true) || flag.as_u64().is_some_and(|value| value != 0)
}

fn numbers(polygons: &[Value]) -> Result<Vec<Vec<f64>>, String> {
    let polygon = |polygon: &Value| -> Option<Vec<f64>> {
        polygon.as_array()?.iter().map(Value::as_f64).collect()
    };
    let all: Option<Vec<Vec<f64>>> = polygons.iter().map(polygon).collect();
    all.ok_or_else(|| "its segmentation is no list of polygons, lists of numbers each".into())
}
