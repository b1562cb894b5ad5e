//! MMBench: accuracy, and circular accuracy, where a question counts if it is answered rightly
//! however its options are moved.

use std::collections::BTreeMap;

use super::{Report, share};
use crate::EvalError;
use crate::benchmark::mmbench::LETTERS;
use crate::benchmark::{Answer, Matched, ProblemKind, Questions, Round};

/// Copies of a question in the table are this far apart.
const COPY: i64 = 1_000_000;

/// Place of the option that an answer names: its letter, alone or followed by `.`, `)`, `:` or a
/// space, in brackets or not; or the option's own text.
pub fn choice(text: &str, options: &[String]) -> Option<usize> {
    let text = text.trim();
    if let Some(place) = options.iter().position(|option| option.trim() == text) {
        return Some(place);
    }
    let bare = text.strip_prefix('(').unwrap_or(text);
    let place = LETTERS
        .iter()
        .take(options.len())
        .position(|letter| bare.starts_with(letter))?;
    let after = bare[1..].chars().next();
    // "A dog" is a sentence, not a letter, unless it is that option.
    let ends = match after {
        None | Some('.' | ')' | ':' | ',') => true,
        Some(' ') => bare[1..].trim() == options[place].trim(),
        _ => false,
    };
    ends.then_some(place)
}

/// The letter in the table of the option that an answer names.
pub fn letter<'a>(answer: &Answer, round: &'a Round) -> Option<&'a str> {
    let place = choice(&answer.text, &round.options)?;
    round.option_char.get(place).map(String::as_str)
}

pub(super) fn score(
    questions: &Questions,
    matched: &Matched<'_>,
    report: &mut Report,
) -> Result<(), EvalError> {
    let Some(table) = questions.table() else {
        return Err(EvalError::benchmark(&questions.path, "is no MMBench table"));
    };
    if table.rows().iter().all(|row| row.answer.is_none()) {
        report.note("the table has no answers (a test split): upload the file to the server");
        return Ok(());
    }
    let (mut right, mut count) = (0, 0);
    // For each question, whether all its presentations were answered rightly, and their number.
    let mut circles: BTreeMap<i64, (bool, usize)> = BTreeMap::new();
    for (question, answer) in &matched.pairs {
        let row = &table.rows()[question.position];
        let (Some(truth), Some(round)) = (&row.answer, &question.round) else {
            let place = format!("question {}", question.id);
            let reason = "the table has no answer; it is not scored";
            report
                .problems
                .add(ProblemKind::BadReference, place, reason);
            continue;
        };
        let named = answer.and_then(|answer| letter(answer, round));
        if let (Some(answer), None) = (answer, named) {
            report.problems.add(
                ProblemKind::UnclearAnswer,
                format!("question {}", question.id),
                format!("\"{}\" names no option; it counts as wrong", answer.text),
            );
        }
        let hit = named.is_some_and(|named| truth.trim().eq_ignore_ascii_case(named));
        if row.index < COPY && round.number == 0 {
            right += usize::from(hit);
            count += 1;
        }
        let (all, presentations) = circles.entry(row.index % COPY).or_insert((true, 0));
        *all &= hit;
        *presentations += 1;
    }
    report.percent("accuracy", share(right, count), count);
    if circles
        .values()
        .any(|(_, presentations)| *presentations > 1)
    {
        let all = circles.values().filter(|(all, _)| *all).count();
        let name = "circular accuracy";
        report.percent(name, share(all, circles.len()), circles.len());
        // The server's number is the circular one.
        report.lead(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_options_are_found_and_sentences_are_not() {
        let options: Vec<String> = ["a dog", "Apple", "3"].map(str::to_owned).to_vec();
        for (text, place) in [
            ("A", Some(0)),
            (" B. ", Some(1)),
            ("C. 3", Some(2)),
            ("(C)", Some(2)),
            ("A a dog", Some(0)),
            ("a dog", Some(0)),
            ("3", Some(2)),
            ("Apple", Some(1)),
            ("A cat is here", None),
            ("D", None),
            ("Both", None),
            ("", None),
        ] {
            assert_eq!(choice(text, &options), place, "{text}");
        }
    }
}
