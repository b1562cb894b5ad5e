//! Numbers of several seeds: mean, deviation, and an interval for the mean.

use std::collections::BTreeMap;

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::ALL;

/// Mean and sample standard deviation over seeds, in per cent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation with n − 1; absent for one seed.
    pub deviation: Option<f64>,
    /// 95 % interval of the mean by Student's t; absent for one seed.
    pub interval_95: Option<[f64; 2]>,
}

/// The values of several runs in each column.
pub type Columns = BTreeMap<String, Vec<f64>>;

/// Gathers what each run has in its columns.
pub fn columns(runs: impl Iterator<Item = BTreeMap<String, f64>>) -> Columns {
    let mut values = Columns::new();
    for (column, value) in runs.flatten() {
        values.entry(column).or_default().push(value);
    }
    values
}

/// Mean and spread of each column.
pub fn spreads(columns: &Columns) -> BTreeMap<String, Spread> {
    let columns = columns.iter();
    columns
        .map(|(column, values)| (column.clone(), Spread::of(values)))
        .collect()
}

/// Mean and spread of what each run has more than the other at its place, in the columns of both.
pub fn ahead(own: &Columns, others: &Columns) -> BTreeMap<String, Spread> {
    let ahead = own.iter().filter_map(|(column, values)| {
        let differences = values.iter().zip(others.get(column)?).map(|(a, b)| a - b);
        Some((column.clone(), Spread::of(&differences.collect::<Vec<_>>())))
    });
    ahead.collect()
}

impl Spread {
    /// Of these values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let deviation = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
        let t = StudentsT::new(0.0, 1.0, n - 1.0).map(|t| t.inverse_cdf(0.975));
        let half = deviation.zip(t.ok()).map(|(s, t)| t * s / n.sqrt());
        Self {
            mean,
            deviation,
            interval_95: half.map(|half| [mean - half, mean + half]),
        }
    }

    /// The mean as a difference, with its interval.
    pub fn as_difference(&self) -> String {
        let signed = |value: f64| {
            let sign = if value < 0.0 { '−' } else { '+' };
            format!("{sign}{:.1}", value.abs())
        };
        match self.interval_95 {
            Some(ends) => {
                let [low, high] = ends.map(signed);
                format!("{} ({low} … {high})", signed(self.mean))
            }
            None => signed(self.mean),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.deviation {
            Some(deviation) => write!(f, "{:.1} ± {deviation:.1}", self.mean),
            None => write!(f, "{:.1}", self.mean),
        }
    }
}

/// A table of means and deviations as Markdown, its column "all" first.
pub fn markdown<'a>(rows: impl Iterator<Item = (&'a str, &'a BTreeMap<String, Spread>)>) -> String {
    table(rows, ToString::to_string)
}

/// The same of differences, with intervals.
pub fn markdown_with_intervals<'a>(
    rows: impl Iterator<Item = (&'a str, &'a BTreeMap<String, Spread>)>,
) -> String {
    table(rows, Spread::as_difference)
}

fn table<'a>(
    rows: impl Iterator<Item = (&'a str, &'a BTreeMap<String, Spread>)>,
    cell: impl Fn(&Spread) -> String,
) -> String {
    let rows: Vec<_> = rows.collect();
    let mut columns: Vec<&str> = vec![ALL];
    if let Some((_, first)) = rows.first() {
        let named = first.keys().map(String::as_str);
        columns.extend(named.filter(|column| *column != ALL));
    }
    let rows = rows.into_iter().map(|(name, values)| {
        let cells = columns.iter().map(|column| values.get(*column));
        let cells = cells.map(|v| v.map_or("-".into(), &cell)).collect();
        (name.to_owned(), cells)
    });
    grid(&columns, rows)
}

/// Rows of named cells as a Markdown table.
pub fn grid(columns: &[&str], rows: impl Iterator<Item = (String, Vec<String>)>) -> String {
    let mut text = format!("| | {} |\n|---|", columns.join(" | "));
    text += &format!("{}\n", "---|".repeat(columns.len()));
    for (name, cells) in rows {
        text += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_student_s() {
        // t of four degrees of freedom is 2.776.
        let found = Spread::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let half = 2.7764 * (2.5f64 / 5.0).sqrt();
        let [low, high] = found.interval_95.unwrap();
        assert!((low - (3.0 - half)).abs() < 1e-3 && (high - (3.0 + half)).abs() < 1e-3);
        assert_eq!(found.as_difference(), "+3.0 (+1.0 … +5.0)");
        let one = Spread::of(&[-3.0]);
        assert_eq!((one.deviation, one.interval_95), (None, None));
        assert_eq!(
            (one.to_string(), one.as_difference()),
            ("-3.0".into(), "−3.0".into())
        );
    }
}
