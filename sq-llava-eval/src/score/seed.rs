//! SEED-Bench: the exact letter, by type of question.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::{Report, share};
use crate::EvalError;
use crate::benchmark::seed::References;
use crate::benchmark::{Matched, ProblemKind};

pub(super) fn score(
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    let references = References::read(annotations, &mut report.problems)?;
    let asked: BTreeMap<String, Option<&str>> = matched
        .pairs
        .iter()
        .map(|(question, answer)| {
            (
                question.id.to_string(),
                answer.map(|answer| answer.text.as_str()),
            )
        })
        .collect();
    let known: HashSet<String> = references
        .items
        .iter()
        .map(|item| item.question_id.to_string())
        .collect();
    for id in asked.keys().filter(|id| !known.contains(*id)) {
        report.problems.add(
            ProblemKind::BadReference,
            format!("question {id}"),
            "the references lack it; it is not scored",
        );
    }
    if !known.iter().any(|id| asked.contains_key(id)) {
        return Ok(());
    }
    let names: HashMap<i64, &str> = references
        .types
        .iter()
        .map(|(name, number)| (*number, name.as_str()))
        .collect();
    // (right, count), by media and by type.
    let mut total = (0, 0);
    let mut by_media: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut by_type: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    for item in &references.items {
        let id = item.question_id.to_string();
        let answer = asked.get(&id).copied();
        if answer.is_none() {
            let reason = "the question file lacks this question; it counts as wrong";
            report
                .problems
                .add(ProblemKind::MissingAnswer, format!("question {id}"), reason);
        }
        let right = answer.flatten() == Some(item.answer.as_str());
        for (hits, count) in [
            &mut total,
            by_media.entry(&item.data_type).or_default(),
            by_type.entry(item.question_type_id).or_default(),
        ] {
            *hits += usize::from(right);
            *count += 1;
        }
    }
    report.percent("total accuracy", share(total.0, total.1), total.1);
    for (media, (right, count)) in by_media {
        report.percent(format!("{media} accuracy"), share(right, count), count);
    }
    for (number, (right, count)) in by_type {
        let name = names.get(&number).copied();
        let name = name.map_or_else(|| format!("type {number}"), str::to_owned);
        report.percent(name, share(right, count), count);
    }
    Ok(())
}
