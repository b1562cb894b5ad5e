//! Loss curves of a run as inline SVG.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Width and height of a drawing.
const SIZE: (f64, f64) = (520.0, 220.0);

/// Room for the numbers at the left and at the bottom.
const MARGIN: (f64, f64) = (40.0, 24.0);

/// A line with its name and colour.
struct Curve {
    name: &'static str,
    color: &'static str,
    points: Vec<(f64, f64)>,
}

/// The losses of a stage over its steps, from a run's `log.jsonl`.
///
/// # Errors
/// If the log cannot be read.
pub fn stage_svg(run: &Path, stage: u64) -> Result<String> {
    let path = run.join("log.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let mut curves = [
        ("answers", "#1f6feb", "loss_answer"),
        ("asked questions", "#d1570a", "loss_question"),
    ]
    .map(|(name, color, key)| {
        let curve = Curve {
            name,
            color,
            points: Vec::new(),
        };
        (curve, key)
    });
    for line in text.lines() {
        let entry: Value =
            serde_json::from_str(line).with_context(|| format!("{}", path.display()))?;
        if entry["stage"].as_u64() != Some(stage) {
            continue;
        }
        for (curve, key) in &mut curves {
            if let (Some(step), Some(loss)) = (entry["step"].as_f64(), entry[*key].as_f64()) {
                curve.points.push((step, loss));
            }
        }
    }
    Ok(draw(&curves.map(|(curve, _)| smooth(curve))))
}

/// A running mean over a fiftieth of the steps.
fn smooth(mut curve: Curve) -> Curve {
    let span = (curve.points.len() / 50).max(1);
    let raw: Vec<f64> = curve.points.iter().map(|(_, loss)| *loss).collect();
    for (index, point) in curve.points.iter_mut().enumerate() {
        let window = &raw[index.saturating_sub(span - 1)..=index];
        point.1 = window.iter().sum::<f64>() / window.len() as f64;
    }
    curve
}

fn draw(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let steps = points().map(|p| p.0).fold(1.0, f64::max);
    let highest = points().map(|p| p.1).fold(0.1, f64::max);
    let (width, height) = SIZE;
    let (left, bottom) = MARGIN;
    let x = |step: f64| left + (width - left - 8.0) * step / steps;
    let y = |loss: f64| 8.0 + (height - bottom - 8.0) * (1.0 - loss / highest);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">"
    );
    // Writing to a string cannot fail.
    for mark in 0..=4 {
        let loss = highest * f64::from(mark) / 4.0;
        let _ = write!(
            svg,
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>",
            width - 8.0,
            y(loss),
            y(loss),
            left - 4.0,
            y(loss) + 4.0
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">step {steps:.0}</text>",
        width - 8.0,
        height - 6.0
    );
    let shown = curves.iter().filter(|curve| !curve.points.is_empty());
    for (index, curve) in shown.enumerate() {
        let path: Vec<String> = curve
            .points
            .iter()
            .map(|&(step, loss)| format!("{:.1},{:.1}", x(step), y(loss)))
            .collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{}\">{}</text>",
            curve.color,
            path.join(" "),
            left + 8.0 + 90.0 * index as f64,
            height - 6.0,
            curve.color,
            curve.name
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_becomes_a_line_for_each_loss_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = String::new();
        for step in 1..=10 {
            let entry = serde_json::json!({"stage": 2, "step": step, "loss_answer": 1.0 / step as f64,
                "loss_question": if step % 2 == 0 { Value::Null } else { 0.5.into() }});
            let _ = writeln!(log, "{entry}");
        }
        std::fs::write(dir.path().join("log.jsonl"), log).unwrap();
        let both = stage_svg(dir.path(), 2).unwrap();
        assert_eq!(both.matches("<polyline").count(), 2);
        let points = |svg: &str, n: usize| {
            let part = svg.split("points=\"").nth(n).unwrap();
            part.split('"').next().unwrap().split(' ').count()
        };
        assert_eq!((points(&both, 1), points(&both, 2)), (10, 5));
        assert_eq!(
            stage_svg(dir.path(), 1)
                .unwrap()
                .matches("<polyline")
                .count(),
            0
        );
        assert!(stage_svg(&dir.path().join("none"), 1).is_err());
    }
}
