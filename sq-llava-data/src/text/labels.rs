//! What is learnt: ids of a conversation with a label and a role for every token.
//!
//! The spans come from where the messages lie in the encoded text, so a message may hold role
//! names or end tokens of its own without shifting a label.

use crate::manifest::LlavaSample;
use crate::text::conversation::{Ending, IMAGE_TOKEN_INDEX};
use crate::text::sample::conversation_of;
use crate::text::segments::{EncodedSegments, TokenRole};
use crate::{DataError, Layout, TextTokenizer};

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
    pub template: Layout,
    /// A system message in place of the template's own.
    pub system: Option<String>,
    /// Tokens that the model makes of one image; counted by `max_length`.
    pub tokens_per_image: usize,
    /// Most tokens of a sample, images included; `None` for no cap.
    pub max_length: Option<usize>,
    /// See [`Conversation::spoken_end_tokens`](crate::Conversation::spoken_end_tokens).
    pub spoken_end_tokens: bool,
}

impl LabelOptions {
    /// The template's own system message and no cap.
    pub fn new(template: impl Into<Layout>) -> Self {
        Self {
            template: template.into(),
            system: None,
            tokens_per_image: 1,
            max_length: None,
            spoken_end_tokens: false,
        }
    }
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
    let tokens = vec![options.tokens_per_image; sample.images.len()];
    encode_sample_with_images(tokenizer, sample, asked, &tokens, options)
}

/// As [`encode_sample`], with the number of tokens of each image of the sample in place of
/// [`LabelOptions::tokens_per_image`].
///
/// # Errors
/// As [`encode_sample`].
pub fn encode_sample_with_images(
    tokenizer: &TextTokenizer,
    sample: &LlavaSample,
    asked: &[bool],
    image_tokens: &[usize],
    options: &LabelOptions,
) -> Result<EncodedSample, DataError> {
    let named = |error| {
        let reason = match error {
            DataError::Conversation {
                sample: None,
                reason,
            } => reason,
            error @ (DataError::NoAskingRole(_) | DataError::ChatTemplate(_)) => error.to_string(),
            DataError::Encoding(reason) => reason,
            other => return other,
        };
        DataError::Conversation {
            sample: Some(sample.id.clone()),
            reason,
        }
    };
    let system = options.system.as_deref();
    let mut conversation = conversation_of(sample, options.template.clone(), system, asked)?;
    conversation.spoken_end_tokens = options.spoken_end_tokens;
    let encoded = conversation.encode(tokenizer, Ending::Closed);
    let mut encoded = encoded.map_err(named)?;
    let cut = match options.max_length {
        Some(max) => truncate(&mut encoded, max, image_tokens),
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
fn truncate(encoded: &mut EncodedSegments, max: usize, image_tokens: &[usize]) -> Option<Cut> {
    // An image without a number, which no sample has, is one token.
    let mut images = image_tokens.iter();
    let width = |&id: &i64| match id {
        IMAGE_TOKEN_INDEX => images.next().copied().unwrap_or(1),
        _ => 1,
    };
    let widths: Vec<usize> = encoded.ids.iter().map(width).collect();
    let total: usize = widths.iter().sum();
    if total <= max {
        return None;
    }
    let mut length = 0;
    let fits = widths
        .iter()
        .take_while(|&&width| {
            length += width;
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
        tokens: widths[keep..].iter().sum(),
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
    use crate::manifest::{Author, Message};
    use crate::{SQ_TOKENS, Template};

    fn tokenizer() -> TextTokenizer {
        let path = golden::llama_tokenizer().join("tokenizer.model");
        let mut tokenizer = TextTokenizer::from_sentencepiece(path, false).unwrap();
        let ids = tokenizer.add_special_tokens(&SQ_TOKENS).unwrap();
        assert_eq!(ids, [32000, 32001, 32002, 32003]);
        tokenizer
    }

    fn sample(images: usize, turns: &[&str]) -> LlavaSample {
        LlavaSample {
            id: "s".into(),
            images: vec!["x.png".into(); images],
            system: None,
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
    fn each_image_counts_with_its_own_tokens() {
        let tokenizer = tokenizer();
        let sample = sample(2, &["<image>\nq", "a", "<image>\nr", "b"]);
        let mut options = LabelOptions::new(Template::V1);
        let mut encode = |tokens: &[usize], most: usize| {
            options.max_length = Some(most);
            encode_sample_with_images(&tokenizer, &sample, &[], tokens, &options).unwrap()
        };
        let whole = encode(&[1, 1], usize::MAX);
        assert_eq!((whole.images, &whole.cut), (2, &None));
        let text = whole.input_ids.len() - 2;
        assert_eq!(encode(&[100, 7], text + 107), whole);
        let capped = encode(&[100, 7], text + 106);
        let cut = capped.cut.unwrap();
        assert_eq!((capped.images, cut.images, cut.answers), (1, 1, 1));
        assert_eq!(capped.input_ids.len() - 1 + cut.tokens, text + 7);
    }
}
