//! ScienceQA: the choice in an answer, and accuracies.

use std::collections::HashMap;
use std::path::Path;

use super::{Report, share};
use crate::EvalError;
use crate::benchmark::{Answer, Matched, ProblemKind, science_qa};
use crate::reply::science_qa::{choice, is_right};
use sq_llava_data::IMAGE_TOKEN;

pub(super) fn score(
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    let references = science_qa::References::read(annotations)?;
    for (id, reason) in &references.malformed {
        let place = format!("problem {id}");
        report
            .problems
            .add(ProblemKind::BadReference, place, reason.clone());
    }
    let answers: HashMap<String, &Answer> = matched
        .answered()
        .map(|(question, answer)| (question.id.to_string(), answer))
        .collect();
    let asked: std::collections::HashSet<String> = matched
        .pairs
        .iter()
        .map(|(question, _)| question.id.to_string())
        .collect();
    if !references.split.iter().any(|id| asked.contains(id)) {
        let first = matched.pairs.first().map(|(question, _)| &question.id);
        let place = first.map_or_else(String::new, |id| format!("question {id}"));
        let reason = "the test split has no problem with the id of any question";
        report
            .problems
            .add(ProblemKind::BadReference, place, reason);
        return Ok(());
    }
    let mut groups = [
        ("image accuracy", 0, 0),
        ("text accuracy", 0, 0),
        ("no-context accuracy", 0, 0),
        ("total accuracy", 0, 0),
    ];
    for id in &references.split {
        let Some(exercise) = references.exercises.get(id) else {
            continue;
        };
        let answer = answers.get(id);
        let with_image = exercise
            .image
            .as_deref()
            .is_some_and(|name| !name.is_empty())
            || answer.is_some_and(|answer| answer.prompt.contains(IMAGE_TOKEN));
        let with_text = exercise
            .hint
            .as_deref()
            .is_some_and(|hint| !hint.is_empty());
        if !asked.contains(id) {
            let reason = "the question file lacks this problem of the test split";
            report
                .problems
                .add(ProblemKind::MissingAnswer, format!("problem {id}"), reason);
        }
        let found = answer.and_then(|answer| choice(&answer.text, exercise.choices.len()));
        if let (Some(answer), None) = (answer, found) {
            report.problems.add(
                ProblemKind::UnclearAnswer,
                format!("problem {id}"),
                format!("\"{}\" names no choice; it counts as wrong", answer.text),
            );
        }
        let right = usize::from(is_right(found, exercise.answer));
        let member = [with_image, with_text, !with_image && !with_text, true];
        for ((_, hits, count), member) in groups.iter_mut().zip(member) {
            *hits += right * usize::from(member);
            *count += usize::from(member);
        }
    }
    for (name, right, count) in groups {
        report.percent(name, share(right, count), count);
    }
    Ok(())
}
