//! How accuracy grows with the number of conversations, for several probabilities of asking.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::Backend;
use plotters::prelude::*;
use serde::{Serialize, Serializer};
use serde_json::Value;
use sq_llava_data::DeltaSchedule;
use sq_llava_train::Recipe;

use super::ALL;
use super::runs::{RowScores, Runs};
use super::spread;
use crate::output::write;

/// A probability of asking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Delta {
    /// It stays.
    Constant(f64),
    /// It begins at the recipe's and follows what is measured.
    Adaptive,
}

impl FromStr for Delta {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "adaptive" {
            return Ok(Self::Adaptive);
        }
        match text.parse() {
            Ok(delta) if (0.0..=1.0).contains(&delta) => Ok(Self::Constant(delta)),
            _ => Err("a number from 0 to 1, or `adaptive`".into()),
        }
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(delta) => write!(f, "{delta}"),
            Self::Adaptive => f.write_str("adaptive"),
        }
    }
}

impl Serialize for Delta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Delta {
    fn apply(self, recipe: &mut Recipe) {
        match self {
            Self::Constant(delta) => {
                recipe.asking.delta = delta;
                recipe.asking.schedule = DeltaSchedule::Constant;
            }
            Self::Adaptive => recipe.asking.schedule = DeltaSchedule::Adaptive,
        }
    }
}

/// What is compared. The first δ is what the others are compared with.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Conversations of stage 2, the first so many of its data.
    pub sizes: Vec<usize>,
    /// Probabilities of asking.
    pub deltas: Vec<Delta>,
    /// Seeds of training.
    pub seeds: Vec<u64>,
}

/// A δ at every size.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// The probability of asking.
    pub delta: Delta,
    /// Its runs at each size, compared with the first δ's.
    pub points: Vec<RowScores>,
}

impl Comparison {
    /// Trains all of it. Every run sees the same conversations as the others of its size and learns
    /// each answer equally often: that of an asked question is learnt too.
    ///
    /// # Errors
    /// If stage 2's data are no JSON array or too few, the folder is another task's, or a run fails.
    pub fn run<B: Backend>(
        &self,
        runs: &Runs<'_, B>,
        say: &mut dyn FnMut(String),
    ) -> Result<Vec<Curve>> {
        runs.claim()?;
        ensure!(
            runs.task.recipe.asking.delta > 0.0 || !self.deltas.contains(&Delta::Adaptive),
            "asking.delta is 0, where an adaptive δ would begin; leave \"adaptive\" out of --deltas"
        );
        let subsets = self.subsets(&runs.task.recipe, runs.out)?;
        let mut curves: Vec<Curve> = Vec::new();
        for &delta in &self.deltas {
            let mut points = Vec::new();
            for (index, (size, data)) in self.sizes.iter().zip(&subsets).enumerate() {
                let mut found = Vec::new();
                for &seed in &self.seeds {
                    let mut recipe = runs.task.recipe.clone();
                    recipe.seed = seed;
                    recipe.stage2.data = Some(data.clone());
                    delta.apply(&mut recipe);
                    let scores = runs.scores(&format!("{size}-{delta}-{seed}"), &recipe)?;
                    let right = 100.0 * scores.scores.all.part();
                    say(format!(
                        "{size} conversations, δ {delta}, seed {seed}: {right:.1} % right"
                    ));
                    found.push(scores);
                }
                let first = curves.first().map(|curve| &curve.points[index].runs);
                let baseline = first.unwrap_or(&found).clone();
                points.push(RowScores::of(size.to_string(), found, &baseline));
            }
            curves.push(Curve { delta, points });
        }
        Ok(curves)
    }

    /// Files with the first so many conversations each.
    fn subsets(&self, recipe: &Recipe, out: &Path) -> Result<Vec<PathBuf>> {
        let Some(data) = &recipe.stage2.data else {
            bail!("stage2.data must name one JSON file where sizes are compared");
        };
        let shown = data.display();
        let file = File::open(data).with_context(|| shown.to_string())?;
        let all: Vec<Value> = serde_json::from_reader(BufReader::new(file))
            .with_context(|| format!("{shown} is no JSON array"))?;
        let part = |&size: &usize| {
            ensure!(
                (1..=all.len()).contains(&size),
                "{shown} has {} conversations, not {size}",
                all.len()
            );
            let path = out.join(format!("conversations-{size}.json"));
            write(&path, serde_json::to_vec(&all[..size])?)?;
            Ok(std::path::absolute(&path)?)
        };
        self.sizes.iter().map(part).collect()
    }
}

