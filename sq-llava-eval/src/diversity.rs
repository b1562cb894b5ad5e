//! How varied a list of questions is: distinct n-grams, self-BLEU, and what kinds of question
//! there are.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

/// Longest n-gram of self-BLEU.
const ORDER: usize = 4;

/// Counted for an order without a match, as in nltk's `SmoothingFunction.method1`.
const EPSILON: f64 = 0.1;

/// Numbers of a list of questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diversity {
    /// Questions in the list, repeated ones included.
    pub questions: usize,
    /// Words in all of them.
    pub words: usize,
    /// Different words over all words (Li et al. 2016); falls as a list grows. `None` without any.
    pub distinct_1: Option<f64>,
    /// Different pairs of neighbouring words over all pairs. `None` without any.
    pub distinct_2: Option<f64>,
    /// Mean BLEU-4 of each question against all others (Zhu et al. 2018): 1 is one question over
    /// and over. `None` for fewer than two questions.
    pub self_bleu: Option<f64>,
    /// How many questions there are of each kind.
    pub types: Vec<TypeCount>,
}

/// The words of a text, and how many copies of it a list holds.
type Repeated = (Vec<String>, usize);

/// A kind of question and its share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TypeCount {
    /// The kind.
    pub kind: QuestionType,
    /// Questions of it.
    pub count: usize,
    /// Their share of all, 0 to 1.
    pub share: f64,
}

impl Diversity {
    /// Measures a list of questions, each with how often it occurs in the list.
    pub fn of<S: AsRef<str>>(questions: &[(S, usize)]) -> Self {
        let words: Vec<Repeated> = questions
            .iter()
            .map(|(text, copies)| (words(text.as_ref()), *copies))
            .filter(|(_, copies)| *copies > 0)
            .collect();
        let total: usize = questions.iter().map(|(_, copies)| copies).sum();
        let kinds: Vec<(QuestionType, usize)> = questions
            .iter()
            .map(|(text, copies)| (QuestionType::of(text.as_ref()), *copies))
            .collect();
        let types = QuestionType::ALL.map(|kind| {
            let own = kinds.iter().filter(|(found, _)| *found == kind);
            let count = own.map(|(_, copies)| copies).sum();
            let share = count as f64 / total.max(1) as f64;
            TypeCount { kind, count, share }
        });
        Self {
            questions: total,
            words: words.iter().map(|(text, copies)| text.len() * copies).sum(),
            distinct_1: distinct(&words, 1),
            distinct_2: distinct(&words, 2),
            self_bleu: self_bleu(&words),
            types: types.to_vec(),
        }
    }
}

/// Lower-case words: runs of letters, digits and inner apostrophes; other signs part them.
pub fn words(text: &str) -> Vec<String> {
    text.replace('’', "'")
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\'').to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Different n-grams over all n-grams of the texts; `None` where there are none.
fn distinct(texts: &[Repeated], n: usize) -> Option<f64> {
    let mut seen = HashSet::new();
    let mut all = 0usize;
    for (text, copies) in texts {
        for gram in text.windows(n.max(1)) {
            seen.insert(gram);
            all += copies;
        }
    }
    (all > 0).then(|| seen.len() as f64 / all as f64)
}

/// Most occurrences of an n-gram in one text, and in any other.
#[derive(Default)]
struct Most {
    count: usize,
    text: usize,
    elsewhere: usize,
}

impl Most {
    fn note(&mut self, text: usize, count: usize) {
        if count > self.count {
            self.elsewhere = self.count;
            (self.count, self.text) = (count, text);
        } else {
            self.elsewhere = self.elsewhere.max(count);
        }
    }

    fn in_others(&self, text: usize) -> usize {
        match self.text == text {
            true => self.elsewhere,
            false => self.count,
        }
    }
}

