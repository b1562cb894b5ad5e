//! Scores of captions as the COCO toolkit computes them: BLEU-1 to 4, ROUGE-L and CIDEr over
//! PTB tokens. METEOR and SPICE need the toolkit's Java programs and are no part of this module.

mod bleu;
mod cider;
mod ngrams;
mod ptb;
mod rouge;

use std::path::Path;

pub use bleu::{Bleu, bleu};
pub use cider::{Cider, CiderForm, cider};
pub use ptb::tokenize;
pub use rouge::{Rouge, rouge_l};

use super::Report;
use crate::DataError;
use crate::benchmark::{Benchmark, Matched, ProblemKind, caption};

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

pub(super) fn score(
    benchmark: Benchmark,
    matched: &Matched<'_>,
    annotations: &Path,
    report: &mut Report,
) -> Result<(), DataError> {
    let references = caption::References::read(benchmark, annotations, &mut report.problems)?;
    let mut all = Vec::new();
    let mut domains = Vec::new();
    for (question, answer) in &matched.pairs {
        let Some(captions) = references.of(benchmark, question) else {
            report.problems.add(
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
    metrics("", &all, report);
    let mut names: Vec<&String> = domains.iter().flatten().collect();
    names.sort();
    names.dedup();
    for name in names {
        let part: Vec<Scored> = all
            .iter()
            .zip(&domains)
            .filter(|(_, domain)| domain.as_ref() == Some(name))
            .map(|(scored, _)| scored.clone())
            .collect();
        metrics(&format!("{name} "), &part, report);
    }
    report.note("METEOR and SPICE need the COCO toolkit's Java programs and are left out here.");
    Ok(())
}

/// All metrics of a set; documents are counted over that set, as the toolkit does.
fn metrics(prefix: &str, scored: &[Scored], report: &mut Report) {
    let count = scored.len();
    let form = |form| cider(scored, form).score;
    report.percent(format!("{prefix}CIDEr"), form(CiderForm::D), count);
    for (n, value) in bleu(scored).scores.iter().enumerate() {
        report.percent(format!("{prefix}BLEU-{}", n + 1), *value, count);
    }
    report.percent(format!("{prefix}ROUGE-L"), rouge_l(scored).score, count);
    report.percent(
        format!("{prefix}CIDEr (first form)"),
        form(CiderForm::Plain),
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
