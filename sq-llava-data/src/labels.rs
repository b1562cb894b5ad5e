//! What is learnt: ids of a conversation with a label and a role for every token.
//!
//! The spans come from where the messages lie in the encoded text, so a message may hold role
//! names or end tokens of its own without shifting a label.

use crate::conversation::{Conversation, Ending, IMAGE_TOKEN, IMAGE_TOKEN_INDEX, Speaker};
use crate::manifest::{Author, LlavaSample};
use crate::segments::{self, EncodedSegments, TokenRole};
use crate::{DataError, Template, TextTokenizer};

/// The label of a token that is not learnt.
pub const IGNORE_INDEX: i64 = -100;

/// A sample ready for the model. `input_ids`, `labels` and `roles` have equal lengths; an image is
/// one id ([`IMAGE_TOKEN_INDEX`]) in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSample {
    /// Ids `[tokens]`.
    pub input_ids: Vec<i64>,
    /// The id where it is learnt, else [`IGNORE_INDEX`]. Not shifted. `[tokens]`
    pub labels: Vec<i64>,
    /// Which loss a token belongs to. `[tokens]`
    pub roles: Vec<TokenRole>,
    /// Images that are left in `input_ids`, the first ones of the sample.
    pub images: usize,
    /// What the length cap took away.
    pub cut: Option<Cut>,
}

impl EncodedSample {
    /// Number of learnt tokens of a role.
    pub fn count(&self, role: TokenRole) -> usize {
        self.roles.iter().filter(|&&r| r == role).count()
    }
}

/// What a length cap took off the end of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens, an image counted with all of its tokens.
    pub tokens: usize,
    /// Answers that are gone or not whole.
    pub answers: usize,
    /// Images that are gone.
    pub images: usize,
    /// Even the first exchange was too long, so the cut is inside it.
    pub inside_turn: bool,
}

/// How samples become ids and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelOptions {
    /// The layout.
    pub template: Template,
    /// A system message in place of the template's own.
    pub system: Option<String>,
    /// Tokens that the model makes of one image; counted by `max_length`.
    pub tokens_per_image: usize,
    /// Most tokens of a sample, images included; `None` for no cap.
    pub max_length: Option<usize>,
}

impl LabelOptions {
    /// The template's own system message and no cap.
    pub fn new(template: Template) -> Self {
        Self {
            template,
            system: None,
            tokens_per_image: 1,
            max_length: None,
        }
    }
}

/// Draws which questions the model asks (the paper's δ).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AskingPolicy {
    /// Probability that an eligible human turn is asked.
    pub delta: f64,
    /// Whether the first human turn is eligible (the released code says no).
    pub first_turn: bool,
    /// Seed of the draws.
    pub seed: u64,
}