/// Mean over the texts of BLEU-4 with all other texts as references; orders without a match count
/// as 0.1 matches, as in nltk's `method1`. `None` for fewer than two texts.
///
/// The work is linear in the number of words, not quadratic in the number of texts, and copies of
/// a text cost nothing.
fn self_bleu(texts: &[Repeated]) -> Option<f64> {
    let total: usize = texts.iter().map(|(_, copies)| copies).sum();
    if total < 2 {
        return None;
    }
    let mut most: HashMap<&[String], Most> = HashMap::new();
    for (index, (text, copies)) in texts.iter().enumerate() {
        for order in 1..=ORDER {
            for (gram, count) in counts(text, order) {
                let known = most.entry(gram).or_default();
                known.note(index, count);
                if *copies > 1 {
                    // A copy is another text.
                    known.elsewhere = known.elsewhere.max(count);
                }
            }
        }
    }
    // Only whether a length is there once or more often counts.
    let mut lengths: Vec<usize> = texts
        .iter()
        .flat_map(|(text, copies)| std::iter::repeat_n(text.len(), (*copies).min(2)))
        .collect();
    lengths.sort_unstable();
    let sum: f64 = texts
        .iter()
        .enumerate()
        .map(|(index, (text, copies))| {
            let matched = |order| -> usize {
                let grams = counts(text, order).into_iter();
                grams
                    .map(|(gram, n)| n.min(most.get(gram).map_or(0, |m| m.in_others(index))))
                    .sum()
            };
            *copies as f64 * bleu(text.len(), matched, closest(&lengths, text.len()))
        })
        .sum();
    Some(sum / total as f64)
}

fn counts(text: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in text.windows(order) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// BLEU of one text of `length` words; `matched` counts the clipped matches of an order.
fn bleu(length: usize, matched: impl Fn(usize) -> usize, reference: usize) -> f64 {
    if matched(1) == 0 {
        return 0.0;
    }
    let logarithms: f64 = (1..=ORDER)
        .map(|order| {
            let possible = (length + 1).saturating_sub(order).max(1) as f64;
            let found = match matched(order) {
                0 => EPSILON,
                n => n as f64,
            };
            (found / possible).ln() / ORDER as f64
        })
        .sum();
    let brevity = match length > reference {
        true => 1.0,
        false => (1.0 - reference as f64 / length as f64).exp(),
    };
    brevity * logarithms.exp()
}

/// The length nearest to `length` among the others, the shorter of two equally near ones.
/// `sorted` holds all lengths, one of them this text's own.
fn closest(sorted: &[usize], length: usize) -> usize {
    let start = sorted.partition_point(|&l| l < length);
    let end = sorted.partition_point(|&l| l <= length);
    if end - start > 1 {
        return length; // Another text has the same length.
    }
    let shorter = start.checked_sub(1).map(|i| sorted[i]);
    match (shorter, sorted.get(end).copied()) {
        (Some(s), Some(l)) if l - length < length - s => l,
        (Some(s), _) => s,
        (None, l) => l.unwrap_or(length),
    }
}

/// Kinds of question, recognised by their words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionType {
    /// What or which.
    What,
    /// A place.
    Where,
    /// A number of things.
    HowMany,
    /// Begins with a form of be, have, do or a modal verb.
    YesNo,
    /// Options A, B … to choose from.
    MultipleChoice,
    /// Why, how come, what might: more than is seen.
    Reasoning,
    /// Everything else.
    Other,
}

/// Verbs that begin a question for yes or no.
const VERBS: [&str; 31] = [
    "is", "are", "was", "were", "am", "do", "does", "did", "has", "have", "had", "can", "could",
    "will", "would", "should", "shall", "may", "might", "must", "isn't", "aren't", "wasn't",
    "weren't", "don't", "doesn't", "didn't", "hasn't", "haven't", "can't", "won't",
];

/// Words that ask for more than what is seen.
const INFERENCE: [&str; 16] = [
    "why",
    "might",
    "could",
    "would",
    "explain",
    "infer",
    "inferred",
    "conclude",
    "concluded",
    "reason",
    "reasons",
    "purpose",
    "suggest",
    "suggests",
    "likely",
    "implications",
];

