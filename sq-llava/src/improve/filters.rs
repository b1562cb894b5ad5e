//! Which of the pairs that a model made for itself are trained on.

use std::collections::{BTreeSet, HashMap};

use clap::Args;
use serde::Serialize;

use super::candidate::{Candidate, PictureAsked, plain};

/// Reasons to leave a pair out, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Question or answer is empty, or most answers were cut at their limit. Has no switch.
    Unfinished,
    /// The answers that were drawn do not agree.
    Agreement,
    /// The answer is the same with other pictures.
    Picture,
    /// The question holds its answer.
    Given,
    /// Question and answer are too far from the picture, as CLIP sees it.
    Clip,
    /// Nearly the same has been asked about the picture.
    Duplicate,
    /// There are enough questions of the kind.
    Share,
}

impl Filter {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Unfinished,
        Self::Agreement,
        Self::Picture,
        Self::Given,
        Self::Clip,
        Self::Duplicate,
        Self::Share,
    ];

    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unfinished => "unfinished",
            Self::Agreement => "agreement",
            Self::Picture => "picture",
            Self::Given => "given",
            Self::Clip => "clip",
            Self::Duplicate => "duplicate",
            Self::Share => "share",
        }
    }
}

/// The filters' limits.
#[derive(Debug, Clone, Copy, PartialEq, Args, Serialize)]
pub struct Filters {
    /// Smallest part of the drawn answers that must be the same; 0 switches this filter off.
    #[arg(long, value_name = "PART", default_value_t = Filters::DEFAULT.agreement)]
    pub agreement: f64,
    /// Largest part of the other pictures that may lead to the same answer: a question that needs
    /// no picture teaches nothing about pictures; 1 switches this filter off.
    #[arg(long, value_name = "PART", default_value_t = Filters::DEFAULT.elsewhere)]
    pub elsewhere: f64,
    /// Keep questions that hold their own answer.
    #[arg(long)]
    pub keep_given: bool,
    /// Smallest CLIPScore (2.5 · cosine) of question and answer together, where --clip is given; 0
    /// switches this filter off.
    #[arg(long, value_name = "SCORE", default_value_t = Filters::DEFAULT.clip_score)]
    pub clip_score: f64,
    /// Largest likeness of two questions about a picture: words in common / words of either; 1
    /// leaves out equal ones alone.
    #[arg(long, value_name = "PART", default_value_t = Filters::DEFAULT.likeness)]
    pub likeness: f64,
    /// Largest part that questions of one kind (the same first two words) may have; 1 switches this
    /// filter off.
    #[arg(long, value_name = "PART", default_value_t = Filters::DEFAULT.share)]
    pub share: f64,
}

/// A pair with what became of it: its place, and the first filter that leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Index of the picture.
    pub picture: usize,
    /// Index of the pair among those of the picture.
    pub pair: usize,
    /// `None` if it is kept.
    pub dropped: Option<Filter>,
}

impl Filters {
    /// What they are unless told otherwise.
    pub const DEFAULT: Self = Self {
        agreement: 0.8,
        elsewhere: 0.7,
        keep_given: false,
        clip_score: 0.4,
        likeness: 0.8,
        share: 0.3,
    };

    /// Everything passes that is whole.
    pub const OFF: Self = Self {
        agreement: 0.0,
        elsewhere: 1.0,
        keep_given: true,
        clip_score: 0.0,
        likeness: f64::INFINITY,
        share: 1.0,
    };

    /// The same with one of them alone switched on.
    pub fn only(self, filter: Filter) -> Self {
        let mut one = Self::OFF;
        match filter {
            Filter::Unfinished => {}
            Filter::Agreement => one.agreement = self.agreement,
            Filter::Picture => one.elsewhere = self.elsewhere,
            Filter::Given => one.keep_given = self.keep_given,
            Filter::Clip => one.clip_score = self.clip_score,
            Filter::Duplicate => one.likeness = self.likeness,
            Filter::Share => one.share = self.share,
        }
        one
    }

    /// Says which limit cannot be used.
    pub fn validate(&self) -> Result<(), String> {
        let parts = [
            ("--agreement", self.agreement),
            ("--elsewhere", self.elsewhere),
            ("--likeness", self.likeness),
            ("--share", self.share),
        ];
        for (name, part) in parts {
            if !(0.0..=1.0).contains(&part) {
                return Err(format!("{name} is {part}; it is a part, from 0 to 1"));
            }
        }
        if !(0.0..=2.5).contains(&self.clip_score) {
            let score = self.clip_score;
            return Err(format!(
                "--clip-score is {score}; a CLIPScore is from 0 to 2.5"
            ));
        }
        if self.share == 0.0 {
            return Err("--share 0 leaves nothing to train on".into());
        }
        Ok(())
    }

    /// Looks at every pair, picture by picture. What stands alone is looked at first; of pairs that
    /// pass, those drawn from more agreement and more often go before others.
    pub fn judge(&self, pictures: &[PictureAsked]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (picture, asked) in pictures.iter().enumerate() {
            let first = verdicts.len();
            verdicts.extend(
                asked
                    .pairs
                    .iter()
                    .enumerate()
                    .map(|(pair, candidate)| Verdict {
                        picture,
                        pair,
                        dropped: self.alone(candidate),
                    }),
            );
            self.leave_out_likenesses(&asked.pairs, &mut verdicts[first..]);
        }
        self.leave_out_frequent(pictures, &mut verdicts);
        verdicts
    }

