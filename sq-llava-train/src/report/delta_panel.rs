//! A plot of δ of the sources that are followed.

use plotters::prelude::*;

use crate::report::curves::{PANEL, Points, thinned};

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
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("stage {stage}, asking"), ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..last * 1.02, 0.0..1.0)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc("δ")
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (number, (name, points)) in sources.iter().enumerate() {
            let style = Palette99::pick(number).stroke_width(1);
            let series = chart.draw_series(LineSeries::new(thinned(points), style))?;
            if number < NAMED {
                series
                    .label(*name)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
            }
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}