impl QuestionType {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::What,
        Self::Where,
        Self::HowMany,
        Self::YesNo,
        Self::MultipleChoice,
        Self::Reasoning,
        Self::Other,
    ];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::What => "what",
            Self::Where => "where",
            Self::HowMany => "how many",
            Self::YesNo => "yes-no",
            Self::MultipleChoice => "multiple choice",
            Self::Reasoning => "reasoning",
            Self::Other => "other",
        }
    }

    /// The kind of a question, by these rules in this order: options A and B; "how many" or "what …
    /// number of"; a verb of yes and no first, unless it asks "you" for something; a word of
    /// inference, or "how" before a verb; "where"; "what" or "which" among the first words.
    pub fn of(question: &str) -> Self {
        if has_options(question) {
            return Self::MultipleChoice;
        }
        let words = words(last_question(question));
        let word = |i: usize| words.get(i).map_or("", String::as_str);
        let has = |word: &str| words.iter().any(|w| w == word);
        let pair = |a: &str, b: &str| words.windows(2).any(|w| w[0] == a && w[1] == b);
        let begins = |list: &[&str]| words.iter().take(4).any(|w| list.contains(&w.as_str()));
        if pair("how", "many") || (has("what") && pair("number", "of")) {
            return Self::HowMany;
        }
        let asks_you = word(1) == "you" && word(0) != "do";
        if VERBS.contains(&word(0)) && !asks_you {
            return Self::YesNo;
        }
        let how = word(0) == "how" && VERBS.contains(&word(1)) && !["is", "are"].contains(&word(1));
        if how || INFERENCE.iter().any(|w| has(w)) && (!asks_you || has("explain")) {
            Self::Reasoning
        } else if begins(&["where"]) {
            Self::Where
        } else if begins(&["what", "what's", "which"]) {
            Self::What
        } else {
            Self::Other
        }
    }
}

/// The last sentence that ends with a question mark; the whole text if none does.
fn last_question(text: &str) -> &str {
    let Some(end) = text.rfind('?') else {
        return text;
    };
    let before = &text[..end];
    let marks = [". ", "! ", "? ", ".\n", "\n"];
    let start = marks
        .iter()
        .filter_map(|mark| Some(before.rfind(mark)? + mark.len()))
        .max();
    &before[start.unwrap_or(0)..]
}

