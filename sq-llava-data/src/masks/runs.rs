//! Regions as runs of pixels, column by column as in COCO, and what they come from: run lengths,
//! plain or as pycocotools packs them, and polygons.

use std::ops::Range;

/// Pixels of a region: ranges of `column · height + row`, which rise and do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs(pub Vec<Range<usize>>);

/// How much finer a polygon's edges are followed than the pixels.
const FINER: f64 = 5.0;

impl Runs {
    /// Number of pixels.
    pub(super) fn area(&self) -> usize {
        self.0.iter().map(Range::len).sum()
    }

    /// From run lengths, without the region first.
    pub(super) fn from_counts(
        counts: impl IntoIterator<Item = u64>,
        pixels: usize,
    ) -> Result<Self, String> {
        let (mut runs, mut start, mut inside) = (Vec::new(), 0usize, false);
        for count in counts {
            let end = usize::try_from(count).ok();
            let end = end.and_then(|count| start.checked_add(count));
            let Some(end) = end.filter(|&end| end <= pixels) else {
                return Err(format!("its counts go beyond its {pixels} pixels"));
            };
            if inside && end > start {
                runs.push(start..end);
            }
            (start, inside) = (end, !inside);
        }
        if start != pixels {
            return Err(format!("its counts have {start} of its {pixels} pixels"));
        }
        Ok(Self(joined(runs)))
    }

    /// From the string that pycocotools packs run lengths into: each as five bits a character, from
    /// the third on as the difference to the one before the last.
    pub(super) fn from_string(text: &str, pixels: usize) -> Result<Self, String> {
        let mut counts: Vec<i64> = Vec::new();
        let (mut value, mut shift) = (0i64, 0u32);
        for byte in text.bytes() {
            let Some(bits) = byte.checked_sub(48).filter(|bits| *bits < 64) else {
                return Err(format!("its counts have {:?}", char::from(byte)));
            };
            // Seven characters hold any run of a picture, and a difference's sign.
            if shift > 30 {
                return Err("its counts have a number that is too large".into());
            }
            value |= i64::from(bits & 0x1f) << shift;
            shift += 5;
            if bits & 0x20 != 0 {
                continue;
            }
            if bits & 0x10 != 0 {
                value |= -1 << shift;
            }
            if counts.len() > 2 {
                value += counts[counts.len() - 2];
            }
            if value < 0 {
                return Err("its counts have a number below zero".into());
            }
            counts.push(value);
            (value, shift) = (0, 0);
        }
        if shift > 0 {
            return Err("its counts are cut short".into());
        }
        Self::from_counts(counts.into_iter().map(i64::unsigned_abs), pixels)
    }

    /// The pixels of polygons, each `x0, y0, x1, y1 …` from the picture's upper left corner.
    pub(super) fn from_polygons(
        polygons: &[Vec<f64>],
        (height, width): (u32, u32),
    ) -> Result<Self, String> {
        let mut runs = Vec::new();
        for polygon in polygons {
            if polygon.len() < 6 || !polygon.len().is_multiple_of(2) {
                return Err(format!(
                    "a polygon has {} numbers; it is x0, y0, x1, y1, x2, y2 …",
                    polygon.len()
                ));
            }
            let points: Vec<[f64; 2]> = polygon.as_chunks().0.to_vec();
            let near = |value: f64, side: u32| {
                let side = f64::from(side);
                (-side..=2.0 * side).contains(&value)
            };
            if let Some([x, y]) = points
                .iter()
                .find(|[x, y]| !(near(*x, width) && near(*y, height)))
            {
                return Err(format!(
                    "a polygon goes through ({x}, {y}), far outside the {width}x{height} picture"
                ));
            }
            runs.extend(fill(&points, height as usize, width as usize));
        }
        runs.sort_unstable_by_key(|run| run.start);
        Ok(Self(joined(runs)))
    }
}

/// Runs in the order of their starts, those that touch or overlap joined.
fn joined(runs: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::with_capacity(runs.len());
    for run in runs {
        match all.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => all.push(run),
        }
    }
    all
}

/// The inside of a polygon, by the rule of pycocotools' `rleFrPoly`: edges are followed on a grid
/// five times as fine, and where one crosses from one column of pixels to the next, what lies below
/// in that column changes between inside and outside.
fn fill(points: &[[f64; 2]], height: usize, width: usize) -> Vec<Range<usize>> {
    let fine = |value: f64| (FINER * value + 0.5) as i64;
    let corners: Vec<[i64; 2]> = points.iter().map(|[x, y]| [fine(*x), fine(*y)]).collect();
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Option<[i64; 2]> = None;
    for (at, &from) in corners.iter().enumerate() {
        let to = corners[(at + 1) % corners.len()];
        for_each_step(from, to, |step| {
            if let Some(last) = before.replace(step)
                && let Some(pixel) = crossing(last, step, height, width)
            {
                ends.push(pixel);
            }
        });
    }
    ends.sort_unstable();
    if ends.len() % 2 == 1 {
        ends.push(height * width);
    }
    let pairs = ends.as_chunks().0.iter();
    let runs = pairs.map(|&[start, end]| start..end);
    runs.filter(|run| !run.is_empty()).collect()
}

/// The points of an edge, from its first corner on.
fn for_each_step(from: [i64; 2], to: [i64; 2], mut step: impl FnMut([i64; 2])) {
    let [dx, dy] = [(to[0] - from[0]).abs(), (to[1] - from[1]).abs()];
    let steep = dx < dy;
    let along = usize::from(steep);
    // Rounded from the lower end, in whichever direction the edge runs.
    let flipped = from[along] > to[along];
    let (low, high) = if flipped { (to, from) } else { (from, to) };
    let length = dx.max(dy);
    let slope = (high[1 - along] - low[1 - along]) as f64 / length.max(1) as f64;
    for index in 0..=length {
        let t = if flipped { length - index } else { index };
        let across = (low[1 - along] as f64 + slope * t as f64 + 0.5) as i64;
        step(match steep {
            false => [t + low[0], across],
            true => [across, t + low[1]],
        });
    }
}

/// The pixel from which on a step from one column to the next changes what is inside.
fn crossing(last: [i64; 2], step: [i64; 2], height: usize, width: usize) -> Option<usize> {
    if step[0] == last[0] {
        return None;
    }
    let lower = |first: i64, second: i64| first.min(second) as f64;
    let x = if step[0] < last[0] {
        step[0]
    } else {
        step[0] - 1
    };
    let x = (x as f64 + 0.5) / FINER - 0.5;
    if x.floor() != x || x < 0.0 || x > width as f64 - 1.0 {
        return None;
    }
    let y = (lower(step[1], last[1]) + 0.5) / FINER - 0.5;
    let y = y.clamp(0.0, height as f64).ceil();
    // Both are within the picture.
    Some(x as usize * height + y as usize)
}