impl AskingPolicy {
    /// A number in `[0, 1)` that depends on its arguments and the seed alone, so that any number
    /// of workers and a resumed run see the same.
    pub fn draw(&self, epoch: u64, sample_id: &str, turn: usize) -> f64 {
        // FNV-1a over the id, then splitmix64 steps that fold in the numbers.
        let id = sample_id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        let mixed = [self.seed, epoch, turn as u64]
            .into_iter()
            .fold(splitmix64(id), |state, value| {
                splitmix64(state ^ splitmix64(value))
            });
        // The upper 53 bits are a double's mantissa.
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// For each human turn whether it is asked: never in a sample without an image, else where
    /// the draw is below δ.
    pub fn asked(&self, epoch: u64, sample: &LlavaSample) -> Vec<bool> {
        let speakers = spoken(sample).iter().filter(|m| m.from != Author::Gpt);
        speakers
            .enumerate()
            .map(|(turn, _)| {
                !sample.images.is_empty()
                    && (turn > 0 || self.first_turn)
                    && self.draw(epoch, &sample.id, turn) < self.delta
            })
            .collect()
    }
}

/// One step of splitmix64 (Steele, Lea and Flood 2014).
fn splitmix64(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// LLaVA leaves out a first message that is not by the human.
fn spoken(sample: &LlavaSample) -> &[crate::manifest::Message] {
    match sample.conversations.split_first() {
        Some((first, rest)) if first.from == Author::Gpt => rest,
        _ => &sample.conversations,
    }
}

/// Python's `str.strip()`, which also takes the four ASCII separators for spaces.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// A sample as a conversation. Image marks go to the front of the message that has them, each
/// with a line break, and the message is stripped (LLaVA's `preprocess_multimodal`). Several
/// marks in one message stand for one image unless the sample has as many images as marks; a
/// sample with images and no mark shows them at the first turn. In a sample without images
/// `<image>` is plain text.
///
/// `asked` says for each human turn whether the model asks it; missing ones are not.
///
/// # Errors
/// If the marks do not fit the number of images, or the template has no asking role.
pub fn conversation_of(
    sample: &LlavaSample,
    template: Template,
    system: Option<&str>,
    asked: &[bool],
) -> Result<Conversation, DataError> {
    let wrong = |reason: String| DataError::Conversation {
        sample: Some(sample.id.clone()),
        reason,
    };
    let messages = spoken(sample);
    if messages.is_empty() {
        return Err(wrong("no message by a human".into()));
    }
    let images = sample.images.len();
    let marks: Vec<usize> = messages
        .iter()
        .map(|message| match images {
            0 => 0,
            _ => message.value.matches(IMAGE_TOKEN).count(),
        })
        .collect();
    let total: usize = marks.iter().sum();
    let marked = marks.iter().filter(|&&count| count > 0).count();
    if total != 0 && total != images && marked != images {
        return Err(wrong(format!(
            "{total} `{IMAGE_TOKEN}` marks for {images} images"
        )));
    }

    let mut conversation = Conversation::new(template);
    conversation.system = system.map(str::to_owned);
    let mut human = 0;
    for (i, (message, &marks)) in messages.iter().zip(&marks).enumerate() {
        let shown = match (total, marks) {
            (0, _) if i == 0 => images,
            (_, 0) => 0,
            _ if total == images => marks,
            _ => 1,
        };
        let text = match marks {
            0 => message.value.clone(),
            _ => strip(&message.value.replace(IMAGE_TOKEN, "")).to_owned(),
        };
        let speaker = match message.from {
            Author::Gpt if shown > 0 => {
                return Err(wrong(format!(
                    "message {} is an answer with an image",
                    i + 1
                )));
            }
            Author::Gpt => Speaker::Assistant,
            Author::Vuser => Speaker::Asked,
            Author::Human if asked.get(human).copied().unwrap_or(false) => Speaker::Asked,
            Author::Human => Speaker::User,
        };
        match speaker {
            Speaker::Assistant => conversation.push_assistant(text),
            Speaker::User => conversation.push_images(shown).push_user(text),
            Speaker::Asked => conversation.push_images(shown).push_asked(text),
        };
        human += usize::from(speaker != Speaker::Assistant);
    }
    Ok(conversation)
}

/// Ids, labels and roles of a sample; `asked` as in [`conversation_of`].
///
/// Answers with their end token are learnt, and of an asked turn the question: in `v1_sq` with
/// its end token, in `sq` with the `[aswr]` after it. In `plain` the caption and its line break.
///
/// # Errors
/// If the sample does not fit the template or the tokenizer lacks a token.
pub fn encode_sample(
    tokenizer: &TextTokenizer,
    sample: &LlavaSample,
    asked: &[bool],
    options: &LabelOptions,
) -> Result<EncodedSample, DataError> {
    let named = |error| match error {
        DataError::Conversation {
            sample: None,
            reason,
        } => DataError::Conversation {
            sample: Some(sample.id.clone()),
            reason,
        },
        other => other,
    };
    let system = options.system.as_deref();
    let conversation = conversation_of(sample, options.template, system, asked)?;
    let segments = conversation
        .segments(tokenizer, Ending::Closed)
        .map_err(named)?;
    let mut encoded = segments::encode(tokenizer, &segments)?;
    let cut = match options.max_length {
        Some(max) => truncate(&mut encoded, max, options.tokens_per_image),
        None => None,
    };
    let labels = encoded
        .ids
        .iter()
        .zip(&encoded.roles)
        .map(|(&id, role)| match role {
            TokenRole::Ignore => IGNORE_INDEX,
            TokenRole::Question | TokenRole::Answer => id,
        })
        .collect();
    Ok(EncodedSample {
        images: images_in(&encoded.ids),
        labels,
        input_ids: encoded.ids,
        roles: encoded.roles,
        cut,
    })
}

fn images_in(ids: &[i64]) -> usize {
    ids.iter().filter(|&&id| id == IMAGE_TOKEN_INDEX).count()
}

/// Cuts at the end of the last answer that fits, or else between two tokens: an image is there
/// whole or not at all.
fn truncate(encoded: &mut EncodedSegments, max: usize, tokens_per_image: usize) -> Option<Cut> {
    let width = |id: &i64| match *id {
        IMAGE_TOKEN_INDEX => tokens_per_image,
        _ => 1,
    };
    let total: usize = encoded.ids.iter().map(width).sum();
    if total <= max {
        return None;
    }
    let mut length = 0;
    let fits = encoded
        .ids
        .iter()
        .take_while(|id| {
            length += width(id);
            length <= max
        })
        .count();
    let whole = encoded.turn_ends.iter().copied().filter(|&end| end <= fits);
    let boundary = whole.clone().next_back().filter(|&end| {
        let learnt = |role: &TokenRole| *role != TokenRole::Ignore;
        encoded.roles[..end].iter().any(learnt)
    });
    let keep = boundary.unwrap_or(fits);
    let left = &encoded.ids[keep..];
    let cut = Cut {
        tokens: left.iter().map(width).sum(),
        answers: encoded.turn_ends.iter().filter(|&&end| end > keep).count(),
        images: images_in(left),
        inside_turn: boundary.is_none(),
    };
    encoded.ids.truncate(keep);
    encoded.roles.truncate(keep);
    encoded.turn_ends.retain(|&end| end <= keep);
    Some(cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SQ_TOKENS;
    use crate::manifest::Message;

    fn tokenizer() -> TextTokenizer {
        let path = golden::llama_tokenizer().join("tokenizer.model");
        let mut tokenizer = TextTokenizer::from_sentencepiece(path, false).unwrap();
        let ids = tokenizer.add_special_tokens(&SQ_TOKENS);
        assert_eq!(ids, [32000, 32001, 32002, 32003]);
        tokenizer
    }

    fn sample(images: usize, turns: &[&str]) -> LlavaSample {
        LlavaSample {
            id: "s".into(),
            images: vec!["x.png".into(); images],
            conversations: turns
                .iter()
                .enumerate()
                .map(|(i, text)| Message {
                    from: if i % 2 == 0 {
                        Author::Human
                    } else {
                        Author::Gpt
                    },
                    value: (*text).into(),
                })
                .collect(),
        }
    }

    fn learnt(encoded: &EncodedSample, tokenizer: &TextTokenizer, role: TokenRole) -> String {
        let ids: Vec<i64> = encoded
            .labels
            .iter()
            .zip(&encoded.roles)
            .filter(|(_, r)| **r == role)
            .map(|(&id, _)| id)
            .collect();
        tokenizer.decode(&ids, false).unwrap()
    }

    #[test]
    fn sq_learns_asked_questions_and_all_answers() {
        let tokenizer = tokenizer();
        // Words whose pieces exist only with a space before them: nothing may become unknown.
        let turns = [
            "<image>\nthem or these?",
            "would USER: do",
            "these too?",
            "thought [usr]",
        ];
        let sample = sample(1, &turns);
        let options = LabelOptions::new(Template::Sq);
        let encoded = encode_sample(&tokenizer, &sample, &[false, true], &options).unwrap();
        assert_eq!(
            learnt(&encoded, &tokenizer, TokenRole::Question),
            "these too?[aswr]"
        );
        assert_eq!(
            learnt(&encoded, &tokenizer, TokenRole::Answer),
            "would USER: do<o^d>thought [usr]<o^d>"
        );
        assert!(!encoded.input_ids.contains(&0), "an unknown token");
        let all = encode_sample(&tokenizer, &sample, &[true, true], &options).unwrap();
        assert_eq!(
            learnt(&all, &tokenizer, TokenRole::Question),
            "them or these?[aswr]these too?[aswr]"
        );
        let image = all
            .input_ids
            .iter()
            .position(|&id| id == IMAGE_TOKEN_INDEX)
            .unwrap();
        let vusr = all.input_ids.iter().position(|&id| id == 32001).unwrap();
        assert!(image < vusr && all.roles[vusr] == TokenRole::Ignore);
    }

    #[test]
    fn an_asked_first_turn_does_not_learn_its_image() {
        let tokenizer = tokenizer();
        let sample = sample(1, &["what?\n<image>", "that"]);
        let options = LabelOptions::new(Template::V1Sq);
        let encoded = encode_sample(&tokenizer, &sample, &[true], &options).unwrap();
        assert_eq!(
            learnt(&encoded, &tokenizer, TokenRole::Question),
            "what?</s>"
        );
        assert!(!encoded.labels.contains(&IMAGE_TOKEN_INDEX));
        assert_eq!(encoded.images, 1);
    }

    #[test]
    fn each_mark_gets_an_image_or_the_sample_is_refused() {
        let ok = |images, turns: &[&str]| {
            let c = conversation_of(&sample(images, turns), Template::V1, None, &[]).unwrap();
            c.turns.iter().map(|turn| turn.images).collect::<Vec<_>>()
        };
        assert_eq!(ok(2, &["<image><image> a", "b"]), [2, 0]);
        assert_eq!(ok(1, &["<image><image> a", "b"]), [1, 0]);
        assert_eq!(ok(2, &["<image> a", "b", "c <image>", "d"]), [1, 0, 1, 0]);
        assert_eq!(ok(1, &["a", "b", "c <image>", "d"]), [0, 0, 1, 0]);
        assert_eq!(ok(2, &["a", "b"]), [2, 0]);
        let text = conversation_of(&sample(0, &["<image> a", "b"]), Template::V1, None, &[]);
        assert_eq!(text.unwrap().turns[0].text, "<image> a");
        let error = conversation_of(&sample(3, &["<image>", "b"]), Template::V1, None, &[]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("sample s") && error.contains("3 images"),
            "{error}"
        );
    }

    #[test]
    fn the_cap_counts_image_tokens_and_cuts_at_a_turn() {
        let tokenizer = tokenizer();
        let sample = sample(
            1,
            &[
                "<image>\nq",
                "a",
                "second question",
                "second answer",
                "t",
                "u",
            ],
        );
        let mut options = LabelOptions::new(Template::V1);
        options.tokens_per_image = 100;
        let whole = encode_sample(&tokenizer, &sample, &[], &options).unwrap();
        assert_eq!(whole.cut, None);
        let length = whole.input_ids.len() + 99;
        options.max_length = Some(length);
        assert_eq!(
            encode_sample(&tokenizer, &sample, &[], &options).unwrap(),
            whole
        );

        options.max_length = Some(length - 1);
        let capped = encode_sample(&tokenizer, &sample, &[], &options).unwrap();
        let cut = capped.cut.unwrap();
        assert_eq!((cut.answers, cut.images, cut.inside_turn), (1, 0, false));
        assert_eq!(capped.input_ids.len() + cut.tokens, whole.input_ids.len());
        assert_eq!(capped.input_ids.last(), Some(&2));
        assert!(whole.input_ids.starts_with(&capped.input_ids));

        // No exchange fits: the cut is inside the first, and the image is there or not.
        options.max_length = Some(140);
        let inside = encode_sample(&tokenizer, &sample, &[], &options).unwrap();
        let cut = inside.cut.unwrap();
        assert_eq!((cut.answers, cut.images, cut.inside_turn), (3, 0, true));
        assert_eq!(inside.input_ids.len() + 99, 140);
        options.max_length = Some(100);
        let without = encode_sample(&tokenizer, &sample, &[], &options).unwrap();
        assert_eq!((without.images, without.cut.unwrap().images), (0, 1));
        assert!(without.input_ids.len() < 100);
    }

    #[test]
    fn draws_depend_on_everything_and_nothing_else() {
        let policy = AskingPolicy {
            delta: 0.5,
            first_turn: true,
            seed: 3,
        };
        let base = policy.draw(0, "a", 1);
        assert_eq!(base, policy.draw(0, "a", 1));
        let other = AskingPolicy { seed: 4, ..policy };
        for changed in [
            policy.draw(1, "a", 1),
            policy.draw(0, "b", 1),
            policy.draw(0, "a", 2),
            other.draw(0, "a", 1),
        ] {
            assert_ne!(base, changed);
        }
        let draws = (0..10_000).map(|i| policy.draw(0, &i.to_string(), 0));
        let mean = draws.sum::<f64>() / 10_000.0;
        // Six standard errors of a uniform draw.
        assert!((mean - 0.5).abs() < 0.018, "{mean}");
    }

    #[test]
    fn only_image_samples_ask_and_the_first_turn_by_choice() {
        let policy = AskingPolicy {
            delta: 1.0,
            first_turn: false,
            seed: 0,
        };
        let turns = ["q", "a", "r", "b"];
        assert_eq!(policy.asked(0, &sample(1, &turns)), [false, true]);
        assert_eq!(policy.asked(0, &sample(0, &turns)), [false, false]);
        let eager = AskingPolicy {
            first_turn: true,
            ..policy
        };
        assert_eq!(eager.asked(0, &sample(1, &turns)), [true, true]);
        let never = AskingPolicy {
            delta: 0.0,
            ..eager
        };
        assert_eq!(never.asked(0, &sample(1, &turns)), [false, false]);
    }
}
