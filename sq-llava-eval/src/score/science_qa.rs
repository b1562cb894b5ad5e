//! ScienceQA: the choice in an answer, and accuracies.

use std::collections::HashMap;
use std::path::Path;

use super::{Report, share};
use crate::EvalError;
use crate::benchmark::{Answer, Matched, ProblemKind, science_qa};
use sq_llava_data::IMAGE_TOKEN;

/// Letters that an answer may name.
pub const LETTERS: [char; 5] = ['A', 'B', 'C', 'D', 'E'];

/// Index of the choice that an answer names: it is exactly a letter, begins with a letter and
/// `. `, or says `The answer is X` and one more character exactly once. `None` for anything else,
/// and for a letter beyond the choices.
pub fn choice(text: &str, choices: usize) -> Option<usize> {
    let letter = letter(text)?;
    let index = LETTERS.iter().position(|known| *known == letter)?;
    Some(index).filter(|index| *index < choices)
}

fn letter(text: &str) -> Option<char> {
    let mut letters = text.chars();
    let first = letters.next()?;
    let rest = letters.as_str();
    if LETTERS.contains(&first) && (rest.is_empty() || rest.starts_with(". ")) {
        return Some(first);
    }
    let mut said = text
        .match_indices("The answer is ")
        .filter_map(|(at, said)| {
            let mut after = text[at + said.len()..].chars();
            let letter = after.next().filter(char::is_ascii_uppercase)?;
            after.next().filter(|next| *next != '\n')?;
            Some(letter)
        });
    let letter = said.next()?;
    match said.next() {
        None => Some(letter),
        Some(_) => None,
    }
}

/// Whether a choice is the right one.
pub fn is_right(choice: Option<usize>, answer: usize) -> bool {
    choice == Some(answer)
}

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
