//! Ids of a rendered conversation, as transformers' `apply_chat_template` gives them.
//!
//! What people say may spell a token that the template writes too. Such a control token counts as
//! itself in [`ChatTemplate::encode`] and as plain text in [`ChatTemplate::encode_sanitized`]
//! (`sanitize_control_tokens`): it is wrapped in two characters before the template runs, and what
//! is wrapped is encoded apart.

use std::ops::Range;

use regex::{Captures, Regex};
use serde_json::Value as Json;

use super::{ChatOptions, ChatTemplate, Rendered};
use crate::text::conversation::{IMAGE_TOKEN, IMAGE_TOKEN_INDEX};
use crate::{DataError, TextTokenizer, TokenSpan};

/// Around a control token that somebody has typed: transformers' own characters.
const START: char = '\u{f0000}';
const END: char = '\u{f0001}';

/// Ids of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChat {
    /// The text that the ids cover.
    pub text: String,
    /// Ids and their bytes in the text, in order.
    pub tokens: Vec<TokenSpan>,
    /// As [`Rendered::generation`].
    pub generation: Option<Vec<Range<usize>>>,
}

impl EncodedChat {
    /// The ids `[tokens]`.
    pub fn ids(&self) -> Vec<i64> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// Whether each token belongs to what the assistant says, `[tokens]`; `None` if the template
    /// does not mark it (`return_assistant_tokens_mask`).
    pub fn assistant_mask(&self) -> Option<Vec<bool>> {
        let spans = self.generation.as_ref()?;
        let inside = |token: &TokenSpan| spans.iter().any(|span| overlap(token, span));
        Some(self.tokens.iter().map(inside).collect())
    }
}

/// Whether a token covers a byte of a span.
pub(super) fn overlap(token: &TokenSpan, span: &Range<usize>) -> bool {
    token.start < span.end && token.end > span.start
}

impl ChatTemplate {
    /// Ids of messages, without special tokens added. A special token that somebody spells is
    /// that token.
    ///
    /// # Errors
    /// As [`Self::render`], and if the vocabulary cannot write the text.
    pub fn encode(
        &self,
        tokenizer: &TextTokenizer,
        messages: &[Json],
        options: &ChatOptions,
    ) -> Result<EncodedChat, DataError> {
        let Rendered { text, generation } = self.render(messages, options)?;
        Ok(EncodedChat {
            tokens: tokenizer.encode_with_spans(&text, false)?,
            text,
            generation,
        })
    }

    /// Ids of messages in which the names of special tokens are plain text.
    ///
    /// # Errors
    /// As [`Self::encode`], and if the vocabulary has no other way to write such a name.
    pub fn encode_sanitized(
        &self,
        tokenizer: &TextTokenizer,
        messages: &[Json],
        options: &ChatOptions,
    ) -> Result<EncodedChat, DataError> {
        let control = ControlTokens::new(self, tokenizer);
        let messages: Vec<Json> = messages.iter().map(|m| control.marked(m)).collect();
        let mut options = options.clone();
        for value in options.variables.values_mut() {
            *value = control.marked(value);
        }
        let rendered = self.render(&messages, &options)?;
        control.encode(tokenizer, &rendered)
    }
}

/// The tokens that are plain text in what people say.
#[derive(Debug)]
pub(super) struct ControlTokens {
    /// Any of them, the longest first.
    pattern: Option<Regex>,
    /// All added tokens, the longest first.
    added: Vec<String>,
    /// Whether the vocabulary has a token for an image.
    has_image: bool,
}

/// A stretch of a marked text.
struct Piece {
    bytes: Range<usize>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Special tokens in it are themselves.
    Written,
    /// A control token as plain text.
    Typed,
    /// An image, of a vocabulary that has no token for it.
    Image,
}

impl ControlTokens {
    /// Special tokens, and further added ones that the template writes.
    pub(super) fn new(template: &ChatTemplate, tokenizer: &TextTokenizer) -> Self {
        let written = |token: &str| {
            template.literals.contains(token) && !token.chars().all(crate::text::sample::is_space)
        };
        let mut added = tokenizer.added_tokens();
        let has_image = added.iter().any(|(token, _)| token == IMAGE_TOKEN);
        if !has_image {
            added.push((IMAGE_TOKEN.into(), true));
        }
        added.sort_by_key(|(token, _)| std::cmp::Reverse(token.chars().count()));
        let control = added
            .iter()
            .filter(|(token, special)| *special || token == IMAGE_TOKEN || written(token))
            .map(|(token, _)| regex::escape(token));
        let control: Vec<String> = control.filter(|token| !token.is_empty()).collect();
        Self {
            pattern: Regex::new(&control.join("|")).ok(),
            added: added.into_iter().map(|(token, _)| token).collect(),
            has_image,
        }
    }

