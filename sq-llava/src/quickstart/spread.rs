//! Numbers of several seeds: mean, deviation, and an interval for the mean.

use std::collections::{BTreeMap, BTreeSet};

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

/// What a run has in the columns of a table.
pub type Columns = BTreeMap<String, f64>;

/// Mean and spread of each column, over the runs that have it.
pub fn spreads(runs: &[Columns]) -> BTreeMap<String, Spread> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (column, value) in runs.iter().flatten() {
        values.entry(column).or_default().push(*value);
    }
    let spread = |(column, values): (&str, Vec<f64>)| (column.to_owned(), Spread::of(&values));
    values.into_iter().map(spread).collect()
}

/// Mean and spread of what each run has more than the other at its place, in the columns of both.
pub fn ahead(own: &[Columns], others: &[Columns]) -> BTreeMap<String, Spread> {
    let differences = own.iter().zip(others).map(|(own, other)| {
        let more = own.iter().filter_map(|(column, value)| {
            let difference = value - other.get(column)?;
            Some((column.clone(), difference))
        });
        more.collect()
    });
    spreads(&differences.collect::<Vec<Columns>>())
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
    let named = rows.iter().flat_map(|(_, row)| row.keys());
    let named: BTreeSet<&str> = named.map(String::as_str).collect();
    let mut columns: Vec<&str> = vec![ALL];
    columns.extend(named.into_iter().filter(|column| *column != ALL));
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
    fn runs_are_compared_with_those_at_their_places() {
        let run = |all, rare: Option<f64>| {
            let rare = rare.map(|rare| ("rare".to_owned(), rare));
            Columns::from_iter([("all".to_owned(), all)].into_iter().chain(rare))
        };
        // The first run lacks a column: the second one's is not compared with the first one's.
        let own = [run(3.0, None), run(5.0, Some(9.0))];
        let others = [run(1.0, Some(2.0)), run(2.0, Some(4.0))];
        let found = ahead(&own, &others);
        assert_eq!((found["all"].mean, found["rare"].mean), (2.5, 5.0));
        assert_eq!(spreads(&own)["rare"].mean, 9.0);
        // None has it with its partner: no column.
        assert!(!ahead(&own[..1], &others[..1]).contains_key("rare"));
    }

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
