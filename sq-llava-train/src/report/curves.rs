//! A plot of the loss curves of a run, made from its logs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;
use sq_llava_data::atomic::write_atomic;

use crate::error::TrainError;
use crate::report::delta_panel;
use crate::report::loss_log::{Curve, DELTAS};

/// Name of the plot in a run directory.
pub(crate) const PLOT: &str = "loss.svg";

/// Size of one stage's panel in pixels.
pub(crate) const PANEL: (u32, u32) = (640, 420);
/// Points of a curve; more are averaged.
const POINTS: usize = 640;

/// Curves of a stage: what the log calls it, how the legend does, and its colour.
const LINES: [(Curve, &str, &str, RGBColor); 8] = [
    (Curve::Training, "loss", "loss", RGBColor(31, 119, 180)),
    (
        Curve::Training,
        "loss_question",
        "asking",
        RGBColor(44, 160, 44),
    ),
    (
        Curve::Training,
        "loss_answer",
        "answering",
        RGBColor(255, 127, 14),
    ),
    (
        Curve::Training,
        "loss_masks",
        "masks, per picture",
        RGBColor(148, 103, 189),
    ),
    (Curve::Validation, "loss", "validation", RGBColor(0, 0, 0)),
    (
        Curve::Validation,
        "loss_question",
        "validation, asking",
        RGBColor(20, 90, 20),
    ),
    (
        Curve::Validation,
        "loss_answer",
        "validation, answering",
        RGBColor(160, 70, 0),
    ),
    (
        Curve::Validation,
        "loss_masks",
        "validation, masks",
        RGBColor(80, 50, 110),
    ),
];

/// Points `(step, value)` of a curve.
pub(crate) type Points = Vec<(f64, f64)>;

/// The curves of each quantity of a log, by stage; δ of a source behind [`DELTA_OF`].
type Stages = BTreeMap<u64, BTreeMap<String, Points>>;

/// Before the name of a source: no quantity's name begins so.
const DELTA_OF: &str = "delta/";

/// Plots the loss over the steps, a panel for each stage; nothing if no step was taken.
///
/// # Errors
/// If a log cannot be read or the plot not written.
pub(crate) fn plot(run: &Path) -> Result<(), TrainError> {
    let training = read(run, Curve::Training)?;
    let validation = read(run, Curve::Validation)?;
    if training.is_empty() {
        return Ok(());
    }
    let mut svg = String::new();
    let path = run.join(PLOT);
    render(&training, &validation, &mut svg)
        .map_err(|e| TrainError::Internal(format!("{}: {e}", path.display())))?;
    write_atomic(&path, svg).map_err(|e| TrainError::io(path, e))
}

/// The plot of each stage on its own, and behind it that of δ where it was measured.
///
/// # Errors
/// As [`plot`].
pub(crate) fn panels(run: &Path) -> Result<Vec<(u64, String)>, TrainError> {
    let validation = read(run, Curve::Validation)?;
    let mut panels = Vec::new();
    for (stage, curves) in read(run, Curve::Training)? {
        let failed = |e| TrainError::Internal(format!("the plot of stage {stage}: {e}"));
        let sources: Vec<(&str, &Points)> = curves
            .iter()
            .filter_map(|(name, points)| Some((name.strip_prefix(DELTA_OF)?, points)))
            .collect();
        let deltas = match sources.is_empty() {
            true => None,
            false => Some(delta_panel::render(stage, &sources).map_err(failed)?),
        };
        let mut svg = String::new();
        render(&Stages::from([(stage, curves)]), &validation, &mut svg).map_err(failed)?;
        panels.push((stage, svg));
        panels.extend(deltas.map(|svg| (stage, svg)));
    }
    Ok(panels)
}

fn render(
    training: &Stages,
    validation: &Stages,
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let panels = training.len();
    let size = (PANEL.0 * panels as u32, PANEL.1);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    for ((stage, curves), area) in training.iter().zip(root.split_evenly((1, panels))) {
        let none = BTreeMap::new();
        let measured = validation.get(stage).unwrap_or(&none);
        let lines: Vec<_> = LINES
            .iter()
            .filter_map(|(curve, name, label, color)| {
                let from = match curve {
                    Curve::Training => curves,
                    Curve::Validation => measured,
                };
                let points = from.get(*name).filter(|points| !points.is_empty())?;
                let width = if *curve == Curve::Training { 1 } else { 2 };
                Some(Line {
                    label: Some(label),
                    style: color.stroke_width(width),
                    points: thinned(points),
                })
            })
            .collect();
        let all = || lines.iter().flat_map(|line| &line.points);
        let last = all().map(|p| p.0).fold(1.0, f64::max);
        let high = all().map(|p| p.1).fold(0.0, f64::max);
        let ends = [last * 1.02, (high * 1.05).max(1e-3)];
        draw(
            &area,
            &format!("stage {stage}"),
            "loss per token",
            ends,
            lines,
        )?;
    }
    root.present()?;
    Ok(())
}

/// A line of a chart.
pub(crate) struct Line<'a> {
    /// What the legend calls it, if it names it.
    pub label: Option<&'a str>,
    pub style: ShapeStyle,
    pub points: Points,
}