    /// A text with its control tokens wrapped.
    pub(super) fn marked_text(&self, text: &str) -> String {
        let text = Self::unmarked(text);
        match &self.pattern {
            None => text,
            Some(pattern) => pattern
                .replace_all(&text, |token: &Captures<'_>| {
                    format!("{START}{}{END}", &token[0])
                })
                .into_owned(),
        }
    }

    /// A marked text in which `token` counts as itself.
    pub(super) fn spoken(marked: &str, token: &str) -> String {
        marked.replace(&format!("{START}{token}{END}"), token)
    }

    /// A text as people see it.
    pub(super) fn unmarked(text: &str) -> String {
        text.replace([START, END], "")
    }

    /// A value with the control tokens of all its texts wrapped.
    pub(super) fn marked(&self, value: &Json) -> Json {
        match value {
            Json::String(text) => self.marked_text(text).into(),
            Json::Array(items) => items.iter().map(|item| self.marked(item)).collect(),
            Json::Object(fields) => fields
                .iter()
                .map(|(key, value)| (key.clone(), self.marked(value)))
                .collect(),
            other => other.clone(),
        }
    }

    /// Encodes what a template makes of marked messages: each piece by itself. An image that the
    /// vocabulary has no token for is [`IMAGE_TOKEN_INDEX`].
    pub(super) fn encode(
        &self,
        tokenizer: &TextTokenizer,
        marked: &Rendered,
    ) -> Result<EncodedChat, DataError> {
        let pieces = self.pieces(&marked.text);
        let line: Vec<i64> = tokenizer.encode("\n", false)?;
        let mut text = String::with_capacity(marked.text.len());
        let mut tokens = Vec::new();
        let mut starts = Vec::with_capacity(pieces.len());
        for (i, piece) in pieces.iter().enumerate() {
            let (said, start) = (&marked.text[piece.bytes.clone()], text.len());
            starts.push(start);
            text.push_str(said);
            if said.is_empty() {
                continue;
            }
            if piece.kind == Kind::Image {
                let (id, end) = (IMAGE_TOKEN_INDEX, text.len());
                tokens.push(TokenSpan { id, start, end });
                continue;
            }
            let found = match i {
                0 => tokenizer.encode_with_spans(said, false)?,
                _ => encode_piece(tokenizer, said, piece.kind == Kind::Typed, &line)?,
            };
            let itself = tokenizer.id(said);
            if piece.kind == Kind::Typed && found.iter().any(|token| Some(token.id) == itself) {
                return Err(DataError::Encoding(format!(
                    "this vocabulary has no way to write {said} as plain text; leave it out of the text"
                )));
            }
            tokens.extend(found.into_iter().map(|token| TokenSpan {
                start: token.start + start,
                end: token.end + start,
                ..token
            }));
        }
        let moved = |at: usize| {
            let behind = pieces.partition_point(|piece| piece.bytes.end < at);
            match (pieces.get(behind), starts.get(behind)) {
                (Some(piece), Some(start)) => start + at.saturating_sub(piece.bytes.start),
                _ => text.len(),
            }
        };
        let spans = marked.generation.as_ref();
        let generation = spans.map(|spans| {
            let span = |span: &Range<usize>| moved(span.start)..moved(span.end);
            spans.iter().map(span).collect()
        });
        Ok(EncodedChat {
            text,
            tokens,
            generation,
        })
    }

    /// Splits at wrapped tokens and at characters that are left of a broken wrapping.
    fn pieces(&self, text: &str) -> Vec<Piece> {
        let mut found = Vec::new();
        let mut done = 0;
        while let Some(at) = text[done..].find([START, END]).map(|at| at + done) {
            self.push_written(text, done..at, &mut found);
            let inside = at + START.len_utf8();
            let whole = |token: &&String| {
                let rest = text[inside..].strip_prefix(token.as_str());
                rest.is_some_and(|rest| rest.starts_with(END))
            };
            let typed = self.added.iter().filter(|_| text[at..].starts_with(START));
            done = inside;
            if let Some(token) = typed.clone().find(whole) {
                let bytes = inside..inside + token.len();
                done = bytes.end + END.len_utf8();
                let kind = Kind::Typed;
                found.push(Piece { bytes, kind });
            }
        }
        self.push_written(text, done..text.len(), &mut found);
        found
    }

    fn push_written(&self, text: &str, bytes: Range<usize>, found: &mut Vec<Piece>) {
        let mut start = bytes.start;
        if !self.has_image {
            for (at, image) in text[bytes.clone()].match_indices(IMAGE_TOKEN) {
                let at = at + bytes.start;
                let end = at + image.len();
                let kind = Kind::Written;
                found.push(Piece {
                    bytes: start..at,
                    kind,
                });
                let kind = Kind::Image;
                found.push(Piece {
                    bytes: at..end,
                    kind,
                });
                start = end;
            }
        }
        let kind = Kind::Written;
        found.push(Piece {
            bytes: start..bytes.end,
            kind,
        });
    }
}

/// Encodes a text that goes on: behind a line break, which is taken off again, so that no space is
/// put before it.
fn encode_piece(
    tokenizer: &TextTokenizer,
    text: &str,
    plain: bool,
    line: &[i64],
) -> Result<Vec<TokenSpan>, DataError> {
    let encode = |text: &str| match plain {
        true => tokenizer.encode_plain_text(text),
        false => tokenizer.encode_with_spans(text, false),
    };
    let behind = encode(&format!("\n{text}"))?;
    let starts = behind.iter().map(|token| token.id).take(line.len());
    if !starts.eq(line.iter().copied()) {
        return encode(text);
    }
    let rest = behind.into_iter().skip(line.len());
    Ok(rest
        .map(|token| TokenSpan {
            start: token.start.saturating_sub(1),
            end: token.end.saturating_sub(1),
            ..token
        })
        .collect())
}
