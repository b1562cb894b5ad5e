//! Pieces of a prompt with the part each plays, and their ids.
//!
//! The text is encoded once, whole between two images, and every token takes the role of the
//! segment that holds its last byte. Nothing is encoded in parts and counted.

use crate::text::conversation::IMAGE_TOKEN_INDEX;
use crate::{DataError, TextTokenizer, TokenSpan};

/// What a token is to the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenRole {
    /// Not learnt: system text, role names, given questions, images.
    Ignore,
    /// Part of an asked question, with the token that ends it.
    Question,
    /// Part of an answer, with the token that ends it.
    Answer,
}

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Words, whoever they are from. A special token's name in them is plain text.
    Text(String, TokenRole),
    /// A special token of the template, by its name.
    Token(String, TokenRole),
    Image,
    /// An answer ends here: a place to cut a long conversation.
    TurnEnd,
}

/// Ids with a role each; equal lengths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EncodedSegments {
    pub(crate) ids: Vec<i64>,
    pub(crate) roles: Vec<TokenRole>,
    /// Number of ids up to the end of each answer.
    pub(crate) turn_ends: Vec<usize>,
}

/// The text between two images.
#[derive(Default)]
struct Chunk {
    text: String,
    /// The template's tokens in `text`.
    tokens: Vec<TokenSpan>,
    /// End of each segment in `text`, and its role.
    ends: Vec<(usize, TokenRole)>,
    turn_ends: Vec<usize>,
}

/// Encodes as LLaVA's `tokenizer_image_token` does: each stretch between images by itself, the
/// begin token once at the very front, [`IMAGE_TOKEN_INDEX`] for an image.
pub(crate) fn encode(
    tokenizer: &TextTokenizer,
    segments: &[Segment],
) -> Result<EncodedSegments, DataError> {
    let mut out = EncodedSegments::default();
    let mut chunk = Chunk::default();
    let mut first = true;
    for segment in segments {
        match segment {
            Segment::Text(text, role) => {
                chunk.text.push_str(text);
                chunk.ends.push((chunk.text.len(), *role));
            }
            Segment::Token(name, role) => {
                let start = chunk.text.len();
                chunk.text.push_str(name);
                let end = chunk.text.len();
                let missing = || DataError::Encoding(format!("the vocabulary lacks {name}"));
                let id = tokenizer.id(name).ok_or_else(missing)?;
                chunk.tokens.push(TokenSpan { id, start, end });
                chunk.ends.push((end, *role));
            }
            Segment::TurnEnd => chunk.turn_ends.push(chunk.text.len()),
            Segment::Image => {
                flush(tokenizer, std::mem::take(&mut chunk), first, &mut out)?;
                first = false;
                out.ids.push(IMAGE_TOKEN_INDEX);
                out.roles.push(TokenRole::Ignore);
            }
        }
    }
    flush(tokenizer, chunk, first, &mut out)?;
    Ok(out)
}

fn flush(
    tokenizer: &TextTokenizer,
    chunk: Chunk,
    first: bool,
    out: &mut EncodedSegments,
) -> Result<(), DataError> {
    let before = out.ids.len();
    let spans = tokenizer.encode_template(&chunk.text, &chunk.tokens, first)?;
    let begin = usize::from(first && tokenizer.adds_bos());
    for (i, token) in spans.iter().enumerate() {
        let at = token.start.max(token.end.saturating_sub(1));
        let segment = chunk.ends.partition_point(|&(end, _)| end <= at);
        let role = match chunk.ends.get(segment).or(chunk.ends.last()) {
            Some(&(_, role)) if i >= begin => role,
            _ => TokenRole::Ignore,
        };
        out.ids.push(token.id);
        out.roles.push(role);
    }
    for end in chunk.turn_ends {
        let tokens = spans.partition_point(|token| token.end <= end);
        out.turn_ends.push(before + tokens);
    }
    Ok(())
}

/// Ids of a prompt's text in which `<image>` stands for an image and special tokens for themselves
/// (LLaVA's `tokenizer_image_token`).
///
/// # Errors
/// If the vocabulary cannot write the text.
pub fn encode_with_images(tokenizer: &TextTokenizer, text: &str) -> Result<Vec<i64>, DataError> {
    let mut ids = Vec::new();
    for (i, stretch) in text
        .split(crate::text::conversation::IMAGE_TOKEN)
        .enumerate()
    {
        if i > 0 {
            ids.push(IMAGE_TOKEN_INDEX);
        }
        ids.extend(tokenizer.encode(stretch, i == 0)?);
    }
    Ok(ids)
}

/// The text that segments make.
pub(crate) fn text_of(segments: Vec<Segment>) -> String {
    let mut out = String::new();
    for segment in segments {
        match segment {
            Segment::Text(text, _) | Segment::Token(text, _) => out.push_str(&text),
            Segment::Image => out.push_str(crate::text::conversation::IMAGE_TOKEN),
            Segment::TurnEnd => {}
        }
    }
    out
}

/// The end token's name in texts as the token itself.
pub(crate) fn with_spoken(segments: Vec<Segment>, eos: &str) -> Vec<Segment> {
    let mut out = Vec::with_capacity(segments.len());
    for segment in segments {
        let Segment::Text(text, role) = segment else {
            out.push(segment);
            continue;
        };
        for (i, part) in text.split(eos).enumerate() {
            if i > 0 {
                out.push(Segment::Token(eos.to_owned(), role));
            }
            if !part.is_empty() {
                out.push(Segment::Text(part.to_owned(), role));
            }
        }
    }
    out
}
