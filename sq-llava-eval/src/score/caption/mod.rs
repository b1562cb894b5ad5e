//! Scores of captions as the COCO toolkit computes them: BLEU-1 to 4, ROUGE-L and CIDEr over
//! PTB tokens; METEOR and SPICE from the toolkit's own Java programs, where they are given.

mod bleu;
mod cider;
mod jar;
mod ngrams;
mod ptb;
mod rouge;

use std::path::Path;

pub use bleu::{Bleu, bleu};
pub use cider::{Cider, CiderForm, cider};
pub use jar::{JarScore, Jars};
pub use ptb::tokenize;
pub use rouge::{Rouge, rouge_l};

use super::Report;
use crate::EvalError;
use crate::benchmark::{Benchmark, Matched, ProblemKind, Problems, caption};

/// Most words of a prediction, as the published evaluation cuts them.
pub const PREDICTION_WORDS: usize = 20;

/// Most words of a reference.
pub const REFERENCE_WORDS: usize = 50;

/// A caption and the references of its picture, all tokenized: words apart by single spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scored {
    /// What the model said.
    pub candidate: String,
    /// What people said.
    pub references: Vec<String>,
}

impl Scored {
    /// Tokenizes a caption and its references.
    pub fn tokenized<T: AsRef<str>>(candidate: &str, references: &[T]) -> Self {
        Self {
            candidate: tokenize(candidate),
            references: references
                .iter()
                .map(|text| tokenize(text.as_ref()))
                .collect(),
        }
    }
}

/// What the published evaluation does to a caption first: lower case, `.!"()*#:;~` out, at most
/// so many words.
pub fn prepared(caption: &str, most_words: usize) -> String {
    let text = caption
        .to_lowercase()
        .replace(['.', '!', '"', '(', ')', '*', '#', ':', ';', '~'], " ");
    let words: Vec<&str> = text.split_whitespace().take(most_words).collect();
    words.join(" ")
}

/// Captions that are scored together, and what stands before the names of their metrics.
struct Set {
    prefix: String,
    scored: Vec<Scored>,
}

pub(super) fn score(
    benchmark: Benchmark,
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    for set in sets(benchmark, matched, annotations, &mut report.problems)? {
        metrics(&set.prefix, &set.scored, report);
    }
    Ok(())
}

/// Adds METEOR and SPICE to the report of a captioning benchmark; one whose program is not given
/// is left out with a note. SPICE leaves its files in `folder`.
///
/// # Errors
/// If the references cannot be read or a program fails.
pub fn score_by_jars(
    benchmark: Benchmark,
    matched: &Matched<'_>,
    annotations: &Path,
    jars: &Jars,
    folder: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    for (jar, name) in [(&jars.meteor, "METEOR"), (&jars.spice, "SPICE")] {
        if jar.is_none() {
            let option = name.to_lowercase();
            report.note(format!(
                "{name} is left out: it needs Java and --{option}-jar FILE"
            ));
        }
    }
    if jars.meteor.is_none() && jars.spice.is_none() {
        return Ok(());
    }
    // What is wrong with the references is in the report already.
    let mut known = Problems::default();
    for set in sets(benchmark, matched, annotations, &mut known)? {
        for (name, found) in [
            ("METEOR", jars.meteor(&set.scored)?),
            ("SPICE", jars.spice(&set.scored, folder)?),
        ] {
            if let Some(found) = found {
                let count = found.each.iter().flatten().count();
                let score = (count > 0).then_some(found.score);
                report.percent(format!("{}{name}", set.prefix), score, count);
            }
        }
    }
    Ok(())
}

/// All captions, then those of each domain.
fn sets(
    benchmark: Benchmark,
    matched: &Matched<'_>,
    annotations: &Path,
    problems: &mut Problems,
) -> Result<Vec<Set>, EvalError> {
    let references = caption::References::read(benchmark, annotations, problems)?;
    let mut all = Vec::new();
    let mut domains = Vec::new();
    for (question, answer) in &matched.pairs {
        let Some(captions) = references.of(benchmark, question) else {
            problems.add(
                ProblemKind::BadReference,
                format!("question {}", question.id),
                "the references lack it; it is not scored",
            );
            continue;
        };
        let text = answer.map_or("", |answer| answer.text.as_str());
        let known: Vec<String> = captions
            .texts
            .iter()
            .map(|text| prepared(text, REFERENCE_WORDS))
            .collect();
        all.push(Scored::tokenized(&prepared(text, PREDICTION_WORDS), &known));
        domains.push(captions.domain.clone());
    }
    let mut names: Vec<&String> = domains.iter().flatten().collect();
    names.sort();
    names.dedup();
    let parts = names.into_iter().map(|name| {
        let of_domain = all.iter().zip(&domains);
        Set {
            prefix: format!("{name} "),
            scored: of_domain
                .filter(|(_, domain)| domain.as_ref() == Some(name))
                .map(|(scored, _)| scored.clone())
                .collect(),
        }
    });
    let mut sets: Vec<Set> = parts.collect();
    sets.insert(
        0,
        Set {
            prefix: String::new(),
            scored: all,
        },
    );
    sets.retain(|set| !set.scored.is_empty());
    Ok(sets)
}

/// All metrics of a set; documents are counted over that set, as the toolkit does.
fn metrics(prefix: &str, scored: &[Scored], report: &mut Report) {
    let count = scored.len();
    if count == 0 {
        return;
    }
    let form = |form| cider(scored, form).score;
    report.percent(format!("{prefix}CIDEr"), Some(form(CiderForm::D)), count);
    for (n, value) in bleu(scored).scores.iter().enumerate() {
        report.percent(format!("{prefix}BLEU-{}", n + 1), Some(*value), count);
    }
    let rouge = Some(rouge_l(scored).score);
    report.percent(format!("{prefix}ROUGE-L"), rouge, count);
    report.percent(
        format!("{prefix}CIDEr (first form)"),
        Some(form(CiderForm::Plain)),
        count,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_cleaned_and_cut() {
        assert_eq!(
            prepared("A dog's  \"ball\" (red)!\n", 20),
            "a dog's ball red"
        );
        assert_eq!(prepared("one two three", 2), "one two");
    }
}
