//! The same quick start from several seeds.

use std::fmt::Display;

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use serde::Deserialize;

use super::spread::{self, Spread};
use super::{Plan, RESULTS, Scores};
use crate::output::{claim, read_json, write};

/// The file that says whose a folder is.
pub const CLAIM: &str = "seeds.txt";

/// What is read of a seed's `results.json`.
#[derive(Debug, Deserialize)]
struct Found {
    seconds: Vec<(String, f64)>,
    stage1: Scores,
    both: Scores,
}

/// Refuses a value of an option that comes twice: it would count as two runs.
///
/// # Errors
/// If one does.
pub fn distinct<T: PartialEq + Display>(option: &str, values: &[T]) -> Result<()> {
    for (place, value) in values.iter().enumerate() {
        ensure!(
            !values[..place].contains(value),
            "{option} has {value} twice"
        );
    }
    Ok(())
}

/// Does the quick start of each seed in a folder of its own, where it is not there yet, and writes
/// the table of means and deviations; `where_made` says on what.
///
/// # Errors
/// If `plan.out` is another plan's, or a quick start fails.
pub fn run<B: Backend>(
    plan: &Plan,
    seeds: &[u64],
    where_made: &str,
    device: &B::Device,
    say: &mut dyn FnMut(&str),
) -> Result<String> {
    let text = format!(
        "{} scenes, {:?} steps, {} held out\ntowers {:?}, masks {:?}\n{where_made}\n{}\n",
        plan.scenes,
        plan.steps,
        plan.held_out,
        plan.towers,
        plan.masks,
        plan.changes.join("\n")
    );
    claim(
        &plan.out.join(CLAIM),
        &text,
        "of another quick start, or one on another machine; name another folder",
    )?;
    let mut all = Vec::new();
    for &seed in seeds {
        let own = Plan {
            out: plan.out.join(format!("seed-{seed}")),
            seed,
            ..plan.clone()
        };
        if !own.out.join(RESULTS).is_file() {
            if own.out.exists() {
                std::fs::remove_dir_all(&own.out).with_context(|| own.out.display().to_string())?;
            }
            own.run::<B>(device, say)?;
        }
        let found: Found = read_json(&own.out.join(RESULTS))?;
        say(&format!(
            "seed {seed}: {:.1} % right",
            100.0 * found.both.all.part()
        ));
        all.push(found);
    }
    let table = table(&all, where_made);
    write(&plan.out.join("seeds.md"), &table)?;
    Ok(table)
}

fn table(all: &[Found], where_made: &str) -> String {
    let spread = |scores: fn(&Found) -> &Scores| {
        let runs = all.iter().map(|found| scores(found).columns());
        spread::spreads(&runs.collect::<Vec<_>>())
    };
    let rows = [
        ("stage 1 only", spread(|found| &found.stage1)),
        ("both stages", spread(|found| &found.both)),
    ];
    let seconds: Vec<f64> = all
        .iter()
        .map(|found| found.seconds.iter().map(|(_, seconds)| seconds).sum())
        .collect();
    format!(
        "Right answers in per cent, mean ± deviation over {} seed(s), {} s each, on {where_made}.\n\n{}",
        all.len(),
        Spread::of(&seconds),
        spread::markdown(rows.iter().map(|(name, columns)| (*name, columns)))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quickstart::Score;

    #[test]
    fn the_table_has_means_deviations_and_seconds() {
        let found = |right, seconds| {
            let scores = |right| Scores {
                all: Score { right, all: 10 },
                ..Scores::default()
            };
            Found {
                seconds: vec![("world".into(), 1.0), ("stage 2".into(), seconds)],
                stage1: scores(right - 4),
                both: scores(right),
            }
        };
        let table = table(&[found(9, 100.0), found(10, 104.0)], "a processor");
        assert_eq!(
            table,
            "Right answers in per cent, mean ± deviation over 2 seed(s), 103.0 ± 2.8 s each, on a \
             processor.\n\n| | all |\n|---|---|\n| stage 1 only | 55.0 ± 7.1 |\n\
             | both stages | 95.0 ± 7.1 |\n"
        );
    }
}
