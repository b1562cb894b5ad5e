//! `{% generation %}`, transformers' own tag around what the assistant says.
//!
//! The tag becomes a call block, which has the same scope, and its function puts a mark at either
//! end of what the block writes. Marks are characters that nothing else in the text has.

use std::ops::Range;
use std::sync::LazyLock;

use minijinja::value::Kwargs;
use minijinja::{Error, State, Value};
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::source::{Part, parts};
use crate::DataError;

/// The function that the tag becomes.
pub(super) const FUNCTION: &str = "__generation__";

static TAG: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})$").expect("a valid pattern")
});

/// A source with call blocks in place of the tags, and whether it has any.
pub(super) fn rewritten(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut found = false;
    for part in parts(source) {
        match part {
            Part::Text(text) | Part::Other { source: text, .. } => out.push_str(text),
            Part::Code(code) => match TAG.captures(code) {
                None => out.push_str(code),
                Some(tag) => {
                    found = true;
                    let call = match tag.get(2) {
                        Some(_) => "endcall".to_owned(),
                        None => format!("call {FUNCTION}()"),
                    };
                    out.push_str(&format!("{}{call}{}", &tag[1], &tag[3]));
                }
            },
        }
    }
    (out, found)
}

/// Two characters around what the assistant says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    open: char,
    close: char,
}

impl Marks {
    /// Characters for private use that none of the texts has.
    pub(super) fn absent_from(
        messages: &[Json],
        variables: &Map<String, Json>,
        literals: &str,
    ) -> Result<Self, DataError> {
        let [open, close] = absent(messages, variables, literals)?;
        Ok(Self { open, close })
    }

    /// What the template calls.
    pub(super) fn function(self) -> Value {
        Value::from_function(
            move |state: &mut State, kwargs: Kwargs| -> Result<String, Error> {
                let caller: Value = kwargs.get("caller")?;
                let said = caller.call(state, &[])?;
                Ok(format!("{}{said}{}", self.open, self.close))
            },
        )
    }

    /// The text without marks, and the bytes that were between them.
    pub(super) fn taken_out(self, text: &str) -> Result<(String, Vec<Range<usize>>), DataError> {
        let mut out = String::with_capacity(text.len());
        let mut spans = Vec::new();
        let mut open = None;
        for c in text.chars() {
            if c == self.open {
                open = Some(out.len());
            } else if c == self.close {
                let lost = "a {% generation %} block is cut in the text that the template writes";
                let start = open
                    .take()
                    .ok_or_else(|| DataError::ChatTemplate(lost.into()))?;
                spans.push(start..out.len());
            } else {
                out.push(c);
            }
        }
        Ok((out, spans))
    }
}

/// Characters for private use that nothing has which a template sees.
pub(super) fn absent<const N: usize>(
    messages: &[Json],
    variables: &Map<String, Json>,
    literals: &str,
) -> Result<[char; N], DataError> {
    let mut used: Vec<char> = literals.chars().filter(|c| PRIVATE.contains(c)).collect();
    messages
        .iter()
        .chain(variables.values())
        .for_each(|value| note_private(value, &mut used));
    let free: Vec<char> = PRIVATE.filter(|c| !used.contains(c)).take(N).collect();
    <[char; N]>::try_from(free).map_err(|_| {
        DataError::ChatTemplate(
            "the messages hold all of Unicode's characters for private use".into(),
        )
    })
}

/// Plane 16.
const PRIVATE: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10fffd}';

fn note_private(value: &Json, used: &mut Vec<char>) {
    match value {
        Json::String(text) => used.extend(text.chars().filter(|c| PRIVATE.contains(c))),
        Json::Array(items) => items.iter().for_each(|item| note_private(item, used)),
        Json::Object(fields) => fields.values().for_each(|item| note_private(item, used)),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}
