//! A plot of δ of the sources that are followed.

use plotters::prelude::*;

use crate::report::curves::{Line, PANEL, Points, draw, thinned};

/// Sources that the legend names; the logs have all.
const NAMED: usize = 16;

/// δ of each source over the steps of a stage, as SVG.
pub(crate) fn render(
    stage: u64,
    sources: &[(&str, &Points)],
) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, PANEL).into_drawing_area();
        root.fill(&WHITE)?;
        let points = sources.iter().flat_map(|(_, points)| points.iter());
        let last = points.map(|point| point.0).fold(1.0, f64::max);
        let lines = sources.iter().enumerate();
        let lines = lines.map(|(number, (name, points))| Line {
            label: (number < NAMED).then_some(*name),
            style: Palette99::pick(number).stroke_width(1),
            points: thinned(points),
        });
        let caption = format!("stage {stage}, asking");
        draw(&root, &caption, "δ", [last * 1.02, 1.0], lines.collect())?;
        root.present()?;
    }
    Ok(svg)
}