    /// The first filter that leaves out a pair whatever else there is.
    fn alone(&self, pair: &Candidate) -> Option<Filter> {
        let far = pair.clip_score.is_some_and(|score| score < self.clip_score);
        let reasons = [
            (Filter::Unfinished, !pair.is_whole()),
            (Filter::Agreement, pair.agreement < self.agreement),
            (
                Filter::Picture,
                // What was never put to another picture has not been tried.
                self.elsewhere < 1.0 && pair.elsewhere.is_none_or(|part| part > self.elsewhere),
            ),
            (
                Filter::Given,
                !self.keep_given && holds_answer(&pair.question, &pair.answer),
            ),
            (Filter::Clip, far),
        ];
        let found = reasons.into_iter().find(|(_, holds)| *holds);
        found.map(|(filter, _)| filter)
    }

    fn leave_out_likenesses(&self, pairs: &[Candidate], verdicts: &mut [Verdict]) {
        let mut kept: Vec<BTreeSet<String>> = Vec::new();
        for index in best_first(verdicts, |verdict| &pairs[verdict.pair]) {
            let words = words(&pairs[verdicts[index].pair].question);
            let like = |other: &BTreeSet<String>| {
                let common = words.intersection(other).count() as f64;
                let all = words.union(other).count().max(1) as f64;
                common / all
            };
            let most = kept.iter().map(like).fold(0.0, f64::max);
            // Equal ones are never of use, unless all of this is off.
            if most > self.likeness || (most == 1.0 && self.likeness <= 1.0) {
                verdicts[index].dropped = Some(Filter::Duplicate);
            } else {
                kept.push(words);
            }
        }
    }

    fn leave_out_frequent(&self, pictures: &[PictureAsked], verdicts: &mut [Verdict]) {
        let order = best_first(verdicts, |verdict| {
            &pictures[verdict.picture].pairs[verdict.pair]
        });
        let kind = |index: usize| {
            let Verdict { picture, pair, .. } = verdicts[index];
            kind(&pictures[picture].pairs[pair].question)
        };
        let kinds: Vec<String> = order.iter().map(|&index| kind(index)).collect();
        let mut all: HashMap<&str, usize> = HashMap::new();
        for kind in &kinds {
            *all.entry(kind).or_default() += 1;
        }
        let most = most_of_a_kind(all.values().copied().collect(), self.share);
        let mut kept: HashMap<&str, usize> = HashMap::new();
        for (index, kind) in order.into_iter().zip(&kinds) {
            let count = kept.entry(kind).or_default();
            *count += 1;
            if *count > most {
                verdicts[index].dropped = Some(Filter::Share);
            }
        }
    }
}

/// The largest number that no kind may exceed so that none has more than its share of what is then
/// kept; where there are too few kinds for that, what the rarest has.
fn most_of_a_kind(counts: Vec<usize>, share: f64) -> usize {
    let rarest = counts.iter().copied().min().unwrap_or(0);
    let largest = counts.iter().copied().max().unwrap_or(0);
    let holds = |most: &usize| {
        let kept: usize = counts.iter().map(|count| count.min(most)).sum();
        *most as f64 <= share * kept as f64
    };
    // A larger limit keeps a smaller part of the others.
    let (mut low, mut high) = (rarest, largest);
    if holds(&largest) {
        return largest;
    }
    while low + 1 < high {
        let middle = low.midpoint(high);
        if holds(&middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Indices of what is kept so far; equal ones as they stand.
fn best_first<'a>(verdicts: &[Verdict], pair: impl Fn(&Verdict) -> &'a Candidate) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..verdicts.len())
        .filter(|&index| verdicts[index].dropped.is_none())
        .collect();
    kept.sort_by(|&a, &b| {
        let [a, b] = [a, b].map(|index| pair(&verdicts[index]));
        b.agreement
            .total_cmp(&a.agreement)
            .then(b.drawn.cmp(&a.drawn))
    });
    kept
}