/// Draws lines over the steps, from 0 to the ends of both axes.
pub(crate) fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
    unit: &str,
    [last, high]: [f64; 2],
    lines: Vec<Line<'_>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..last, 0.0..high)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(unit)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for Line {
        label,
        style,
        points,
    } in lines
    {
        let series = chart.draw_series(LineSeries::new(points, style))?;
        if let Some(label) = label {
            series
                .label(label)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        }
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// At most [`POINTS`] points, each the mean of its neighbours.
pub(crate) fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        let sum = part.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        (sum.0 / n, sum.1 / n)
    };
    points.chunks(each).map(mean).collect()
}

fn read(run: &Path, curve: Curve) -> Result<Stages, TrainError> {
    let path = run.join(curve.files()[0]);
    let mut stages = Stages::new();
    if !path.is_file() {
        return Ok(stages);
    }
    let io = |e| TrainError::io(&path, e);
    for line in BufReader::new(std::fs::File::open(&path).map_err(io)?).lines() {
        let line: Value = serde_json::from_str(&line.map_err(io)?).unwrap_or(Value::Null);
        let (Some(stage), Some(step)) = (line["stage"].as_u64(), line["step"].as_f64()) else {
            continue;
        };
        let of_stage = stages.entry(stage).or_default();
        for (_, name, ..) in LINES.iter().filter(|(of, ..)| *of == curve) {
            if let Some(value) = line[*name].as_f64() {
                let points = of_stage.entry((*name).to_owned()).or_default();
                points.push((step, value));
            }
        }
        for (source, delta) in line[DELTAS].as_object().into_iter().flatten() {
            if let Some(delta) = delta.as_f64() {
                let points = of_stage.entry(format!("{DELTA_OF}{source}")).or_default();
                points.push((step, delta));
            }
        }
    }
    Ok(stages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::loss_log::LossLog;
    use crate::step::loss::LossSums;
    use crate::step::report::StepReport;

    #[test]
    fn a_step_without_a_loss_has_no_point() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = String::new();
        for step in 1..=10 {
            let asking = (step % 2 == 1).then_some(0.5);
            let line = serde_json::json!({"stage": 2, "step": step, "loss_answer": 1.0,
                "loss_question": asking});
            log += &format!("{line}\n");
        }
        // Killed in the middle of a line.
        log += "{\"stage\":2,\"st";
        std::fs::write(dir.path().join(Curve::Training.files()[0]), log).unwrap();
        let stages = read(dir.path(), Curve::Training).unwrap();
        assert_eq!(stages.keys().collect::<Vec<_>>(), [&2]);
        let points = |name: &str| stages[&2].get(name).map_or(0, Vec::len);
        assert_eq!(points("loss_answer"), 10);
        assert_eq!(points("loss_question"), 5);
        assert_eq!(points("loss"), 0);
    }

    #[test]
    fn delta_has_a_panel_of_its_own_where_it_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = String::new();
        for (stage, step) in [(1, 1), (2, 1), (2, 2)] {
            let mut line = serde_json::json!({"stage": stage, "step": step, "loss": 1.0});
            if stage == 2 {
                line[DELTAS] = serde_json::json!({"coco": 0.5, "g<q>a": 0.25 * f64::from(step)});
            }
            log += &format!("{line}\n");
        }
        std::fs::write(dir.path().join(Curve::Training.files()[0]), log).unwrap();
        let curves = &read(dir.path(), Curve::Training).unwrap()[&2];
        assert_eq!(curves["delta/g<q>a"], [(1.0, 0.25), (2.0, 0.5)]);
        let panels = panels(dir.path()).unwrap();
        let stages: Vec<u64> = panels.iter().map(|(stage, _)| *stage).collect();
        assert_eq!(stages, [1, 2, 2]);
        let (loss, deltas) = (&panels[1].1, &panels[2].1);
        assert!(deltas.contains("stage 2, asking") && deltas.contains("coco"));
        assert!(deltas.contains("g&lt;q&gt;a") && !loss.contains("coco"));
        // A line and its place in the legend.
        for color in ["#E6194B", "#3CB44B"] {
            assert_eq!(deltas.matches(color).count(), 2, "{color}");
        }
    }

    #[test]
    fn a_panel_for_each_stage_and_a_line_for_each_loss() {
        let dir = tempfile::tempdir().unwrap();
        plot(dir.path()).unwrap();
        assert!(!dir.path().join(PLOT).exists());
        let mut log = LossLog::open(dir.path(), Curve::Training, false).unwrap();
        let mut valid = LossLog::open(dir.path(), Curve::Validation, false).unwrap();
        for stage in [1, 2] {
            for step in 1..=1500 {
                let loss = 3.0 / step as f64;
                let sums = LossSums {
                    answer: loss,
                    answer_tokens: 1,
                    ..LossSums::default()
                };
                let report = StepReport {
                    loss,
                    sums,
                    ..StepReport::default()
                };
                log.write(stage, step, 1, &report).unwrap();
                if stage == 2 && step % 500 == 0 {
                    valid.write(stage, step, 1, &report).unwrap();
                }
            }
        }
        plot(dir.path()).unwrap();
        let svg = std::fs::read_to_string(dir.path().join(PLOT)).unwrap();
        let count = |text: &str| svg.matches(text).count();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!((count("stage 1"), count("stage 2")), (1, 1));
        assert_eq!((count("answering"), count("asking")), (3, 0));
        // Thousands of steps do not make a large file.
        assert!(svg.len() < 200_000, "{}", svg.len());
    }
}
