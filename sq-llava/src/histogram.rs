//! Histograms as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use sq_llava_data::atomic::write_atomic;
use sq_llava_eval::summary::ScoreSummary;

const SIZE: (u32, u32) = (720, 420);
const COLOURS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(214, 90, 20)];

/// One of the distributions in a picture.
pub struct Distribution<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// The distribution.
    pub scores: &'a ScoreSummary,
}

/// Draws at most two distributions over each other, each as shares of its own scores.
///
/// # Errors
/// If there is none, or the file cannot be written.
pub fn write_histogram(path: &Path, title: &str, distributions: &[Distribution<'_>]) -> Result<()> {
    let failed = |reason: String| anyhow!("{}: {reason}", path.display());
    let text = svg(title, distributions).map_err(|e| failed(e.to_string()))?;
    write_atomic(path, text).map_err(|e| failed(e.to_string()))
}

/// `(left edge, share)` of a bin.
fn steps(scores: &ScoreSummary) -> impl Iterator<Item = (f64, f64)> + '_ {
    let all = scores.scores.max(1) as f64;
    scores.histogram.iter().enumerate().map(move |(i, &n)| {
        let left = scores.low + scores.width * i as f64;
        (left, n as f64 / all)
    })
}

/// The first and the last left edge of the bins that hold something, and the largest share.
fn bounds(distributions: &[Distribution<'_>]) -> Option<[f64; 3]> {
    let filled: Vec<(f64, f64)> = distributions
        .iter()
        .flat_map(|one| steps(one.scores).filter(|(_, share)| *share > 0.0))
        .collect();
    let edge = |start: f64, pick: fn(f64, f64) -> f64| {
        filled.iter().map(|(left, _)| *left).fold(start, pick)
    };
    let low = edge(f64::INFINITY, f64::min);
    let high = edge(f64::NEG_INFINITY, f64::max);
    let top = filled.iter().map(|(_, share)| *share).fold(0.0, f64::max);
    low.is_finite().then_some([low, high, top])
}

fn svg(
    title: &str,
    distributions: &[Distribution<'_>],
) -> Result<String, Box<dyn std::error::Error>> {
    let [low, high, top] = bounds(distributions).ok_or("there is nothing to draw")?;
    let width = distributions.first().map_or(0.0, |one| one.scores.width);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(52)
            // Only the bins that hold something, and one more at either side.
            .build_cartesian_2d(low - width..high + 2.0 * width, 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .x_desc("cosine")
            .y_desc("share of the texts")
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (one, colour) in distributions.iter().zip(COLOURS) {
            let bars = steps(one.scores).filter(|(_, share)| *share > 0.0);
            let bars = bars.map(|(left, share)| {
                Rectangle::new(
                    [(left, 0.0), (left + width, share)],
                    colour.mix(0.45).filled(),
                )
            });
            let mean = one.scores.mean;
            let label = format!("{}, mean {mean:.4}", one.name);
            chart.draw_series(bars)?.label(label).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.mix(0.45).filled())
            });
            let line = [(mean, 0.0), (mean, top * 1.1)];
            chart.draw_series([PathElement::new(line, colour.stroke_width(2))])?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use sq_llava_eval::summary::ScoreCollector;

    use super::*;

    #[test]
    fn a_picture_names_its_distributions_and_means() {
        let mut collector = ScoreCollector::new(-1.0, 0.01, 200);
        collector.add(&[0.181, 0.185, 0.201]);
        let scores = collector.summary().unwrap();
        let questions = Distribution {
            name: "questions",
            scores: &scores,
        };
        let text = svg("A title", &[questions]).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for part in ["A title", "questions, mean 0.1890", "cosine"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(svg("Nothing", &[]).is_err());
    }
}
