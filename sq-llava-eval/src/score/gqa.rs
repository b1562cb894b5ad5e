//! GQA: exact match.

use std::path::Path;

use super::{Report, share};
use crate::EvalError;
use crate::benchmark::{Matched, ProblemKind, gqa};
use crate::reply::gqa::is_right;

pub(super) fn score(
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    let references = gqa::references(annotations, &mut report.problems)?;
    let (mut right, mut count) = (0, 0);
    for (question, answer) in &matched.pairs {
        match references.get(&question.id.to_string()) {
            Some(reference) => {
                count += 1;
                right += usize::from(answer.is_some_and(|a| is_right(&a.text, reference)));
            }
            None => report.problems.add(
                ProblemKind::BadReference,
                format!("question {}", question.id),
                "the references lack it; it is not scored",
            ),
        }
    }
    report.percent("accuracy", share(right, count), count);
    Ok(())
}