/// Whether options A and B are in the text: `A.`, `A)`, `(A)` or `A:`.
fn has_options(text: &str) -> bool {
    let marked = |letter: char| {
        text.split_whitespace().any(|word| {
            let rest = word.strip_prefix('(').unwrap_or(word);
            let rest = rest.strip_prefix(letter).unwrap_or_default();
            rest.starts_with(['.', ')', ':'])
        })
    };
    marked('A') && marked('B')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(texts: &[&str]) -> Vec<Repeated> {
        texts.iter().map(|text| (words(text), 1)).collect()
    }

    #[test]
    fn words_are_lower_case_and_bare() {
        assert_eq!(
            words("What's the 'cat' doing—there, 3.5 times?"),
            ["what's", "the", "cat", "doing", "there", "3", "5", "times"]
        );
        assert!(words(" ?! '").is_empty());
    }

    #[test]
    fn distinct_grams_are_a_share() {
        // a b a b: words 2 of 4, pairs (a b) and (b a) of 3; a: one word more.
        let texts = split(&["a b a b", "a"]);
        assert!((distinct(&texts, 1).unwrap() - 2.0 / 5.0).abs() < 1e-12);
        assert!((distinct(&texts, 2).unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(distinct(&[], 2), None);
        assert_eq!(distinct(&split(&["alone"]), 2), None);
    }

    #[test]
    fn fault_29_copies_count_as_if_they_were_written_out() {
        let texts = [
            ("What color is the bus?", 3),
            ("Where is the bus parked now?", 1),
            ("Is the the red bus red?", 2),
            ("", 2),
            ("Why?", 1),
        ];
        let written: Vec<(&str, usize)> = texts
            .iter()
            .flat_map(|(text, copies)| vec![(*text, 1); *copies])
            .collect();
        let (short, long) = (Diversity::of(&texts), Diversity::of(&written));
        let (a, b) = (short.self_bleu.unwrap(), long.self_bleu.unwrap());
        assert!((a - b).abs() < 1e-12, "{a} {b}");
        assert_eq!(
            Diversity {
                self_bleu: None,
                ..short
            },
            Diversity {
                self_bleu: None,
                ..long
            }
        );
        // Written out, this would be 10¹² texts.
        let many = [("Is it red?", 1_000_000_000_000), ("Is it blue?", 1)];
        let found = Diversity::of(&many);
        assert_eq!(found.questions, 1_000_000_000_001);
        assert!(found.self_bleu.is_some());
    }

    /// Expected values: nltk 3.10.4, the mean over the texts of `sentence_bleu(others, text,
    /// smoothing_function=SmoothingFunction().method1)`.
    #[test]
    fn self_bleu_is_nltks() {
        for (texts, expected) in [
            (
                &[
                    "what color is the bus",
                    "what color is the car",
                    "where is the bus parked now",
                ][..],
                0.570562756899,
            ),
            (&["is it red", "is it red"][..], 0.562341325190),
            (
                &[
                    "the the the the cat",
                    "the cat",
                    "a dog",
                    "the the dog sat on the mat",
                ][..],
                0.164135915959,
            ),
            (
                &[
                    "How many people are in the picture?",
                    "How many dogs are in the picture?",
                    "Why?",
                    "What is the man on the left holding in his hand?",
                    "What is the woman on the left holding?",
                    "Is there a dog in the picture or is it a cat in the picture?",
                ][..],
                0.317169999380,
            ),
        ] {
            let found = self_bleu(&split(texts)).unwrap();
            assert!((found - expected).abs() < 1e-9, "{texts:?}: {found}");
        }
        assert_eq!(self_bleu(&split(&["alone"])), None);
    }

    #[test]
    fn kinds_are_told_by_their_words() {
        for (question, kind) in [
            ("What color is the bus?", QuestionType::What),
            (
                "<image>\nIn the photo, which animal is larger?",
                QuestionType::What,
            ),
            ("Where is the cat sitting?", QuestionType::Where),
            ("How many people are there?", QuestionType::HowMany),
            ("What is the number of chairs?", QuestionType::HowMany),
            ("Is the man wearing a hat?", QuestionType::YesNo),
            ("He looks up. Are there clouds?", QuestionType::YesNo),
            ("Do you see a dog?", QuestionType::YesNo),
            ("Can you describe the image?", QuestionType::Other),
            ("Can you explain the joke?", QuestionType::Reasoning),
            ("What might happen next?", QuestionType::Reasoning),
            ("Why is she smiling?", QuestionType::Reasoning),
            ("How does the light fall?", QuestionType::Reasoning),
            ("How old is the building?", QuestionType::Other),
            ("Who is on the left?", QuestionType::Other),
            (
                "What is it?\nA. a cat\nB. a dog\nAnswer with the option's letter.",
                QuestionType::MultipleChoice,
            ),
            ("Choose: (A) red (B) blue", QuestionType::MultipleChoice),
            ("Write a caption.", QuestionType::Other),
            ("", QuestionType::Other),
        ] {
            assert_eq!(QuestionType::of(question), kind, "{question}");
        }
    }

    #[test]
    fn a_list_is_summed_up() {
        let found = Diversity::of(&[("What is it?", 2), ("Where is it?", 1)]);
        assert_eq!((found.questions, found.words), (3, 9));
        assert!((found.distinct_1.unwrap() - 4.0 / 9.0).abs() < 1e-12);
        let what = found.types.iter().find(|t| t.kind == QuestionType::What);
        assert_eq!(what.unwrap().count, 2);
        let all: usize = found.types.iter().map(|t| t.count).sum();
        assert_eq!(all, 3);
    }
}