/// What a question is counted under: its first two words.
pub fn kind(question: &str) -> String {
    let words = plain(question);
    let mut words = words.split_whitespace();
    let two = [words.next(), words.next()];
    two.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn words(text: &str) -> BTreeSet<String> {
    plain(text).split_whitespace().map(Into::into).collect()
}

/// Whether the question's sentence, without options that follow in lines of their own, has all
/// words of the answer. Yes, no, and the letter of an option say nothing by themselves.
fn holds_answer(question: &str, answer: &str) -> bool {
    let sentence = words(question.trim_start().lines().next().unwrap_or_default());
    let mut answer = words(answer);
    for little in ["a", "an", "the", "at", "in", "on", "of", "is", "are", "it"] {
        answer.remove(little);
    }
    let letter = |word: &String| word.chars().count() == 1 && word.chars().all(char::is_alphabetic);
    let says = |word: &String| !letter(word) && word != "yes" && word != "no";
    !answer.is_empty() && answer.iter().any(says) && answer.is_subset(&sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::improve::candidate::sure as pair;

    fn picture(pairs: Vec<Candidate>) -> PictureAsked {
        PictureAsked {
            image: "a.png".into(),
            description: None,
            pairs,
            error: None,
        }
    }

    fn judged(filters: Filters, pairs: Vec<Candidate>) -> Vec<Option<Filter>> {
        let verdicts = filters.judge(&[picture(pairs)]);
        verdicts.into_iter().map(|v| v.dropped).collect()
    }

    #[test]
    fn each_filter_leaves_out_its_poison_and_alone_that() {
        let good = || pair("Where is the red circle?", "at the top");
        let poisons = [
            (Filter::Unfinished, pair("Where is it?", " ")),
            (
                Filter::Unfinished,
                Candidate {
                    cut: true,
                    ..pair("What is seen here?", "a long story")
                },
            ),
            (
                Filter::Agreement,
                Candidate {
                    agreement: 0.6,
                    ..pair("What color is the star?", "green")
                },
            ),
            (
                Filter::Picture,
                Candidate {
                    elsewhere: Some(1.0),
                    ..pair("What follows after three?", "four")
                },
            ),
            (Filter::Given, pair("What color is the red star?", "Red.")),
            (
                Filter::Clip,
                Candidate {
                    clip_score: Some(0.1),
                    ..pair("Which animal is shown?", "a zebra")
                },
            ),
            (Filter::Duplicate, pair("where is the  red circle", "there")),
        ];
        for (filter, poison) in poisons {
            let all = Filters::DEFAULT;
            assert_eq!(
                judged(Filters { share: 1.0, ..all }, vec![good(), poison.clone()]),
                [None, Some(filter)]
            );
            assert_eq!(
                judged(all.only(filter), vec![good(), poison.clone()]),
                [None, Some(filter)]
            );
            let others = Filter::ALL.into_iter().filter(|&other| other != filter);
            for other in others.filter(|_| filter != Filter::Unfinished) {
                let found = judged(all.only(other), vec![good(), poison.clone()]);
                assert_ne!(found[1], Some(filter), "{other:?} is another filter");
                if other != Filter::Share {
                    assert_eq!(found, [None, None], "{other:?}");
                }
            }
        }
    }

    #[test]
    fn no_kind_has_more_than_its_share_and_the_surest_stay() {
        let ask = |n: usize, agreement| Candidate {
            agreement,
            ..pair(
                &format!("How many things of kind {n} {n}x {n}y are there?"),
                "two",
            )
        };
        let mut pairs: Vec<_> = (0..6).map(|n| ask(n, 0.9)).collect();
        pairs[4].agreement = 1.0;
        pairs.extend([
            pair("Where is the dog?", "left"),
            pair("Is it big?", "yes"),
            pair("Is it red?", "no"),
            pair("What is it?", "a dog"),
        ]);
        let filters = Filters {
            share: 0.4,
            ..Filters::OFF
        };
        let found = judged(filters, pairs);
        // Two of six are less than four tenths; three would be three of seven.
        let kept: Vec<_> = (0..10).filter(|&i| found[i].is_none()).collect();
        assert_eq!(kept, [0, 4, 6, 7, 8, 9]);
        let dropped = found.iter().flatten();
        assert!(dropped.clone().all(|f| *f == Filter::Share) && dropped.count() == 4);
        assert_eq!(
            most_of_a_kind(vec![5, 5], 0.3),
            5,
            "two kinds have half each"
        );
        assert_eq!(most_of_a_kind(vec![50, 2], 0.3), 2);
        assert_eq!(most_of_a_kind(vec![], 0.3), 0);
    }

    #[test]
    fn an_answer_in_the_question_is_found_by_whole_words() {
        for (question, answer, held) in [
            ("What color is the red circle?", "red", true),
            ("Is the dog at the left?", "at the left", true),
            ("Is there a red circle?", "yes", false),
            ("Is there no circle?", "no", false),
            ("What color is it?\nA. red\nB. blue", "A", false),
            ("What color is it?\nA. red\nB. blue", "red", false),
            ("Is it coloured?", "red", false),
            ("How many circles are there?", "are there", true),
            ("How many circles are there?", "are", false),
            ("", "red", false),
        ] {
            assert_eq!(holds_answer(question, answer), held, "{question} {answer}");
        }
    }

    #[test]
    fn limits_outside_their_range_are_refused() {
        let all = Filters::DEFAULT;
        all.validate().unwrap();
        let bad = |filters: Filters| filters.validate().unwrap_err();
        let error = bad(Filters { share: 1.5, ..all });
        assert!(error.contains("--share"));
        assert!(bad(Filters { share: 0.0, ..all }).contains("nothing"));
        let nan = bad(Filters {
            agreement: f64::NAN,
            ..all
        });
        assert!(nan.contains("--agreement"));
        let clip = Filters {
            clip_score: 3.0,
            ..all
        };
        assert!(bad(clip).contains("--clip-score"));
    }
}
