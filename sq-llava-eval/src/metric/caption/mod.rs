//! Scores of captions as the COCO toolkit computes them: BLEU-1 to 4, ROUGE-L and CIDEr over
//! PTB tokens; METEOR and SPICE from the toolkit's own Java programs (feature `jars`).

mod bleu;
mod cider;
#[cfg(feature = "jars")]
mod jar;
mod ngrams;
mod ptb;
mod rouge;

pub use bleu::{Bleu, bleu};
pub use cider::{Cider, CiderForm, cider};
#[cfg(feature = "jars")]
pub use jar::Jars;
pub use ptb::tokenize;
pub use rouge::{Rouge, rouge_l};

/// Most words of a prediction, as the published evaluation cuts them.
pub(crate) const PREDICTION_WORDS: usize = 20;

/// Most words of a reference.
pub(crate) const REFERENCE_WORDS: usize = 50;

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

/// A caption as the published evaluation prepares it: lower case, without `.!"()*#:;~`, and only
/// its first `most_words` words.
pub(crate) fn prepared(caption: &str, most_words: usize) -> String {
    let text = caption
        .to_lowercase()
        .replace(['.', '!', '"', '(', ')', '*', '#', ':', ';', '~'], " ");
    let words: Vec<&str> = text.split_whitespace().take(most_words).collect();
    words.join(" ")
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
