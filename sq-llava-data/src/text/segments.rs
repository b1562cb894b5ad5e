//! Pieces of a prompt with the part each plays, and their ids.
//!
//! The text is encoded once, whole between two images, and every token takes the role of the
//! segment that holds its last byte. Nothing is encoded in parts and counted.

use crate::text::conversation::IMAGE_TOKEN_INDEX;
use crate::{DataError, TextTokenizer};

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
    Text(String, TokenRole),
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
    let spans = tokenizer.encode_with_spans(&chunk.text, first)?;
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

/// Ids of a text in which `<image>` stands for an image (LLaVA's `tokenizer_image_token`).
///
/// # Errors
/// If the vocabulary cannot write the text.
pub fn encode_with_images(tokenizer: &TextTokenizer, text: &str) -> Result<Vec<i64>, DataError> {
    let mut segments = Vec::new();
    for (i, stretch) in text
        .split(crate::text::conversation::IMAGE_TOKEN)
        .enumerate()
    {
        if i > 0 {
            segments.push(Segment::Image);
        }
        segments.push(Segment::Text(stretch.to_owned(), TokenRole::Ignore));
    }
    Ok(encode(tokenizer, &segments)?.ids)
}