/// Two tables as Markdown for all questions, and for each benchmark: the numbers, and how far each δ is
/// ahead of the first.
pub fn markdown(curves: &[Curve]) -> String {
    let titles = curves.first().and_then(|curve| curve.points.first());
    let titles = titles.and_then(|point| point.runs.first());
    let titles = titles.iter().flat_map(|run| run.benchmarks.keys());
    let mut text = tables(curves, ALL);
    for title in titles {
        text += &format!("\n{title}:\n\n{}", tables(curves, title));
    }
    text
}

fn tables(curves: &[Curve], column: &str) -> String {
    let Some((first, others)) = curves.split_first() else {
        return String::new();
    };
    let head: Vec<&str> = first.points.iter().map(|point| &point.name[..]).collect();
    let row = |curve: &Curve, cell: &dyn Fn(&RowScores) -> Option<String>| {
        let cells = curve.points.iter().map(cell);
        let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".into()));
        (format!("δ {}", curve.delta), cells.collect())
    };
    let all = curves
        .iter()
        .map(|curve| row(curve, &|point| Some(point.columns.get(column)?.to_string())));
    let ahead = others.iter().map(|curve| {
        row(curve, &|point| {
            Some(point.ahead.get(column)?.as_difference())
        })
    });
    format!(
        "{}\nAhead of δ {} of the same seed, with the 95 % interval of the mean:\n\n{}",
        spread::grid(&head, all),
        first.delta,
        spread::grid(&head, ahead)
    )
}

/// The curves as an SVG: right answers in per cent over the conversations, with a deviation to both
/// sides.
///
/// # Errors
/// If it cannot be drawn.
pub fn plot(curves: &[Curve]) -> Result<String> {
    let mut svg = String::new();
    draw(curves, &mut svg).map_err(|e| anyhow::anyhow!("the plot: {e}"))?;
    Ok(svg)
}

fn draw(curves: &[Curve], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let point = |row: &RowScores| {
        let spread = row.columns[ALL];
        let x = row.name.parse().unwrap_or(1.0);
        (x, spread.mean, spread.deviation.unwrap_or(0.0))
    };
    let all = || {
        curves
            .iter()
            .flat_map(|curve| curve.points.iter().map(point))
    };
    let ends = |values: &dyn Fn((f64, f64, f64)) -> f64, start, pick: fn(f64, f64) -> f64| {
        all().map(values).fold(start, pick)
    };
    let (left, right) = (
        ends(&|p| p.0, f64::INFINITY, f64::min),
        ends(&|p| p.0, 1.0, f64::max),
    );
    let (low, high) = (
        ends(&|p| p.1 - p.2, 100.0, f64::min),
        ends(&|p| p.1 + p.2, 0.0, f64::max),
    );
    let sizes = curves.first().map_or(Vec::new(), |curve| {
        curve.points.iter().map(|row| point(row).0).collect()
    });
    let root = SVGBackend::with_string(svg, (640, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(48)
        .build_cartesian_2d(
            (left * 0.9..right * 1.1).log_scale().with_key_points(sizes),
            low - 2.0..high + 2.0,
        )?;
    chart
        .configure_mesh()
        .x_desc("conversations")
        .x_label_formatter(&|size| format!("{size:.0}"))
        .y_desc("right answers, %")
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (index, curve) in curves.iter().enumerate() {
        let style = Palette99::pick(index).stroke_width(2);
        // A little beside one another, for the deviations to be seen.
        let aside = 1.01f64.powi(index as i32 - curves.len() as i32 / 2);
        let points = curve.points.iter().map(point);
        let points: Vec<_> = points.map(|(x, mean, s)| (x * aside, mean, s)).collect();
        let line = points.iter().map(|&(x, mean, _)| (x, mean));
        chart
            .draw_series(LineSeries::new(line, style))?
            .label(format!("δ {}", curve.delta))
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        let bars = points.iter().map(|&(x, mean, deviation)| {
            PathElement::new(
                vec![(x, mean - deviation), (x, mean + deviation)],
                Palette99::pick(index).stroke_width(1),
            )
        });
        chart.draw_series(bars)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
